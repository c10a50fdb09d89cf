"""The half-built map on disk, so that a build can be stopped at any moment and go on.

```
OUT.building/build.yaml            what is built from what, and how many scans are in the pieces; stays in the map
OUT.building/pieces/K/X_Y.npy      voxels of tile X, Y out of some scans (VOXEL_TYPE)
OUT.building/pieces/K/looks.npy    what each of these scans saw of its surroundings: its rows in ranges.npy, its pose
OUT.building/pieces/K/path.npy     where the sensor was at each of these scans, in the recording's coordinates
OUT.building/merged/X_Y.npy        all voxels of a tile; the number of ghosts removed is in merged/X_Y.ghosts.npy
OUT.building/tiles/X_Y/points.npy  a finished tile of the map
```
Every file is written aside and renamed, so what is there is whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ep2ploc_core.errors import MapError
from ep2ploc_core.map.array_file import load_array, save_array
from ep2ploc_core.map.ghosts import RangeImage
from ep2ploc_core.map.point_map import PATH_FILE, MapInfo, write_info
from ep2ploc_core.map.voxel_grid import merge_voxels, unpack_voxels

Tile = tuple[int, int]
_LOOK = np.dtype([("start", "<i8"), ("rows", "<i4"), ("first_row", "<i4"), ("lidar_from_map", "<f8", (4, 4))])
_SCRATCH = ("pieces", "merged")
_UNREADABLE = (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError)


class Piece:
    """What some scans brought, put aside."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tiles: set[Tile] = {_tile(file) for file in path.glob("*_*.npy")}
        self.looks = _load(path / "looks.npy")

    def path_poses(self) -> np.ndarray:
        """Where the sensor was `(S, 4, 4)`, in the recording's coordinates; none of scans that do not tell."""
        file = self.path / "path.npy"
        return _load(file) if file.exists() else np.zeros((0, 4, 4))  # a piece made by an earlier version

    @cached_property
    def _ranges(self) -> np.ndarray:
        return _load(self.path / "ranges.npy")

    def places(self) -> np.ndarray:
        """Where the scans were taken `(S, 3)`, relative to the map's origin."""
        pose = np.asarray(self.looks["lidar_from_map"])
        return -np.einsum("nji,nj->ni", pose[:, :3, :3], pose[:, :3, 3])

    def range_image(self, number: int) -> RangeImage:
        """What scan `number` of this piece saw."""
        look = self.looks[number]
        rows = self._ranges[look["start"] : look["start"] + look["rows"]]
        return RangeImage(rows, int(look["first_row"]), look["lidar_from_map"])


class BuildDirectory:
    """Opens `path` when a build of the same `task` (plain YAML types) was begun there, else begins a new one."""

    def __init__(self, path: Path, task: dict[str, Any]) -> None:
        self.path = path
        self.task = task
        self.origin = np.zeros(3)
        self.scans_done = 0
        try:
            if _read_task(path) == _plain(task):
                state = yaml.safe_load((path / "build.yaml").read_text())
                self.origin = np.array(state["origin"], np.float64).reshape(3)
                self.scans_done = int(state["scans_done"])
                return  # to go on from there
        except _UNREADABLE:
            pass  # nothing there, or nothing to go on from
        if path.exists() and not (path / "build.yaml").exists() and any(path.iterdir()):
            raise MapError(f"{path} is in the way of the build, and no half-built map; move it.")
        shutil.rmtree(path, ignore_errors=True)
        for folder in (*_SCRATCH, "tiles"):
            (path / folder).mkdir(parents=True)
        self._write_state()

    def put_aside(
        self,
        voxels: np.ndarray,
        images: list[RangeImage],
        poses: list[np.ndarray],
        scans_done: int,
        voxel_size: float,
        tile_size: float,
    ) -> None:
        """Keeps a piece `(V,)` VOXEL_TYPE with its scans' images and poses, and that `scans_done` scans are read."""
        final = self.path / "pieces" / f"{scans_done:08d}"
        aside = final.with_suffix(".new")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)  # left by a build that was stopped before it wrote its state
        aside.mkdir()
        if len(voxels):
            # By the voxel's middle, so that a voxel is in one tile whatever its points' mean is.
            tile = np.floor((unpack_voxels(voxels["key"])[:, :2] + 0.5) * (voxel_size / tile_size)).astype(np.int64)
            order = np.lexsort((tile[:, 1], tile[:, 0]))
            voxels, tile = voxels[order], tile[order]
            starts = np.flatnonzero(np.r_[True, (tile[1:] != tile[:-1]).any(1)])
            for part, (x, y) in zip(np.split(voxels, starts[1:]), tile[starts], strict=True):
                save_array(aside / f"{x}_{y}.npy", part)
        looks = np.zeros(len(images), _LOOK)
        looks["rows"] = [len(image.ranges) for image in images]
        looks["start"] = np.cumsum(looks["rows"]) - looks["rows"]
        looks["first_row"] = [image.first_row for image in images]
        for look, image in zip(looks, images, strict=True):
            look["lidar_from_map"] = image.lidar_from_map
        ranges = [image.ranges for image in images] or [np.zeros((0, 0), np.uint16)]
        save_array(aside / "ranges.npy", np.concatenate(ranges))
        save_array(aside / "looks.npy", looks)
        save_array(aside / "path.npy", np.array(poses, np.float64).reshape(-1, 4, 4))
        aside.rename(final)
        self.scans_done = scans_done
        self._write_state()

    def pieces(self) -> list[Piece]:
        """All pieces, in the order of their scans."""
        folders = sorted(folder for folder in (self.path / "pieces").iterdir() if folder.name.isdigit())
        return [Piece(folder) for folder in folders if int(folder.name) <= self.scans_done]

    def merge_pieces(self, pieces: list[Piece], tile: Tile) -> np.ndarray:
        """All voxels of a tile, from all pieces."""
        return merge_voxels([_load(piece.path / _file(tile)) for piece in pieces if tile in piece.tiles])

    def has_merged(self, tile: Tile) -> bool:
        """Whether this tile is merged already."""
        return (self.path / "merged" / _file(tile)).exists()

    def keep_merged(self, tile: Tile, voxels: np.ndarray, ghosts: int) -> None:
        """Keeps a tile's voxels, and how many were removed from it."""
        file = self.path / "merged" / _file(tile)
        save_array(file.with_suffix(".ghosts.npy"), np.array([ghosts]))
        save_array(file, voxels)

    def merged_tiles(self) -> dict[Tile, int]:
        """How many voxels each merged tile has, in the order of the tiles."""
        files = (file for file in (self.path / "merged").glob("*.npy") if not file.name.endswith(".ghosts.npy"))
        return {tile: len(self.merged(tile)) for tile in sorted(map(_tile, files))}

    def merged(self, tile: Tile) -> np.ndarray:
        """The merged voxels of a tile."""
        return _load(self.path / "merged" / _file(tile))

    def ghosts_removed(self) -> int:
        """Over all tiles."""
        return sum(int(_load(file)[0]) for file in (self.path / "merged").glob("*.ghosts.npy"))

    def has_tile(self, name: str) -> bool:
        """Whether this tile is finished already."""
        return (self.path / "tiles" / name / "points.npy").exists()

    def write_tile(self, name: str, points: np.ndarray) -> None:
        """Writes a finished tile."""
        folder = self.path / "tiles" / name
        folder.mkdir(exist_ok=True)
        save_array(folder / "points.npy", points)

    def is_whole(self) -> bool:
        """Whether only the last step is missing: putting the map in its place."""
        return (self.path / "map.yaml").exists()

    def complete(self, info: MapInfo) -> None:
        """Turns the directory into a map."""
        save_array(self.path / PATH_FILE, np.concatenate([piece.path_poses() for piece in self.pieces()]))
        write_info(self.path, info)
        for folder in _SCRATCH:
            shutil.rmtree(self.path / folder)

    @staticmethod
    def forget(map_path: Path) -> None:
        """Removes what a build that was stopped at its last step has left in the map; `build.yaml` stays."""
        for folder in _SCRATCH:
            shutil.rmtree(map_path / folder, ignore_errors=True)

    @staticmethod
    def is_built(map_path: Path, task: dict[str, Any]) -> bool:
        """Whether the map at this place came out of the same task."""
        try:
            return _read_task(map_path) == _plain(task)
        except _UNREADABLE:
            return False

    def _write_state(self) -> None:
        state = {"scans_done": self.scans_done, "origin": self.origin.tolist(), "task": self.task}
        aside = self.path / "build.yaml.tmp"
        aside.write_text(yaml.safe_dump(state, sort_keys=False))
        os.replace(aside, self.path / "build.yaml")


def _read_task(path: Path) -> Any:
    return yaml.safe_load((path / "build.yaml").read_text())["task"]


def _plain(task: dict[str, Any]) -> Any:
    """As it comes back from YAML."""
    return yaml.safe_load(yaml.safe_dump(task))


def fingerprint(description: dict[str, Any], out: Path) -> str:
    """Of the files that a source's description names, and of all below them: their names, sizes and times. Another
    fingerprint means that the recording, its poses or its calibration were changed. `out`, the map that is made of it,
    may lie among them."""
    digest = hashlib.sha256()
    made = {out, out.with_name(out.name + ".building"), out.with_name(out.name + ".poses.txt")}
    for key in ("path", "poses", "camera", "colour_camera"):
        named = description.get(key)
        top = Path(named) if named else None
        if top is None:
            continue
        below = (file for file in sorted(top.rglob("*")) if not made & {file, *file.parents})
        for file in below if top.is_dir() else [top]:
            if file.is_file():
                status = file.stat()
                digest.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _file(tile: Tile) -> str:
    return f"{tile[0]}_{tile[1]}.npy"


def _tile(file: Path) -> Tile:
    x, y = file.stem.split("_")
    return int(x), int(y)


def _load(file: Path) -> np.ndarray:
    try:
        return load_array(file)
    except (OSError, ValueError, EOFError) as error:
        raise MapError(
            f"The half-built map is damaged: {file} is missing or cut off; remove the directory and build again."
        ) from error
