"""How fast maps are built, how much memory that takes, and how fast they answer.

    .venv/bin/python benchmarks/map.py [--points 50e6]

A made-up site of street blocks, as many points as asked for (2 million by default), is built as any recording is, in a
process of its own whose largest memory is printed; then "what is within 60 m" is asked all over it. Where Zarr is
installed the same points are also read from it, in chunks as large as the tiles.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ep2ploc_core.map.build import build_map
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_core.map.posed_scan import PosedScan

BLOCK = 30.0  # metres; a scan sees the ground of one block and two walls in it
SPACING = 0.2
RADIUS = 60.0
QUERIES = 40


class Site:
    """One scan per block, blocks in a square, each point in a voxel of its own."""

    has_poses = True

    def __init__(self, points: float) -> None:
        self.ground = _grid(BLOCK, BLOCK)
        self.wall = _grid(BLOCK, 6.0)
        per_scan = len(self.ground) + 2 * len(self.wall)
        self.side = max(1, round((points / per_scan) ** 0.5))

    def __len__(self) -> int:
        return self.side**2

    def scans(self, first: int = 0) -> Iterator[PosedScan]:
        for number in range(first, len(self)):
            random = np.random.default_rng(number)
            flat = np.zeros(len(self.ground))
            walls = [
                np.stack([self.wall[:, 0], np.full(len(self.wall), y), self.wall[:, 1] + SPACING], 1)
                for y in random.choice([-9.9, -3.9, 4.1, 10.1], 2, replace=False)
            ]
            xyz = np.concatenate([np.c_[self.ground, flat + 0.1], *walls]) - [0, 0, 1.8]
            xyz += random.uniform(-0.04, 0.04, xyz.shape)
            pose = np.eye(4)
            pose[:3, 3] = [BLOCK * (number % self.side), BLOCK * (number // self.side), 1.8]
            points = np.c_[xyz, random.random(len(xyz))].astype(np.float32)
            yield PosedScan(number, points, pose)

    def describe(self) -> dict[str, Any]:
        return {"kind": "benchmark", "side": self.side}


def _grid(width: float, height: float) -> np.ndarray:
    """Middles of voxels from -width/2 to width/2 and from 0 (or -height/2 for a square) to height."""
    low = -height / 2 if width == height else 0.0
    u, v = np.meshgrid(np.arange(-width / 2, width / 2, SPACING), np.arange(low, low + height, SPACING))
    return np.stack([u.ravel(), v.ravel()], 1) + SPACING / 2


def _build(points: float, out: Path, results: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took: dict[str, float] = {}
    begun = time.perf_counter()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage)
            progress.update(tasks[stage], completed=done, total=total)
            took[stage] = time.perf_counter() - begun

        build_map(Site(points), out, progress=report)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results.put((took, peak / 1024, before / 1024))


def _queries(ask: Any, side: float) -> tuple[float, float, float]:
    """Median milliseconds of a first and of a second question at the same places, and points in an answer."""
    random = np.random.default_rng(0)
    times, found = [], []
    for _ in range(QUERIES):
        place = np.array([*random.uniform(0, side, 2), 1.0])
        row = []
        for _ in range(3):
            begun = time.perf_counter()
            found.append(len(ask(place)))
            row.append(1000 * (time.perf_counter() - begun))
        times.append((row[0], min(row[1:])))
    first, again = np.median(times, axis=0)
    return float(first), float(again), float(np.median(found))


def main() -> None:
    """Builds, asks, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=float, default=2e6)
    points = parser.parse_args().points
    folder = Path(tempfile.mkdtemp(prefix="ep2ploc_bench_"))
    try:
        results: multiprocessing.Queue = multiprocessing.get_context("spawn").Queue()  # type: ignore[type-arg]
        builder = multiprocessing.get_context("spawn").Process(target=_build, args=(points, folder / "map", results))
        builder.start()
        builder.join()
        if builder.exitcode:
            raise SystemExit("The build failed; its error is above.")
        took, peak, before = results.get()
        begun = time.perf_counter()
        point_map = PointMap.open(folder / "map")
        opened = time.perf_counter() - begun
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        side = BLOCK * Site(points).side
        first, again, found = _queries(lambda place: point_map.query(place, RADIUS), side)

        table = Table(title=f"map of {len(point_map):,} points, {side / 1000:.2f} km square; {platform.platform()}")
        table.add_column("what")
        table.add_column("measured", justify="right")
        total = took["writing tiles"]
        table.add_row("build", f"{total:.0f} s, {len(point_map) / total:,.0f} points/s")
        stages = list(took.items())
        for (stage, end), start in zip(stages, [0.0, *[end for _, end in stages[:-1]]], strict=True):
            table.add_row(f"  {stage}", f"{end - start:.0f} s")
        table.add_row("largest memory of the build", f"{peak:.0f} MB ({before:.0f} MB before it began)")
        table.add_row("on disk", f"{size / 1e6:.0f} MB")
        table.add_row("open", f"{1000 * opened:.0f} ms")
        table.add_row(f"query {RADIUS:.0f} m, first time", f"{first:.1f} ms, {found:,.0f} points")
        table.add_row(f"query {RADIUS:.0f} m, warm", f"{again:.1f} ms")
        _zarr_rows(table, point_map, folder, side)
        Console().print(table)
    finally:
        shutil.rmtree(folder)


def _zarr_rows(table: Table, point_map: PointMap, folder: Path, side: float) -> None:
    """The same tiles as Zarr arrays, a chunk each, uncompressed and with Zarr's own compression."""
    try:
        import zarr
    except ImportError:
        table.add_row("the same in Zarr", "not installed")
        return
    local = {name: np.array(name.split("_"), np.float64) * point_map.info.tile_size for name in point_map.info.tiles}
    for title, options in (("Zarr, uncompressed", {"compressors": None}), ("Zarr, its compression", {})):
        group = zarr.open_group(folder / title.split()[1], mode="w")
        for name in point_map.info.tiles:
            array = np.load(point_map.path / "tiles" / name / "points.npy")
            rows = array.view(np.uint8).reshape(len(array), -1)
            group.create_array(name, data=rows, chunks=rows.shape, **options)

        def ask(place: np.ndarray, group: Any = group) -> np.ndarray:
            near = [name for name, corner in local.items() if _reaches(corner, place, point_map.info.tile_size)]
            return np.concatenate([group[name][:] for name in near])

        first, again, _ = _queries(ask, side)
        table.add_row(f"{title}: reading the tiles within 60 m", f"first {first:.1f} ms, warm {again:.1f} ms")

    def mapped(place: np.ndarray) -> np.ndarray:
        near = [name for name, corner in local.items() if _reaches(corner, place, point_map.info.tile_size)]
        return np.concatenate([np.load(point_map.path / "tiles" / name / "points.npy", mmap_mode="r") for name in near])

    first, again, _ = _queries(mapped, side)
    table.add_row(".npy: reading the tiles within 60 m", f"first {first:.1f} ms, warm {again:.1f} ms")


def _reaches(corner: np.ndarray, place: np.ndarray, size: float) -> bool:
    return bool(np.linalg.norm(place[:2].clip(corner, corner + size) - place[:2]) < RADIUS)


if __name__ == "__main__":
    main()
