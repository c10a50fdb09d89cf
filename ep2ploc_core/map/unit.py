"""The scale at which the network sees a map: in units of five voxels' edges, and levelled.

The network has learned on streets mapped with voxels of 0.2 m, where a unit is a metre. A room mapped with voxels of
0.05 m looks to it like a street four times as large: its lengths, and with them how wrong a first guess may be, are a
quarter of those of a street. Everything that the network meets is in these units; users' numbers are in metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ep2ploc_core.landmarks.landmark_view import LandmarkView
from ep2ploc_core.map.point_map import MapPoints, MapSource

UNIT_VOXEL = 0.2  # units: the edge of a voxel in any map


def unit_of(voxel_size: float) -> float:
    """Metres per unit in a map with voxels of this edge in metres: 1 for 0.2 m."""
    return voxel_size / UNIT_VOXEL


def points_in_units(points: MapPoints, unit: float) -> MapPoints:
    """The points with places and heights divided by `unit` metres."""
    if unit == 1:
        return points
    attributes = points.attributes.copy()
    attributes[:, 5] /= unit
    return replace(points, xyz=points.xyz / np.float32(unit), attributes=attributes)


def scaled_pose(pose: np.ndarray, factor: float) -> np.ndarray:
    """A pose `(4, 4)` in lengths `factor` times as long: 1 / unit from metres to units, unit for the way back."""
    scaled = np.array(pose, dtype=np.float64)
    scaled[..., :3, 3] *= factor
    return scaled


def scaled_covariance(covariance: np.ndarray, factor: float) -> np.ndarray:
    """A covariance `(6, 6)` of places and turns in lengths `factor` times as long."""
    factors = np.array([factor, factor, factor, 1.0, 1.0, 1.0])
    return covariance * factors[:, None] * factors


@dataclass
class MapInUnits:
    """A map as the network sees it: what `MapSource` promises, in units instead of metres."""

    source: MapSource

    def __post_init__(self) -> None:
        self.unit = unit_of(self.source.voxel_size)
        self.origin = np.asarray(self.source.origin) / self.unit
        self.checkpoint = self.source.checkpoint
        self.voxel_size = UNIT_VOXEL

    def query(self, centre: np.ndarray, radius: float) -> MapPoints:
        """The points within `radius` (horizontally) of `centre` `(3,)`, all in units."""
        return points_in_units(self.source.query(np.asarray(centre) * self.unit, radius * self.unit), self.unit)

    def landmarks(self, centre: np.ndarray, radius: float) -> list[LandmarkView]:
        """What mapping images taken within `radius` (horizontally) of `centre` `(3,)` contribute to the landmarks, all
        in units, places in map coordinates and float64."""
        return [self.view(view) for view in self.source.landmarks(np.asarray(centre) * self.unit, radius * self.unit)]

    def view(self, view: LandmarkView) -> LandmarkView:
        """A mapping image's landmarks in units, places in map coordinates and float64."""
        xyz = view.xyz / self.unit + self.origin
        return LandmarkView(scaled_pose(view.map_from_camera, 1 / self.unit), view.descriptors, xyz)


@dataclass(frozen=True)
class NetworkFrame:
    """Where descriptors are made and learned: units, and axes with z up, for not every map has them (RGB-D recordings
    have those of their first camera). `unit` in metres; `rotation` `(3, 3)` from map axes."""

    unit: float
    rotation: np.ndarray

    @classmethod
    def of_map(cls, voxel_size: float, up: Sequence[float]) -> NetworkFrame:
        """For a map with voxels of this edge, and up `(3,)` in its axes, a unit vector."""
        return cls(unit_of(voxel_size), _rotation_to_z(np.asarray(up, np.float64)))

    def points(self, points: MapPoints) -> MapPoints:
        """Points of the map, given relative to its origin, in this frame."""
        scaled = points_in_units(points, self.unit)
        if self._is_level:
            return scaled
        turn = self.rotation.T.astype(np.float32)
        attributes = scaled.attributes.copy()
        attributes[:, 1:4] = attributes[:, 1:4] @ turn
        return replace(scaled, xyz=scaled.xyz @ turn, attributes=attributes)

    def poses(self, map_from_camera: np.ndarray) -> np.ndarray:
        """Poses `(..., 4, 4)` in this frame, of cameras in the map, relative to its origin."""
        poses = scaled_pose(map_from_camera, 1 / self.unit)
        if not self._is_level:
            poses[..., :3, :] = self.rotation @ poses[..., :3, :]
        return poses

    @property
    def _is_level(self) -> bool:
        return bool((self.rotation == np.eye(3)).all())


def _rotation_to_z(up: np.ndarray) -> np.ndarray:
    """The least rotation `(3, 3)` that takes the unit vector `up` to z; about x where it points straight down."""
    if up[2] <= -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    axis = np.array([up[1], -up[0], 0.0])  # up x z
    hat = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    rotation: np.ndarray = np.eye(3) + hat + hat @ hat / (1 + up[2])
    return rotation
