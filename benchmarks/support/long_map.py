"""A map as long as wanted: a block of a synthetic street again and again, in a row.

Each copy of the block has its own points, at its own coordinates. Its descriptors do not depend on where it is, so they
are hard links to those of the first: what is large on the disk is there once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ep2ploc_core.datasets.kitti import KittiDrive
from ep2ploc_core.datasets.queries import write_queries
from ep2ploc_core.datasets.synthetic import write_synthetic_drive
from ep2ploc_core.map.array_file import load_array, save_array
from ep2ploc_core.map.build import build_map
from ep2ploc_core.map.encode import encode_map
from ep2ploc_core.map.place_index import encode_places
from ep2ploc_core.map.point_map import PATH_FILE, PointMap, write_info, write_map
from ep2ploc_core.map.sources import KittiSource
from ep2ploc_core.model.ep2ploc import EP2PLoc

LENGTH = 100.0  # metres of street in a block: so many whole tiles
FRAMES = 60
QUERIES = range(20, 36, 3)  # frames that see 60 m ahead, within the block
SEED = 0


@dataclass(frozen=True)
class Block:
    """A map of LENGTH metres, with places, and queries in it whose scans it does not hold."""

    map_path: Path
    queries_path: Path


def make_block(folder: Path, network: EP2PLoc) -> Block:
    """Drives along a street, maps it, and cuts a block out of it."""
    drive = write_synthetic_drive(folder / "drive", FRAMES, SEED)
    write_queries(KittiDrive(drive), list(QUERIES), folder / "queries")
    street = build_map(KittiSource(drive, hold_out=list(QUERIES)), folder / "street")
    points, path = street.all_points(), street.sensor_path()
    block = write_map(folder / "block", points.select(_in_block(points.xyz)), street.info)
    save_array(block.path / PATH_FILE, path[_in_block(path[:, :3, 3])])
    encode_map(block, network)
    encode_places(block, network)
    return Block(block.path, folder / "queries")


def _in_block(xyz: np.ndarray) -> np.ndarray:
    """Which of the places `(N, 3)` lie in it, `(N,)` bool."""
    inside: np.ndarray = (xyz[:, 0] >= 0) & (xyz[:, 0] < LENGTH)
    return inside


def lay_out(block: PointMap, copies: int, path: Path) -> PointMap:
    """The map of a block and of its copies, each LENGTH metres further along x than the one before."""
    further = round(LENGTH / block.info.tile_size)
    names = []
    for name in block.info.tiles:
        column, row = (int(part) for part in name.split("_"))
        files = [file for file in (block.path / "tiles" / name).iterdir() if file.name != "points.npy"]
        points = np.array(load_array(block.path / "tiles" / name / "points.npy"))
        along = points["xyz"][:, 0].copy()
        for copy in range(copies):
            points["xyz"][:, 0] = along + LENGTH * copy
            names.append(f"{column + further * copy}_{row}")
            tile = path / "tiles" / names[-1]
            tile.mkdir(parents=True)
            save_array(tile / "points.npy", points)
            for file in files:
                os.link(file, tile / file.name)
    save_array(path / PATH_FILE, _moved_along(block.sensor_path(), copies))
    (places,) = block.path.glob("places.*.npy")
    views = load_array(places)
    everywhere = np.tile(views, copies)
    everywhere["map_from_camera"] = _moved_along(views["map_from_camera"], copies)
    save_array(path / places.name, everywhere)
    write_info(path, replace(block.info, tiles=names, num_points=len(block) * copies))
    return PointMap.open(path)


def _moved_along(poses: np.ndarray, copies: int) -> np.ndarray:
    """Poses `(N, 4, 4)` of a block as `(copies * N, 4, 4)` of all."""
    moved = np.tile(poses, (copies, 1, 1))
    moved[:, 0, 3] += LENGTH * np.repeat(np.arange(copies), len(poses))
    return moved
