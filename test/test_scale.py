"""The long maps of the benchmark of scale are what they are said to be, and what it measures is kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from ep2ploc_core.map.array_file import save_array
from ep2ploc_core.map.place_index import PlaceIndex, open_places
from ep2ploc_core.map.point_map import PATH_FILE, MapInfo, MapPoints, PointMap, write_map
from ep2ploc_core.map.views import CELLS

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))  # as where they are run

from support.growth import Curve, Growth, keep
from support.long_map import LENGTH, lay_out

COPIES = 7


@pytest.fixture
def block(tmp_path: Path) -> PointMap:
    """A map of LENGTH metres with descriptors, a path, and places."""
    random = np.random.default_rng(0)
    xyz = random.uniform([0, -30, 0], [LENGTH, 30, 8], (5000, 3)).astype(np.float32)
    points = MapPoints(xyz, random.random((5000, 6), dtype=np.float32), np.zeros((5000, 2), np.uint16))
    made = write_map(tmp_path / "block", points, MapInfo(0.2))
    made.store_descriptors(random.integers(-127, 128, (5000, 4), dtype=np.int8), "01234567")
    path = np.tile(np.eye(4), (10, 1, 1))
    path[:, 0, 3] = np.arange(10) * LENGTH / 10
    save_array(made.path / PATH_FILE, path)
    places = np.zeros(10, [("map_from_camera", "<f8", (4, 4)), ("descriptor", "<f2", (8,)), ("depths", "i1", (CELLS,))])
    places["map_from_camera"], places["descriptor"] = path, random.random((10, 8))
    places["depths"] = random.integers(-128, 128, (10, CELLS))
    save_array(made.path / "places.01234567.npy", places)
    return PointMap.open(made.path)


def test_each_copy_is_the_block_moved_along(block: PointMap, tmp_path: Path) -> None:
    long = lay_out(block, COPIES, tmp_path / "long")
    assert len(long) == COPIES * len(block)
    for copy in (0, 3, COPIES - 1):
        moved = np.array([LENGTH * copy, 0, 0])
        here, there = (at.query(np.array([50.0, 0, 0]) + off, 40.0) for at, off in ((block, 0 * moved), (long, moved)))
        assert len(there) == len(here) > 1000
        np.testing.assert_allclose(there.xyz - moved, here.xyz, atol=1e-4)
        np.testing.assert_array_equal(there.attributes, here.attributes)
        np.testing.assert_array_equal(there.descriptors, here.descriptors)
    # Between two copies there is a whole neighbourhood, too.
    assert len(long.query(np.array([LENGTH, 0, 0]), 40.0)) > 1000


def test_the_path_and_the_places_go_on_through_all_copies(block: PointMap, tmp_path: Path) -> None:
    long = lay_out(block, COPIES, tmp_path / "long")
    np.testing.assert_allclose(long.sensor_path()[:, 0, 3], np.arange(10 * COPIES) * LENGTH / 10)
    index, one = open_places(long), open_places(block)
    assert isinstance(index, PlaceIndex) and isinstance(one, PlaceIndex)
    np.testing.assert_allclose(index.map_from_camera[:, 0, 3], np.arange(10 * COPIES) * LENGTH / 10)
    np.testing.assert_array_equal(index.descriptors[10:20], one.descriptors)
    np.testing.assert_array_equal(index.depths[10:20], one.depths)


def test_descriptors_lie_on_the_disk_once(block: PointMap, tmp_path: Path) -> None:
    long = lay_out(block, COPIES, tmp_path / "long")
    files = list(long.path.glob("tiles/*/descriptors.*"))
    assert len({file.stat().st_ino for file in files}) == len(files) / COPIES
    points = list(long.path.glob("tiles/*/points.npy"))
    assert len({file.stat().st_ino for file in points}) == len(points)


def test_a_new_measurement_takes_the_place_of_the_old_one_and_leaves_the_others(tmp_path: Path) -> None:
    file = tmp_path / "results" / "scale.json"
    keep(file, "map", [{"kilometres": 1.0, "ms": 1.23456}])
    keep(file, "pnp", [{"matches": 100, "ms": None}])
    keep(file, "map", [{"kilometres": 10.0, "ms": 2.34567}])
    results = json.loads(file.read_text())
    assert results["map"]["rows"] == [{"kilometres": 10.0, "ms": 2.346}]
    assert results["pnp"]["rows"] == [{"matches": 100, "ms": None}]
    assert {"cpu", "cores", "memory_gb", "python", "torch", "numpy", "commit", "date"} <= results["map"][
        "machine"
    ].keys()


def test_a_growth_shows_what_is_known(tmp_path: Path) -> None:
    growth = Growth("It", {"n": "n", "ms": Curve("ours"), "other_ms": Curve("theirs"), "s": "once, s"})
    rows = [{"n": 1000, "ms": 0.5, "s": None}, {"n": 1_000_000, "ms": 512.25, "s": 3.0}]
    grid = growth.grid(rows)
    assert grid.header == ["n", "ours, ms", "once, s"]  # nobody knows theirs
    assert grid.rows == [["1,000", "0.5", "-"], ["1,000,000", "512", "3"]]
    growth.draw(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
