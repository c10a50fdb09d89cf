"""How cost grows: with the length of the map, its places, the points around the camera, matches, and pixels.

    .venv/bin/python benchmarks/scale.py [map places visibility matches pnp image voxels] [--full] [--out out/scale]
        [--tables DIR]

Without names: all of it, in about three minutes. `--full` takes some ten more, 3 GB of disk and 5 of memory: maps of up
to 100 km, a million places. Times are those of the process itself, on one thread (`support/stopwatch.py`). Into `--out`
go `scale.json`, where a new measurement takes the place of the old one of its name, and a plot of each; `--tables`
takes the tables in Markdown. Long maps are a block of a synthetic street again and again (`support/long_map.py`), with
the weights as shipped; files that were just written are read from memory, not from the disk. FAISS is compared with
where it is installed (`pip install faiss-cpu`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from support.growth import Curve, Growth, keep
from support.long_map import Block, make_block
from support.measure_map import NETWORK, grow_map, grow_matches
from support.measure_parts import faiss_is_installed, grow_image, grow_places, grow_pnp
from support.stopwatch import alone
from support.table import show_table
from visibility import SEEDS, SIZES, SPACINGS, speeds  # the benchmark beside this one
from voxels import canyon, times  # this one, too

from ep2ploc_core.evaluation.visibility import judged_views
from ep2ploc_core.model.checkpoint import load_network
from ep2ploc_core.model.voxel_backend import voxel_backend

MATCHES = [128, 256, 512, 1024, 2048, 4096]
POINTS = [10_000, 30_000, 100_000, 300_000, 1_000_000]
PNP_MATCHES = [100, 300, 1000, 3000, 10_000]
WIDTHS = [320, 416, 512, 640, 832, 1024, 1248]
CANYONS = [30.0, 100.0, 300.0, 1000.0]  # metres
DESCRIPTOR = 256  # numbers, of a place

GROWTHS = {
    "map": Growth(
        "A map as it grows",
        {
            "kilometres": "km", "points": "points", "tiles": "tiles", "open_ms": Curve("open"),
            "query_first_ms": Curve("submap of 60 m, first"), "query_again_ms": Curve("submap, again"),
            "localize_ms": Curve("localize with a guess"), "error_m": "off, m", "places": "places",
            "search_ms": Curve("places most like"), "without_guess_ms": Curve("localize without a guess"),
            "open_mb": "opening takes, MB", "memory_mb": Curve("process, localizing", "MB"),
            "memory_searching_mb": Curve("process, without a guess", "MB"),
            "memory_of_files_mb": Curve("pages of files", "MB"), "index_s": "making the places, s",
        },
    ),
    "places": Growth(
        f"The search among places with descriptors of {DESCRIPTOR} numbers",
        {
            "places": "places", "mb": "on disk, MB", "ms": Curve("ours"), "faiss_ms": Curve("FAISS, exact"),
            "faiss_half_ms": Curve("FAISS, exact, half precision"), "lists_ms": Curve("FAISS, inverted lists"),
            "lists_found": "of the best 16 in the lists", "lists_made_s": "making the lists, s",
        },
    ),
    "visibility": Growth(
        f"IPR in an image of {SIZES[1][0]}x{SIZES[1][1]} pixels",
        {
            "points": "points", "inside": "in the image", "kept": "kept", "ms": Curve("IPR"),
            "open3d_ms": Curve("Open3D's hidden_point_removal"),
        },
    ),
    "matches": Growth(
        "Localizing as more points are matched",
        {"points": "points in the last pass", "localize_ms": Curve("localize"), "error_m": Curve("median", "m off")},
    ),
    "pnp": Growth(
        "A pose from matches, half of them wrong",
        {
            "matches": "matches", "ms": Curve("ours, with covariance"), "opencv_ms": Curve("cv2.solvePnPRansac"),
            "off_mm": Curve("ours", "mm off"), "opencv_off_mm": Curve("cv2.solvePnPRansac", "mm off"),
        },
    ),
    "image": Growth(
        "The image encoder",
        {
            "pixels": "pixels", "width": "width", "height": "height", "encoder_ms": Curve("encoder"),
            "dense_ms": Curve("features for alignment"),
        },
    ),
    "voxels": Growth(
        "Voxels of 0.5 m and their neighbours",
        {
            "voxels": "voxels", "voxelize": Curve("voxelize"), "coarsen": Curve("coarsen"),
            "neighbour_pairs": Curve("pairs of neighbours"), "levels": Curve("all of three levels"),
        },
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How far each thing grows. indexed: kilometres of map up to which places are encoded anew."""

    kilometres: list[float]
    indexed: float
    places: list[int]
    approximate: int


QUICK = Sizes([0.1, 1.0, 10.0], 0.1, [1000, 10_000, 100_000], 10_000)
FULL = Sizes([0.1, 1.0, 10.0, 100.0], 1.0, [1000, 10_000, 100_000, 1_000_000], 1_000_000)


@cache
def block(folder: Path) -> Block:
    """Made once, for all that is measured in it."""
    return make_block(folder, load_network(NETWORK))


def measure(name: str, sizes: Sizes, folder: Path) -> list[dict[str, Any]]:
    """The rows of one measurement."""
    if name == "map":
        return grow_map(block(folder), sizes.kilometres, sizes.indexed, folder)
    if name == "matches":
        return grow_matches(block(folder), MATCHES)
    if name == "places":
        return grow_places(DESCRIPTOR, sizes.places, sizes.approximate)
    if name == "visibility":
        (view, *_) = judged_views(SEEDS[0], SPACINGS[:1], SIZES[1:], frames=24)
        return speeds(view, POINTS, "cpu", time.process_time)
    if name == "pnp":
        return grow_pnp(PNP_MATCHES)
    if name == "image":
        return grow_image(load_network(NETWORK), WIDTHS)
    return [times(canyon(length), voxel_backend(), 5, time.process_time) for length in CANYONS]


def main() -> None:
    """Measures, keeps, prints and draws one thing after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"what to measure: {', '.join(GROWTHS)}")
    parser.add_argument("--full", action="store_true", help="up to 100 km of map and a million places")
    parser.add_argument("--out", type=Path, default=Path("out/scale"), help="for scale.json and the plots")
    parser.add_argument("--tables", type=Path, help="for the tables in Markdown")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in GROWTHS]
    if unknown:
        parser.error(f"there is no measurement '{unknown[0]}'; there are: {', '.join(GROWTHS)}")
    alone()

    with tempfile.TemporaryDirectory(prefix="ep2ploc_scale_") as folder:
        for name in arguments.names or GROWTHS:
            rows = measure(name, FULL if arguments.full else QUICK, Path(folder))
            machine = keep(arguments.out / "scale.json", name, rows)
            growth = GROWTHS[name]
            growth.draw(rows, arguments.out / f"{name}.png")
            file = arguments.tables and arguments.tables / f"scale_{name}.md"
            without = name == "places" and not faiss_is_installed()
            note = "FAISS is not installed here, so there is nothing to compare with: pip install faiss-cpu. " * without
            show_table(growth.title, growth.grid(rows), file, note + machine)


if __name__ == "__main__":
    main()
