"""How long one image takes, stage by stage, how much memory that needs, and how large the network is.

    .venv/bin/python benchmarks/localizer.py [--map MAP --queries QUERIES] [--images 10] [--threads 1 2]
        [--refine align_first --share 0.05] [--markdown FILE]

Without a map: on a synthetic street that it makes and maps itself, with the weights as shipped. Each image starts up
to 2 m and 10 degrees off, or a `--share` of that. Where the map has landmarks, the time without asking them, as for a
pose that is sure, and with, as for the second and further ones of a run of images that are not: their landmarks are
looked for, by a thread beside the `--threads`, while the network works, so the two stages in brackets are not part of
the whole. Medians over the images, after two that are not counted; a stage of both passes has two numbers, and the
choice of points and the alignment one more for the sharpening. `whole, own time` is the process's own time, of all its
threads: where, without landmarks and on one thread, the whole takes much longer, something else was using the machine.
What happens between the stages is in `rest`.
"""

from __future__ import annotations

import argparse
import inspect
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import product, zip_longest
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from support.table import show_table  # beside this benchmark

import ep2ploc_core.landmarks.sighting
import ep2ploc_core.matcher
from ep2ploc_core import se3
from ep2ploc_core.aligner import Aligner
from ep2ploc_core.datasets.kitti import KittiDrive
from ep2ploc_core.datasets.queries import Queries, write_queries
from ep2ploc_core.datasets.sampling import draw_start
from ep2ploc_core.datasets.synthetic import write_synthetic_drive
from ep2ploc_core.evaluation.report import Grid
from ep2ploc_core.landmarks.search import LandmarkSearch
from ep2ploc_core.localizer import Localizer
from ep2ploc_core.localizer_settings import REFINEMENTS, LocalizerSettings
from ep2ploc_core.machine import describe_machine, machine_caption
from ep2ploc_core.map.build import build_map
from ep2ploc_core.map.encode import encode_map
from ep2ploc_core.map.point_map import SITE_CHECKPOINT, PointMap
from ep2ploc_core.map.sources import KittiSource
from ep2ploc_core.map.unit import unit_of
from ep2ploc_core.matcher import Matcher
from ep2ploc_core.model.checkpoint import load_network
from ep2ploc_core.model.ep2ploc import EP2PLoc

FRAMES, SEED, WARM_UP = 16, 0, 2
BESIDE = ("(features of the image)", "(landmarks)")  # stages in another thread


class Stopwatch:
    """Milliseconds of each call of some functions, by the stage that they are."""

    def __init__(self) -> None:
        self.calls: dict[str, list[float]] = {}

    @contextmanager
    def on(self, owner: Any, name: str, stage: str) -> Iterator[None]:
        """Times a function, found by its owner and name, as this stage."""
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            result = function(*arguments, **options)
            self.calls.setdefault(stage, []).append(1000 * (time.perf_counter() - begun))
            return result

        is_static = isinstance(inspect.getattr_static(owner, name), staticmethod)
        with patch.object(owner, name, staticmethod(timed) if is_static else timed):
            yield


def street(folder: Path) -> tuple[Path, Path]:
    """Map and queries of a synthetic street."""
    path = write_synthetic_drive(folder / "drive", FRAMES, SEED)
    encode_map(build_map(KittiSource(path), folder / "map"), load_network("edge"))
    write_queries(KittiDrive(path), list(range(2, FRAMES, 3)), folder / "queries")
    return folder / "map", folder / "queries"


def measure(localizer: Localizer, queries: Queries, images: int, share: float) -> dict[str, list[float]]:
    """Median milliseconds of each stage, one for each time that it runs in an image."""
    assert queries.map_from_camera is not None
    random = np.random.default_rng(SEED)
    stages = [
        (localizer, "_encode", "undistort, resize"),
        (localizer.network, "encode_image", "image encoder"),
        (localizer.point_map, "query", "map query"),
        (Matcher, "remove_invisible", "IPR"),
        (Matcher, "view", "choice of points"),
        (localizer.network, "classify", "classify"),
        (ep2ploc_core.matcher, "search_pose", "search on score maps"),
        (Matcher, "decide", "single matches"),
        (localizer, "_conclude", "score"),
        (localizer.network, "dense_features", "dense features"),
        (Aligner, "_align", "alignment"),
        (ep2ploc_core.landmarks.sighting, "detect", BESIDE[0]),
        (localizer.landmark_finder, "find", BESIDE[1]),
        (LandmarkSearch, "result", "waiting for landmarks"),
    ]
    names = [stage for _, _, stage in stages] + ["rest", "whole", "whole, own time"]
    counted: dict[str, list[list[float]]] = {name: [] for name in names}
    for number in range(-WARM_UP, images):
        index = number % len(queries)
        truth, image = queries.map_from_camera[index], queries.image(index)
        error = draw_start(random, share) * np.repeat([unit_of(localizer.point_map.voxel_size), 1.0], 3)
        start = truth @ se3.exp(torch.from_numpy(error)).numpy()
        watch = Stopwatch()
        with ExitStack() as watched:
            for stage in stages:
                watched.enter_context(watch.on(*stage))
            own, begun = time.process_time(), time.perf_counter()
            localizer.localize(image, queries.camera, start)
            whole, own = time.perf_counter() - begun, time.process_time() - own
        calls = watch.calls
        for outer, inner in (
            ("undistort, resize", "image encoder"), ("choice of points", "IPR"), ("alignment", "dense features"),
        ):  # fmt: skip
            calls[outer] = [
                total - part for total, part in zip_longest(calls.get(outer, []), calls.get(inner, []), fillvalue=0.0)
            ]
        calls["rest"] = [1000 * whole - sum(sum(calls[stage]) for stage in calls if stage not in BESIDE)]
        calls["whole"], calls["whole, own time"] = [1000 * whole], [1000 * own]
        for name in names if number >= 0 else ():
            counted[name].append(calls.get(name, []))
    # Some images have a pass more, or less, than most: their times are not in the medians of its stages.
    usual = {name: Counter(map(len, rows)).most_common(1)[0][0] for name, rows in counted.items()}
    return {
        name: np.median([row for row in rows if len(row) == usual[name]], 0).tolist() for name, rows in counted.items()
    }


def parameters(network: EP2PLoc) -> list[tuple[str, int]]:
    """Numbers of the network's parts, the largest first."""
    parts = {name: sum(values.numel() for values in part.parameters()) for name, part in network.named_children()}
    return sorted(parts.items(), key=lambda part: -part[1])


def main() -> None:
    """Measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--map", type=Path, help="an encoded map; with --queries")
    parser.add_argument("--queries", type=Path, help="queries with poses in that map")
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--refine", choices=REFINEMENTS, default="auto")
    parser.add_argument("--share", type=float, default=1.0, help="of the start error")
    parser.add_argument("--markdown", type=Path, help="write the table here, too")
    arguments = parser.parse_args()
    if (arguments.map is None) != (arguments.queries is None):
        parser.error("give --map and --queries, or neither")

    with tempfile.TemporaryDirectory() as folder:
        where = (arguments.map, arguments.queries) if arguments.map else street(Path(folder))
        point_map, queries = PointMap.open(where[0]), Queries(where[1])
        if queries.map_from_camera is None:
            parser.error(f"{where[1]} has no poses.txt to start near")
        site = where[0] / SITE_CHECKPOINT
        network = load_network(site if site.exists() else "edge")
        settings = LocalizerSettings(refine=arguments.refine, landmarks=False)
        ways = {"": settings}
        if point_map.landmark_store is not None:
            ways[", landmarks asked"] = replace(settings, landmarks=True, sure_sigma=0.0)
        columns = {}
        for threads, (asked, way) in product(arguments.threads, ways.items()):
            torch.set_num_threads(threads)
            cv2.setNumThreads(threads)
            localizer = Localizer(network, point_map, settings=way)
            name = f"{threads} thread{'s' if threads > 1 else ''}{asked}"
            columns[name] = measure(localizer, queries, arguments.images, arguments.share)

        rows = [
            [name, *(" + ".join(f"{ms:.1f}" for ms in column[name]) or "-" for column in columns.values())]
            for name in next(iter(columns.values()))
        ]
        rows.append(["images a second", *(f"{1000 / column['whole'][0]:.1f}" for column in columns.values())])
        size = f"{queries.camera.width}x{queries.camera.height}"
        off = f"{2 * unit_of(point_map.voxel_size) * arguments.share:g} m and {10 * arguments.share:g} degrees"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        parts = parameters(network)
        listed = ", ".join(f"{name} {count:,}" for name, count in parts)
        show_table(
            f"One image of {size} pixels, map of {len(point_map):,} points, first guess up to {off} off",
            Grid(["ms, each pass", *columns], rows),
            arguments.markdown,
            f"Largest memory of the process{'' if arguments.map else ', making the street included'}: {peak:.0f} MB. "
            f"Parameters: {sum(count for _, count in parts):,} ({listed}). {machine_caption(describe_machine())}",
        )


if __name__ == "__main__":
    main()
