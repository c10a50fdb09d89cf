"""The map on disk: points in square tiles that are memory-mapped, and what was learned about each point.

```
MAP/map.yaml                        format, voxel size, origin, tiles, where it came from, network it was encoded with
MAP/tiles/X_Y/points.npy            structured array POINT_TYPE, coordinates relative to the origin
MAP/tiles/X_Y/descriptors.ID.npy    int8 (N, D), descriptor * 127, by the network with the fingerprint ID; what images
                                    show of the points (`map/appearance.py`) comes after the descriptor
MAP/path.npy                        float64 (S, 4, 4), where the mapping sensor was, map coordinates, if that is known
MAP/places.ID.npy                   views of the map and their global descriptors, by the network with that fingerprint
MAP/landmarks.npy                   features of the mapping run's images and their places (`landmarks/store.py`), and
MAP/landmark_views.npy              the images that they are of; where the recording has images
MAP/checkpoint.safetensors          the network adapted to this site, if there is one
```
"""

from __future__ import annotations

import os
import re
import shutil
from collections import OrderedDict
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from ep2ploc_core.errors import MapError
from ep2ploc_core.landmarks.landmark_view import LandmarkView
from ep2ploc_core.landmarks.store import LandmarkStore
from ep2ploc_core.map.array_file import load_array, save_array

FORMAT = 2
POINT_TYPE = np.dtype([
    ("xyz", "<f4", 3), ("intensity", "u1"), ("normal", "i1", 3), ("planarity", "u1"), ("height", "<f2"),
    ("first_seen", "<u2"), ("last_seen", "<u2"),
])  # fmt: skip
ATTRIBUTES = ("intensity", "normal_x", "normal_y", "normal_z", "planarity", "height")
SITE_CHECKPOINT = "checkpoint.safetensors"
PATH_FILE = "path.npy"
_TILE_NAME = re.compile(r"-?\d{1,9}_-?\d{1,9}")
_POINTS_IN_MEMORY = 3_000_000  # of tiles asked for last; a point takes 40 bytes and its descriptor


@dataclass
class MapPoints:
    """N points of a map.

    xyz `(N, 3)` float32, metres, map axes, relative to the map's origin. attributes `(N, 6)` float32 in the order of
    ATTRIBUTES: intensity 0..1, unit normal towards where it was seen from, planarity 0..1, height above the ground
    around it in metres. seen `(N, 2)` uint16: first and last frame that saw the point. descriptors `(N, D)` int8 of
    unit vectors times 127, and after them maybe what images show of the points, or None when the map is not encoded.
    """

    xyz: np.ndarray
    attributes: np.ndarray
    seen: np.ndarray
    descriptors: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.xyz)

    def select(self, index: np.ndarray) -> MapPoints:
        """The points of a boolean mask or of indices."""
        rows = np.flatnonzero(index) if index.dtype == bool else index
        # `take` is several times as fast as indexing, and a localizer selects anew for every image.
        return MapPoints(
            np.take(self.xyz, rows, axis=0), np.take(self.attributes, rows, axis=0), np.take(self.seen, rows, axis=0),
            None if self.descriptors is None else np.take(self.descriptors, rows, axis=0),
        )  # fmt: skip

    def to_structured(self) -> np.ndarray:
        """As an array of POINT_TYPE, the form on disk."""
        out = np.zeros(len(self), POINT_TYPE)
        out["xyz"] = self.xyz
        out["intensity"] = np.round(self.attributes[:, 0].clip(0, 1) * 255)
        out["normal"] = np.round(self.attributes[:, 1:4].clip(-1, 1) * 127)
        out["planarity"] = np.round(self.attributes[:, 4].clip(0, 1) * 255)
        out["height"] = self.attributes[:, 5].clip(-1000, 1000)
        out["first_seen"], out["last_seen"] = self.seen.T
        return out

    @classmethod
    def from_structured(cls, array: np.ndarray, descriptors: np.ndarray | None = None) -> MapPoints:
        """From an array of POINT_TYPE."""
        attributes = np.empty((len(array), len(ATTRIBUTES)), np.float32)
        attributes[:, 0] = array["intensity"] / np.float32(255)
        attributes[:, 1:4] = array["normal"] / np.float32(127)
        attributes[:, 4] = array["planarity"] / np.float32(255)
        attributes[:, 5] = array["height"]
        seen = np.stack([array["first_seen"], array["last_seen"]], 1)
        return cls(np.ascontiguousarray(array["xyz"]), attributes, seen, descriptors)

    @classmethod
    def concatenate(cls, parts: list[MapPoints]) -> MapPoints:
        """All points of all parts; descriptors only if every part has them. Where some lack what images show of the
        points, since it was never added or not yet, it is zero, which stands for unknown."""
        if not parts:
            return cls.from_structured(np.zeros(0, POINT_TYPE))
        descriptors = None
        given = [part.descriptors for part in parts if part.descriptors is not None]
        if len(given) == len(parts):
            width = max(each.shape[1] for each in given)
            descriptors = np.concatenate([
                each if each.shape[1] == width else np.pad(each, ((0, 0), (0, width - each.shape[1]))) for each in given
            ])  # fmt: skip
        return cls(
            np.concatenate([part.xyz for part in parts]),
            np.concatenate([part.attributes for part in parts]),
            np.concatenate([part.seen for part in parts]),
            descriptors,
        )


class MapSource(Protocol):
    """What the localizer needs of a map: a directory on disk, or submaps that arrive by message."""

    origin: np.ndarray
    checkpoint: str
    voxel_size: float

    def query(self, centre: np.ndarray, radius: float) -> MapPoints:
        """The points within `radius` metres (horizontally) of `centre` `(3,)`, map coordinates."""

    def landmarks(self, centre: np.ndarray, radius: float) -> list[LandmarkView]:
        """What the mapping images taken within `radius` metres (horizontally) of `centre` `(3,)` contribute to the
        landmarks; none where the map has no landmarks."""


@dataclass
class MapInfo:
    """What `map.yaml` holds. `up`: the unit vector along which heights are measured. `checkpoint`: the fingerprint of
    the network whose descriptors the tiles carry. `ghosts_removed`: points of moving things that were left out."""

    voxel_size: float
    tile_size: float = 20.0
    origin: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    up: list[float] = field(default_factory=lambda: [0.0, 0.0, 1.0])
    num_points: int = 0
    ghosts_removed: int = 0
    tiles: list[str] = field(default_factory=list)
    checkpoint: str = ""
    source: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def check(self) -> None:
        """Raises ValueError or TypeError when a value cannot be."""
        for number in (self.voxel_size, self.tile_size, *self.origin, *self.up):
            if not np.isfinite(number):
                raise ValueError("a number is not finite")
        if min(self.voxel_size, self.tile_size) <= 0 or len(self.origin) != 3 or len(self.up) != 3:
            raise ValueError("a size is not positive, or a vector has not three parts")
        if not isinstance(self.num_points, int) or not isinstance(self.checkpoint, str):
            raise TypeError("num_points or checkpoint is of the wrong type")
        if not isinstance(self.source, dict) or any(not _TILE_NAME.fullmatch(name) for name in self.tiles):
            raise ValueError("source or tiles are of another form")


class PointMap:
    """A map directory, open for reading. Tiles are memory-mapped; those asked for last are kept unpacked."""

    def __init__(self, path: Path, info: MapInfo) -> None:
        self.path = Path(path)
        self.info = info
        self.origin = np.asarray(info.origin, dtype=np.float64)
        self.checkpoint = info.checkpoint
        self.voxel_size = info.voxel_size
        self._corners = np.array([name.split("_") for name in info.tiles], np.float64).reshape(-1, 2) * info.tile_size
        self._unpacked: OrderedDict[str, MapPoints] = OrderedDict()
        self._landmarks: LandmarkStore | None = None
        self._last_query: tuple[tuple[float, ...], MapPoints] | None = None  # a camera asks for the same points often

    @classmethod
    def open(cls, path: Path | str) -> PointMap:
        """Opens a map directory. Raises MapError when it is none, or when a tile of it is missing or cut off."""
        path = Path(path)
        try:
            content = yaml.safe_load((path / "map.yaml").read_text())
            version = content["format"]
            if version != FORMAT:
                raise MapError(f"The map {path} has format {version}, this version reads {FORMAT}; build it again.")
            info = MapInfo(**content)
            info.check()
        except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError, KeyError, AttributeError) as error:
            half = path.absolute().with_name(path.absolute().name + ".building")
            if half.is_dir() and not path.exists():
                raise MapError(
                    f"The map {path} is only half built; give the same `ep2ploc map build` again and it goes on."
                ) from error
            raise MapError(
                f"{path} is not a map directory; make one with `ep2ploc map build SOURCE --out {path}`."
            ) from error
        point_map = cls(path, info)
        counted = sum(len(point_map._points(tile)) for tile in info.tiles)
        if counted != info.num_points:
            raise MapError(f"The map {path} holds {counted} of its {info.num_points} points; build it again.")
        return point_map

    def __len__(self) -> int:
        return self.info.num_points

    def query(self, centre: np.ndarray, radius: float) -> MapPoints:
        """The points within `radius` metres (horizontally) of `centre` `(3,)`, map coordinates."""
        local = np.asarray(centre, dtype=np.float64)[:2] - self.origin[:2]
        asked = (*local, radius)
        if self._last_query is None or self._last_query[0] != asked:
            self._last_query = asked, self._query(local, radius)
        return self._last_query[1]

    def _query(self, local: np.ndarray, radius: float) -> MapPoints:
        # A voxel that lies across a tile's edge has its point on either side.
        low, high = self._corners - self.info.voxel_size, self._corners + self.info.tile_size + self.info.voxel_size
        nearest = np.linalg.norm(local.clip(low, high) - local, axis=1)
        farthest = np.linalg.norm(np.maximum(np.abs(low - local), np.abs(high - local)), axis=1)
        parts = []
        for number in np.flatnonzero(nearest < radius):
            tile = self.tile(self.info.tiles[number])
            if farthest[number] >= radius:
                offset = tile.xyz[:, :2] - local.astype(np.float32)
                tile = tile.select(np.flatnonzero(np.einsum("ij,ij->i", offset, offset) < radius * radius))
            parts.append(tile)
        return MapPoints.concatenate(parts)

    def landmarks(self, centre: np.ndarray, radius: float) -> list[LandmarkView]:
        """What the mapping images taken within `radius` metres (horizontally) of `centre` `(3,)` contribute to the
        landmarks; none where the map has no landmarks. Raises MapError when they are broken."""
        store = self.landmark_store
        return [] if store is None else store.near(centre, radius)

    @property
    def landmark_store(self) -> LandmarkStore | None:
        """The landmarks, None where the map has none. Raises MapError when they are broken."""
        if self._landmarks is None:
            self._landmarks = LandmarkStore.open(self.path)
        return self._landmarks

    def sensor_path(self) -> np.ndarray:
        """Where the mapping sensor was `(S, 4, 4)`, map coordinates, in the order of the scans; S is 0 where nobody
        knows."""
        file = self.path / PATH_FILE
        if not file.exists():
            return np.zeros((0, 4, 4))
        try:
            poses = load_array(file)
        except (OSError, ValueError, EOFError) as error:
            raise MapError(f"The path in {file} is cut off; build the map again.") from error
        if poses.shape[1:] != (4, 4) or not np.isfinite(poses).all():
            raise MapError(f"The path in {file} holds something else than poses; build the map again.")
        return poses

    def tiles_within(self, low: np.ndarray, high: np.ndarray) -> list[str]:
        """The tiles that reach into the box from `low` to `high` `(2,)`, horizontally, relative to the map's origin."""
        reach = self.info.voxel_size
        meets = (self._corners + self.info.tile_size + reach > low) & (self._corners - reach < high)
        return [self.info.tiles[number] for number in np.flatnonzero(meets.all(1))]

    def all_points(self) -> MapPoints:
        """Every point, in the order of the tiles: as large as the map."""
        return MapPoints.concatenate([self.unpack(name) for name in self.info.tiles])

    def thinned(self, most: int) -> MapPoints:
        """At the most `most` points from all over the map, without descriptors."""
        step = max(1, -(-len(self) // max(most, 1)))
        arrays = (self._points(name)[::step] for name in self.info.tiles)
        points = MapPoints.concatenate([MapPoints.from_structured(array) for array in arrays])
        return points.select(np.arange(len(points)) < most)

    def store_tile_descriptors(self, name: str, descriptors: np.ndarray, checkpoint: str) -> None:
        """Keeps descriptors `(N, D)` int8 of a tile's points by the network of this fingerprint; they are in use once
        all tiles have them and `use_descriptors` is called."""
        if len(descriptors) != len(self._points(name)):
            raise MapError(f"{len(descriptors)} descriptors do not fit the tile {name} of the map {self.path}.")
        save_array(self.path / "tiles" / name / f"descriptors.{checkpoint}.npy", descriptors)

    def has_tile_descriptors(self, name: str, checkpoint: str) -> bool:
        """Whether a tile has descriptors by the network of this fingerprint."""
        return (self.path / "tiles" / name / f"descriptors.{checkpoint}.npy").exists()

    def use_descriptors(self, checkpoint: str) -> None:
        """From now on the descriptors by the network of this fingerprint are the map's; others are removed, and the
        places found with others."""
        self.info = replace(self.info, checkpoint=checkpoint)
        write_info(self.path, self.info)
        self.checkpoint = checkpoint
        self._unpacked.clear()
        self._last_query = None
        for file in self.path.glob("tiles/*/descriptors.*"):
            if file.name != f"descriptors.{checkpoint}.npy":
                file.unlink()
        for file in self.path.glob("places.*.npy"):
            if file.name != f"places.{checkpoint}.npy":
                file.unlink()

    def store_descriptors(self, descriptors: np.ndarray, checkpoint: str) -> None:
        """Keeps descriptors `(N, D)` int8 of `all_points()` and the fingerprint of the network they came from."""
        self.lay_by(descriptors, checkpoint)
        self.use_descriptors(checkpoint)

    def lay_by(self, descriptors: np.ndarray, checkpoint: str) -> PointMap:
        """Stores descriptors `(N, D)` int8 of `all_points()` beside the map's own; returns the map as it will be with
        them, once `use_descriptors` is called."""
        if len(descriptors) != len(self):
            raise MapError(f"{len(descriptors)} descriptors do not fit the {len(self)} points of the map {self.path}.")
        start = 0
        for name in self.info.tiles:
            count = len(self._points(name))
            self.store_tile_descriptors(name, descriptors[start : start + count], checkpoint)
            start += count
        return PointMap(self.path, replace(self.info, checkpoint=checkpoint))

    def tile(self, name: str) -> MapPoints:
        """A tile's points, kept in memory for the next time."""
        if name not in self._unpacked:
            self._unpacked[name] = self.unpack(name)
            held = sum(map(len, self._unpacked.values()))
            while held > _POINTS_IN_MEMORY and len(self._unpacked) > 1:
                held -= len(self._unpacked.popitem(last=False)[1])
        self._unpacked.move_to_end(name)
        return self._unpacked[name]

    def unpack(self, name: str) -> MapPoints:
        """A tile's points, from the disk and not kept."""
        points = self._points(name)
        descriptors = None
        if self.checkpoint:
            descriptors = self._array(name, f"descriptors.{self.checkpoint}.npy")
            if descriptors.shape[:1] != points.shape or descriptors.dtype != np.int8 or descriptors.ndim != 2:
                raise MapError(
                    f"The descriptors of the tile {name} of {self.path} do not fit it; encode the map again."
                )
        return MapPoints.from_structured(points, descriptors)

    def _points(self, name: str) -> np.ndarray:
        array = self._array(name, "points.npy")
        if array.dtype != POINT_TYPE or array.ndim != 1:
            raise MapError(f"The tile {name} of {self.path} holds something else than points; build the map again.")
        return array

    def _array(self, name: str, kind: str) -> np.ndarray:
        file = self.path / "tiles" / name / kind
        try:
            return load_array(file)
        except (OSError, ValueError, EOFError) as error:
            raise MapError(f"The tile file {file} is missing or cut off; build the map again.") from error


def write_map(path: Path, points: MapPoints, info: MapInfo) -> PointMap:
    """Writes a whole map directory: made aside, then put in place of an old one in one step."""
    path = Path(path).resolve()
    check_replaceable(path)
    aside = path.with_name(f".{path.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "tiles").mkdir(parents=True)
    keys = np.floor(points.xyz[:, :2] / info.tile_size).astype(np.int64)
    tiles, inverse = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(np.bincount(inverse, minlength=len(tiles)))
    names = []
    for key, indices in zip(tiles, np.split(order, ends[:-1]), strict=True):
        names.append(f"{key[0]}_{key[1]}")
        (aside / "tiles" / names[-1]).mkdir()
        save_array(aside / "tiles" / names[-1] / "points.npy", points.select(indices).to_structured())
    write_info(aside, replace(info, tiles=names, num_points=len(points)))
    put_in_place(aside, path)
    return PointMap.open(path)


def check_replaceable(path: Path) -> None:
    """Raises MapError when `path` holds something that is not a map, which must not be replaced by one."""
    if path.exists() and not _is_a_map(path) and not (path.is_dir() and not any(path.iterdir())):
        raise MapError(f"{path} exists and is not a map, so it is left alone; give another directory.")


def _is_a_map(path: Path) -> bool:
    """Whether a directory is a map of ours, of any version; other programs write a map.yaml too."""
    try:
        content = yaml.safe_load((path / "map.yaml").read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(content, dict) and {"format", "voxel_size", "tiles"} <= content.keys()


def put_in_place(new: Path, path: Path) -> None:
    """Renames the directory `new` to `path`; what was there is removed after."""
    old = path.with_name(f".{path.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def write_info(path: Path, info: MapInfo) -> None:
    """Writes `map.yaml` into a map directory."""
    aside = path / "map.yaml.tmp"
    aside.write_text(yaml.safe_dump(asdict(info), sort_keys=False))
    os.replace(aside, path / "map.yaml")
