"""From scans and poses to a voxel map: one point per occupied voxel, with normal, planarity and height above ground."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import open3d as o3d

from ep2ploc_core.errors import MapError
from ep2ploc_core.map.point_map import MapPoints
from ep2ploc_core.map.posed_scan import PosedScan

_AXIS_BITS = 21  # of a voxel index packed in 63 bits: +-1,000,000 voxels along each axis


class VoxelAccumulator:
    """Averages all points that fall into one voxel; memory grows with the map, not with the number of scans."""

    def __init__(self, voxel_size: float) -> None:
        self.voxel_size = voxel_size
        self._keys = np.zeros(0, np.int64)
        self._sums = np.zeros((0, 8))  # count, x, y, z, intensity, viewpoint x, y, z
        self._seen = np.zeros((0, 2), np.uint16)

    def add(self, scan: PosedScan) -> None:
        """Adds one scan."""
        rotation, origin = scan.map_from_lidar[:3, :3], scan.map_from_lidar[:3, 3]
        xyz = scan.points[:, :3].astype(np.float64) @ rotation.T + origin
        rows = np.concatenate(
            [np.ones((len(xyz), 1)), xyz, scan.points[:, 3:4], np.broadcast_to(origin, xyz.shape)], axis=1
        )
        seen = np.full((len(xyz), 2), min(scan.frame, np.iinfo(np.uint16).max), np.uint16)
        self._merge(pack_voxels(np.floor(xyz / self.voxel_size).astype(np.int64)), rows, seen)

    def _merge(self, keys: np.ndarray, sums: np.ndarray, seen: np.ndarray) -> None:
        keys = np.concatenate([self._keys, keys])
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, np.int64)
        self._keys = keys[first]
        if len(first):
            self._sums = np.add.reduceat(np.concatenate([self._sums, sums])[order], first)
            seen = np.concatenate([self._seen, seen])[order]
            self._seen = np.stack(
                [np.minimum.reduceat(seen[:, 0], first), np.maximum.reduceat(seen[:, 1], first)], axis=1
            )

    def points(self, origin: np.ndarray) -> MapPoints:
        """The map's points relative to `origin` `(3,)`; raises MapError when there is none."""
        if not len(self._keys):
            raise MapError("The scans hold no points at all, so there is no map to build.")
        count = self._sums[:, :1]
        xyz = self._sums[:, 1:4] / count - origin
        viewpoint = self._sums[:, 5:8] / count - origin
        intensity = self._sums[:, 4:5] / count
        normals, planarity = surface_shape(xyz, viewpoint, radius=3 * self.voxel_size)
        height = height_above_ground(xyz)
        attributes = np.concatenate([intensity, normals, planarity[:, None], height[:, None]], axis=1)
        return MapPoints(xyz.astype(np.float32), attributes.astype(np.float32), self._seen.copy())


def accumulate(scans: Iterable[PosedScan], voxel_size: float, origin: np.ndarray | None = None) -> MapPoints:
    """One point per voxel of `voxel_size` metres out of all scans."""
    accumulator = VoxelAccumulator(voxel_size)
    for scan in scans:
        accumulator.add(scan)
    return accumulator.points(np.zeros(3) if origin is None else origin)


def pack_voxels(voxels: np.ndarray) -> np.ndarray:
    """Voxel indices `(N, 3)` int64 as one int64 each, `(N,)`; sorting them sorts by x, then y, then z."""
    shifted = voxels + (1 << (_AXIS_BITS - 1))
    return (shifted[:, 0] << (2 * _AXIS_BITS)) | (shifted[:, 1] << _AXIS_BITS) | shifted[:, 2]


def surface_shape(xyz: np.ndarray, viewpoint: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals `(N, 3)`, turned towards the viewpoints `(N, 3)`, and planarity `(N,)` (0 line or blob, 1 plane).

    Both from the covariance of up to 20 neighbours within `radius` metres; a lone point gets the direction to its
    viewpoint and planarity 0.
    """
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(xyz))
    cloud.estimate_covariances(o3d.geometry.KDTreeSearchParamHybrid(radius=radius, max_nn=20))
    values, vectors = np.linalg.eigh(np.asarray(cloud.covariances))
    root = np.sqrt(values.clip(0))
    planarity = (root[:, 1] - root[:, 0]) / np.maximum(root[:, 2], 1e-9)
    towards = viewpoint - xyz
    towards /= np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-9)
    lone = (values[:, 2] <= 0) | (np.abs(values[:, 2] - values[:, 0]) < 1e-12)  # open3d gives the identity there
    normals = np.where(lone[:, None], towards, vectors[:, :, 0])
    normals *= np.where((normals * towards).sum(1, keepdims=True) < 0, -1.0, 1.0)
    return normals, np.where(lone, 0.0, planarity.clip(0, 1))


def height_above_ground(xyz: np.ndarray, cell: float = 2.0) -> np.ndarray:
    """Metres `(N,)` above the lowest point within one cell of `cell` metres around, z up."""
    index = np.floor(xyz[:, :2] / cell).astype(np.int64)
    index -= index.min(0)
    lowest = np.full(index.max(0) + 3, np.inf)
    np.minimum.at(lowest, tuple((index + 1).T), xyz[:, 2])
    shifts = [(dx, dy) for dx in range(3) for dy in range(3)]
    around = np.min([lowest[tuple((index + shift).T)] for shift in shifts], axis=0)
    return xyz[:, 2] - around
