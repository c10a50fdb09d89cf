"""A single scan as a map, in memory: for registering an image to the scan that was taken with it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ep2ploc_core.landmarks.landmark_view import LandmarkView
from ep2ploc_core.map.build import accumulate
from ep2ploc_core.map.encode import encode_points
from ep2ploc_core.map.point_map import MapPoints
from ep2ploc_core.map.posed_scan import PosedScan
from ep2ploc_core.map.unit import UNIT_VOXEL
from ep2ploc_core.model.ep2ploc import EP2PLoc


@dataclass
class ScanMap:
    """What `MapSource` promises, of points in memory. Where the sensor was is not in it."""

    points: MapPoints
    checkpoint: str
    voxel_size: float = UNIT_VOXEL
    origin: np.ndarray = field(default_factory=lambda: np.zeros(3))

    def query(self, centre: np.ndarray, radius: float) -> MapPoints:
        """The points within `radius` metres (horizontally) of `centre` `(3,)`."""
        offset = self.points.xyz[:, :2] - np.asarray(centre)[:2]
        return self.points.select(np.einsum("ij,ij->i", offset, offset) < radius * radius)

    def landmarks(self, _centre: np.ndarray, _radius: float) -> list[LandmarkView]:
        """None: a scan brings no images."""
        return []


def encode_scan(scan: PosedScan, network: EP2PLoc) -> ScanMap:
    """The map of one scan where its pose puts it, z up, with voxels of 0.2 m. Raises MapError when it has no points."""
    points = accumulate([scan], UNIT_VOXEL)
    return ScanMap(replace(points, descriptors=encode_points(points, network)), network.fingerprint)
