"""The map on disk: points in square tiles that are memory-mapped, and what was learned about each point.

```
MAP/map.yaml                     format, voxel size, origin, tiles, where it came from, checkpoint it was encoded with
MAP/tiles/X_Y/points.npy         structured array POINT_TYPE, coordinates relative to the origin
MAP/tiles/X_Y/descriptors.npy    int8 (N, D), descriptor * 127; only after encoding
MAP/checkpoint.safetensors       the network adapted to this site, if there is one
```
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from ep2ploc_core.errors import MapError

FORMAT = 1
POINT_TYPE = np.dtype([
    ("xyz", "<f4", 3), ("intensity", "u1"), ("normal", "i1", 3), ("planarity", "u1"), ("height", "<f2"),
    ("first_seen", "<u2"), ("last_seen", "<u2"),
])  # fmt: skip
ATTRIBUTES = ("intensity", "normal_x", "normal_y", "normal_z", "planarity", "height")
SITE_CHECKPOINT = "checkpoint.safetensors"


@dataclass
class MapPoints:
    """N points of a map.

    xyz `(N, 3)` float32, metres, map axes, relative to the map's origin. attributes `(N, 6)` float32 in the order of
    ATTRIBUTES: intensity 0..1, unit normal towards where it was seen from, planarity 0..1, height above the ground
    around it in metres. seen `(N, 2)` uint16: first and last frame that saw the point. descriptors `(N, D)` int8 of
    unit vectors times 127, or None when the map is not encoded.
    """

    xyz: np.ndarray
    attributes: np.ndarray
    seen: np.ndarray
    descriptors: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.xyz)

    def select(self, index: np.ndarray) -> MapPoints:
        """The points of a boolean mask or of indices."""
        descriptors = None if self.descriptors is None else self.descriptors[index]
        return MapPoints(self.xyz[index], self.attributes[index], self.seen[index], descriptors)

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
        """All points of all parts; descriptors only if every part has them."""
        if not parts:
            return cls.from_structured(np.zeros(0, POINT_TYPE))
        descriptors = None
        if all(part.descriptors is not None for part in parts):
            descriptors = np.concatenate([part.descriptors for part in parts if part.descriptors is not None])
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

    def query(self, centre: np.ndarray, radius: float) -> MapPoints:
        """The points within `radius` metres (horizontally) of `centre` `(3,)`, map coordinates."""


@dataclass
class MapInfo:
    """What `map.yaml` holds. `checkpoint` is the fingerprint of the network whose descriptors the tiles carry."""

    voxel_size: float
    tile_size: float = 20.0
    origin: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    num_points: int = 0
    tiles: list[str] = field(default_factory=list)
    checkpoint: str = ""
    source: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


class PointMap:
    """A map directory, open for reading. Tiles are memory-mapped when first asked for."""

    def __init__(self, path: Path, info: MapInfo) -> None:
        self.path = Path(path)
        self.info = info
        self.origin = np.asarray(info.origin, dtype=np.float64)
        self.checkpoint = info.checkpoint
        self._tiles: dict[str, MapPoints] = {}

    @classmethod
    def open(cls, path: Path | str) -> PointMap:
        """Opens a map directory. Raises MapError when it is none, or when a tile of it is missing or cut off."""
        path = Path(path)
        try:
            content = yaml.safe_load((path / "map.yaml").read_text())
            info = MapInfo(**content)
        except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError) as error:
            raise MapError(
                f"{path} is not a map directory; make one with `ep2ploc map build SOURCE --out {path}`."
            ) from error
        if info.format != FORMAT:
            raise MapError(f"The map {path} has format {info.format}, this version reads {FORMAT}; build it again.")
        point_map = cls(path, info)
        counted = sum(len(point_map._array(tile, "points")) for tile in info.tiles)
        if counted != info.num_points:
            raise MapError(f"The map {path} holds {counted} of its {info.num_points} points; build it again.")
        return point_map

    def __len__(self) -> int:
        return self.info.num_points

    def query(self, centre: np.ndarray, radius: float) -> MapPoints:
        """The points within `radius` metres (horizontally) of `centre` `(3,)`, map coordinates."""
        local = np.asarray(centre, dtype=np.float64)[:2] - self.origin[:2]
        size = self.info.tile_size
        parts = []
        for name in self.info.tiles:
            corner = np.array(name.split("_"), dtype=np.float64) * size
            nearest = local.clip(corner, corner + size)
            if np.linalg.norm(nearest - local) < radius:
                tile = self._tile(name)
                offset = tile.xyz[:, :2] - local.astype(np.float32)
                parts.append(tile.select((offset * offset).sum(1) < radius * radius))
        return MapPoints.concatenate(parts)

    def all_points(self) -> MapPoints:
        """Every point, in the order of the tiles."""
        return MapPoints.concatenate([self._tile(name) for name in self.info.tiles])

    def store_descriptors(self, descriptors: np.ndarray, checkpoint: str) -> None:
        """Keeps descriptors `(N, D)` int8 of `all_points()` and the fingerprint of the network they came from."""
        if len(descriptors) != len(self):
            raise MapError(f"{len(descriptors)} descriptors do not fit the {len(self)} points of the map {self.path}.")
        start = 0
        for name in self.info.tiles:
            count = len(self._array(name, "points"))
            _save_array(self.path / "tiles" / name / "descriptors.npy", descriptors[start : start + count])
            start += count
        self.info = replace(self.info, checkpoint=checkpoint)
        self.checkpoint = checkpoint
        self._tiles.clear()
        _write_info(self.path, self.info)

    def _tile(self, name: str) -> MapPoints:
        if name not in self._tiles:
            descriptors = self._array(name, "descriptors") if self.checkpoint else None
            self._tiles[name] = MapPoints.from_structured(self._array(name, "points"), descriptors)
        return self._tiles[name]

    def _array(self, name: str, kind: str) -> np.ndarray:
        file = self.path / "tiles" / name / f"{kind}.npy"
        try:
            return np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise MapError(f"The tile file {file} is missing or cut off; build the map again.") from error


def write_map(path: Path, points: MapPoints, info: MapInfo) -> PointMap:
    """Writes a whole map directory: made aside, then put in place of an old one in one step."""
    path = Path(path)
    aside = path.with_name(path.name + ".new")
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
        _save_array(aside / "tiles" / names[-1] / "points.npy", points.select(indices).to_structured())
    _write_info(aside, replace(info, tiles=names, num_points=len(points)))
    if path.exists():
        old = path.with_name(path.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        aside.rename(path)
        shutil.rmtree(old)
    else:
        aside.rename(path)
    return PointMap.open(path)


def _save_array(file: Path, array: np.ndarray) -> None:
    aside = file.with_suffix(".tmp")
    with aside.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
    os.replace(aside, file)


def _write_info(path: Path, info: MapInfo) -> None:
    aside = path / "map.yaml.tmp"
    aside.write_text(yaml.safe_dump(asdict(info), sort_keys=False))
    os.replace(aside, path / "map.yaml")
