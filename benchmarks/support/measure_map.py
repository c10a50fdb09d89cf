"""What a map costs as it grows: to open it, to ask it, to localize in it, to search all of its places; and the memory
of the process that does so. And what localizing costs as more points take part."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from support.long_map import LENGTH, Block, lay_out
from support.stopwatch import timed

from ep2ploc_core import se3
from ep2ploc_core.datasets.queries import Queries
from ep2ploc_core.datasets.sampling import draw_start
from ep2ploc_core.localizer import Localizer
from ep2ploc_core.localizer_settings import DEFAULT_SETTINGS
from ep2ploc_core.map.place_index import Impression, decode_depth, encode_places, open_places
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_core.model.checkpoint import load_network
from ep2ploc_core.se3 import pose_error

NETWORK = "edge"
RADIUS = DEFAULT_SETTINGS.radius  # metres, since the map's voxels are of 0.2 m
VISITED = 12  # places all over the map
SEARCHES = 3  # without a first guess
SEED = 0


def grow_map(block: Block, kilometres: list[float], indexed: float, folder: Path) -> list[dict[str, Any]]:
    """A row for each length, each measured in a process of its own. The index of places is made anew for lengths up to
    `indexed` kilometres; that of longer maps is copied with the rest."""
    rows = []
    for length in kilometres:
        copies = round(1000 * length / LENGTH)
        with TemporaryDirectory(dir=folder) as place, ProcessPoolExecutor(1, get_context("spawn")) as alone:
            point_map = lay_out(PointMap.open(block.map_path), copies, Path(place) / "map")
            index_s = None
            if length <= indexed:
                index_s = timed(encode_places, point_map, load_network(NETWORK))[1]
            measured = alone.submit(_measure, point_map.path, copies, block.queries_path).result()
        rows.append({"kilometres": length, **measured, "index_s": index_s})
    return rows


def grow_matches(block: Block, counts: list[int]) -> list[dict[str, Any]]:
    """A row for each number of points that the last pass takes, the first half of them."""
    queries, point_map = Queries(block.queries_path), PointMap.open(block.map_path)
    rows = []
    for count in counts:
        first, last = DEFAULT_SETTINGS.passes
        passes = (replace(first, points=count // 2), replace(last, points=count))
        settings = replace(DEFAULT_SETTINGS, passes=passes, landmarks=False)  # they would make up for few points
        localizer = Localizer(load_network(NETWORK), point_map, settings=settings)
        random = np.random.default_rng(SEED)
        results = [_localize(localizer, queries, number, 0.0, random) for number in range(2 * len(queries))]
        rows.append({"points": count, **_summary(results[1:])})  # the first one warms up
    return rows


def _measure(path: Path, copies: int, queries_path: Path) -> dict[str, Any]:
    network, queries = load_network(NETWORK), Queries(queries_path)
    random = np.random.default_rng(SEED)
    _localize(Localizer(network, PointMap.open(path)), queries, 0, 0.0, random)  # warms up
    before = _memory("RssAnon")
    point_map, open_s = timed(PointMap.open, path)
    opened = _memory("RssAnon")

    places = LENGTH * random.integers(0, copies, VISITED)
    assert queries.map_from_camera is not None
    middle = queries.map_from_camera[len(queries) // 2][:3, 3]
    first, again, points = [], [], []
    for place in places:
        fresh = PointMap(path, point_map.info)  # nothing of it is unpacked yet
        for seconds in (first, again):
            near, took = timed(fresh.query, middle + [place, 0, 0], RADIUS)
            seconds.append(took)
        points.append(len(near))

    tracking = Localizer(network, point_map)
    found = [_localize(tracking, queries, number, place, random) for number, place in enumerate(places)]
    tracked = _memory("RssAnon")
    index, open_index_s = timed(open_places, point_map)
    assert index is not None
    middle_place = len(index) // 2
    image = Impression(index.descriptors[middle_place], decode_depth(index.depths[middle_place]))
    searched = [timed(index.search, image, DEFAULT_SETTINGS.places)[1] for _ in range(3)]
    lost = Localizer(network, point_map, places=index)
    without_guess = [timed(lost.localize, queries.image(number), queries.camera)[1] for number in range(SEARCHES)]
    return {
        "points": len(point_map), "tiles": len(point_map.info.tiles), "places": len(index),
        "open_ms": 1000 * open_s, "open_mb": opened - before,
        "query_points": round(float(np.median(points))),
        "query_first_ms": 1000 * float(np.median(first)), "query_again_ms": 1000 * float(np.median(again)),
        **_summary(found), "memory_mb": tracked,
        "open_index_ms": 1000 * open_index_s, "search_ms": 1000 * float(np.median(searched)),
        "without_guess_ms": 1000 * float(np.median(without_guess)),
        "memory_searching_mb": _memory("RssAnon"), "memory_of_files_mb": _memory("RssFile"),
    }  # fmt: skip


def _localize(
    localizer: Localizer, queries: Queries, number: int, place: float, random: np.random.Generator
) -> tuple[float, float]:
    """A query, `place` metres further along the map than it was taken, from a start that is up to 2 m and 10 degrees
    off: the seconds, and how many metres off the pose is, infinitely many where the image is refused."""
    assert queries.map_from_camera is not None
    query = number % len(queries)
    truth = queries.map_from_camera[query].copy()
    truth[0, 3] += place
    start = truth @ se3.exp(torch.from_numpy(draw_start(random, 1.0))).numpy()
    found, seconds = timed(localizer.localize, queries.image(query), queries.camera, start)
    return seconds, np.inf if found.map_from_camera is None else pose_error(found.map_from_camera, truth)[0]


def _summary(results: list[tuple[float, float]]) -> dict[str, Any]:
    seconds, metres = np.median(results, 0)
    return {"localize_ms": 1000 * seconds, "error_m": metres if np.isfinite(metres) else None}


def _memory(kind: str) -> float:
    """Megabytes of this process: "RssAnon" is its own, "RssFile" is of files, which the system takes back at need."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(kind))
