"""IPR: how fast, and how right. Run as `.venv/bin/python benchmarks/visibility.py`; it takes less than a minute.

On a machine that does other things too, run it with OMP_NUM_THREADS=1: threads that wait for each other are slower.

The first table gives the time of one view of clouds of a street, the share of the machine's memory bandwidth that
reading the points and writing and reading the z-buffer once makes of it, and the time of Open3D's
`hidden_point_removal`, which is given only the points inside the image. The second table compares what rules keep with
what ray casting says is visible.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import open3d as o3d
import torch
from rich.console import Console
from rich.table import Table

from ep2ploc_core.evaluation.visibility import JudgedView, judged_views, no_removal, our_rule, papers_rule, score
from ep2ploc_core.visibility import VisibilitySettings, project_inside, remove_invisible

SEEDS = (31, 32)  # streets that nothing was chosen on
SIZES = ((640, 192), (1242, 375))
SPACINGS = (0.1, 0.2, 0.4)  # metres
COUNTS = (10_000, 30_000, 100_000, 300_000, 1_000_000)


def main() -> None:
    """Prints both tables."""
    console = Console(width=120)
    views = [view for seed in SEEDS for view in judged_views(seed, SPACINGS, SIZES, frames=24)]
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        console.print(_speed(views, device))
    console.print(_quality(views))


def _speed(views: list[JudgedView], device: str) -> Table:
    bandwidth = copy_bandwidth(device)
    name = torch.cuda.get_device_name() if device == "cuda" else f"the CPU, threads: {torch.get_num_threads()}"
    table = Table(title=f"IPR on {name}; copying memory: {bandwidth / 1e9:.0f} GB/s")
    for column in ("image", "points", "in image", "kept", "ms", "Mpoints/s", "of bandwidth", "Open3D ms", "ratio"):
        table.add_column(column, justify="right")
    for size in SIZES:
        view = next(view for view in views if view.size == size and view.spacing == SPACINGS[0])
        for row in speeds(view, COUNTS, device):
            count, kept, ms, others = row["points"], row["kept"], row["ms"], row["open3d_ms"]
            share = least_bytes(count, kept, size) / (ms / 1e3) / bandwidth
            table.add_row(
                f"{size[0]}x{size[1]}", f"{count:,}", f"{row['inside']:,}", f"{kept:,}", f"{ms:.2f}",
                f"{count / ms / 1e3:.0f}", f"{share:.1%}", f"{others:.0f}", f"{others / ms:.0f}",
            )  # fmt: skip
    return table


def speeds(
    view: JudgedView, counts: Sequence[int], device: str, clock: Callable[[], float] = time.perf_counter
) -> list[dict[str, Any]]:
    """For each number of points how many are inside the image and how many are kept, and milliseconds: of IPR, and of
    Open3D's way."""
    rows = []
    arguments = (view.camera_from_map.to(device), view.intrinsics.to(device), view.size)
    for count in counts:
        xyz = _cloud(view, count).to(device)
        kept = remove_invisible(xyz, *arguments, view.spacing)
        inside = project_inside(xyz, *arguments)
        seen = xyz.index_select(0, inside.index).double().cpu().numpy()
        seconds = _median_seconds(lambda: remove_invisible(xyz, *arguments, view.spacing), device, clock)  # noqa: B023
        others = _median_seconds(lambda: hidden_point_removal(seen, view.camera_from_map), "cpu", clock, 1)  # noqa: B023
        found = {"points": count, "inside": len(inside), "kept": len(kept)}
        rows.append({**found, "ms": 1e3 * seconds, "open3d_ms": 1e3 * others})
    return rows


def _quality(views: list[JudgedView]) -> Table:
    table = Table(title="Of the points kept, the share truly visible / of the visible, the share kept / F")
    table.add_column("rule")
    for size in SIZES:
        for spacing in SPACINGS:
            table.add_column(f"{size[0]}x{size[1]}\n{spacing} m", justify="center")
    rules: dict[str, Callable[[JudgedView], torch.Tensor]] = {
        "none removed": no_removal, "EP2P-Loc's": papers_rule, "Open3D's": _open3d_rule, "this": our_rule,
    }  # fmt: skip
    for name, rule in rules.items():
        cells = []
        for size in SIZES:
            for spacing in SPACINGS:
                found = score(rule, [view for view in views if view.size == size and view.spacing == spacing])
                cells.append(f"{found.precision:.3f} {found.recall:.3f}\n{found.f:.3f}")
        table.add_row(name, *cells)
    return table


def copy_bandwidth(device: str) -> float:
    """Bytes per second read and written by a large copy."""
    source = torch.ones(1 << 26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median_seconds(lambda: target.copy_(source), device)


def least_bytes(points: int, kept: int, size: tuple[int, int]) -> int:
    """What must be read and written at the least: each point, each cell of the z-buffer twice, each result."""
    cells = sum(size[0] * size[1] / 4**scale for scale in range(VisibilitySettings().scales))
    return round(12 * points + 2 * 4 * cells + (8 + 8 + 8 + 4) * kept)


def hidden_point_removal(xyz: np.ndarray, camera_from_map: torch.Tensor) -> np.ndarray:
    """Indices of the points `(N, 3)` that Open3D's way (Katz and others, 2007) takes for visible; a radius of a hundred
    times the extent, as its documentation has it."""
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(xyz))
    place = torch.linalg.inv(camera_from_map)[:3, 3].double().numpy()
    extent = float(np.linalg.norm(xyz.max(0) - xyz.min(0)))
    return np.asarray(cloud.hidden_point_removal(place, 100 * extent)[1])


def _open3d_rule(view: JudgedView) -> torch.Tensor:
    kept = torch.zeros_like(view.truth)
    xyz = view.xyz[view.inside.index].double().numpy()
    kept[torch.from_numpy(hidden_point_removal(xyz, view.camera_from_map)).long()] = True
    return kept


def _cloud(view: JudgedView, count: int) -> torch.Tensor:
    """A cloud of this many points with the shape of the view's street."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(view.xyz), (count,), generator=generator)
    return view.xyz[chosen] + 0.2 * view.spacing * torch.randn(count, 3, generator=generator)


def _median_seconds(
    work: Callable[[], object], device: str, clock: Callable[[], float] = time.perf_counter, runs: int = 9
) -> float:
    seconds = []
    for _ in range(runs + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = clock()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - begin)
    return float(np.median(seconds[1:]))  # the first run warms up


if __name__ == "__main__":
    main()
