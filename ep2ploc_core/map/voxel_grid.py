"""What falls into each voxel, summed up scan by scan: the raw material of a map.

A row of VOXEL_TYPE is one voxel. Rows of the same voxel, from different scans or different parts of a recording, merge
into one, so a recording of any length can be worked off in pieces.
"""

from __future__ import annotations

import numpy as np

from ep2ploc_core.errors import InputError
from ep2ploc_core.map.posed_scan import PosedScan

# key: the voxel's three indices in one number. offset: mean of the points minus the voxel's centre, metres.
# viewpoint: mean place that they were seen from, metres relative to the map's origin.
VOXEL_TYPE = np.dtype([
    ("key", "<i8"), ("count", "<u4"), ("offset", "<f4", 3), ("intensity", "<f4"), ("viewpoint", "<f4", 3),
    ("first_seen", "<u2"), ("last_seen", "<u2"),
])  # fmt: skip
_AXIS_BITS = 21  # +-1,000,000 voxels along each axis
_HALF = 1 << (_AXIS_BITS - 1)
_MASK = (1 << _AXIS_BITS) - 1
_PENDING = 1_000_000  # rows that wait to be merged, at least


class VoxelGrid:
    """Voxels of `voxel_size` metres, positions relative to `origin` `(3,)` float64."""

    def __init__(self, voxel_size: float, origin: np.ndarray) -> None:
        self.voxel_size = voxel_size
        self.origin = np.asarray(origin, np.float64)
        self._merged = np.zeros(0, VOXEL_TYPE)
        self._pending: list[np.ndarray] = []
        self._num_pending = 0

    def __len__(self) -> int:
        """Rows held: at least the number of voxels."""
        return len(self._merged) + self._num_pending

    def add(self, scan: PosedScan) -> None:
        """Adds one scan; raises InputError when it lies out of the grid's reach of a million voxels."""
        rotation = scan.map_from_lidar[:3, :3]
        place = scan.map_from_lidar[:3, 3] - self.origin
        xyz = scan.points[:, :3].astype(np.float64) @ rotation.T + place
        index = np.floor(xyz / self.voxel_size).astype(np.int64)
        if len(index) and np.abs(index).max() >= _HALF:
            raise InputError(
                f"Scan {scan.frame} lies {np.abs(xyz).max() / 1000:.0f} km from where the recording begins; "
                "are its poses right?"
            )
        viewpoint = np.broadcast_to(place, xyz.shape)
        if scan.viewpoints is not None:
            viewpoint = scan.viewpoints.astype(np.float64) @ rotation.T + place
        columns = np.empty((len(xyz), 8))
        columns[:, 0] = 1
        columns[:, 1:4] = xyz - (index + 0.5) * self.voxel_size
        columns[:, 4] = scan.points[:, 3]
        columns[:, 5:8] = viewpoint
        seen = np.full(len(xyz), min(scan.frame, np.iinfo(np.uint16).max), np.uint16)
        self._pending.append(_sum_equal(pack_voxels(index), columns, seen, seen))
        self._num_pending += len(self._pending[-1])
        if self._num_pending > max(_PENDING, len(self._merged) // 2):
            self._merge()

    def voxels(self) -> np.ndarray:
        """All voxels so far `(V,)` VOXEL_TYPE, in the order of their keys."""
        self._merge()
        return self._merged

    def clear(self) -> None:
        """Forgets all voxels."""
        self._merged, self._pending, self._num_pending = np.zeros(0, VOXEL_TYPE), [], 0

    def _merge(self) -> None:
        if self._pending:
            self._merged = merge_voxels([self._merged, *self._pending])
            self._pending, self._num_pending = [], 0


def merge_voxels(parts: list[np.ndarray]) -> np.ndarray:
    """One row per voxel, in the order of the keys, out of rows of VOXEL_TYPE in any order."""
    rows = np.concatenate(parts)
    columns = np.empty((len(rows), 8))
    columns[:, 0] = rows["count"]
    columns[:, 1:4] = rows["offset"]
    columns[:, 4] = rows["intensity"]
    columns[:, 5:8] = rows["viewpoint"]
    columns[:, 1:] *= columns[:, :1]
    return _sum_equal(rows["key"], columns, rows["first_seen"], rows["last_seen"])


def _sum_equal(keys: np.ndarray, columns: np.ndarray, first_seen: np.ndarray, last_seen: np.ndarray) -> np.ndarray:
    """Rows of VOXEL_TYPE from keys `(N,)` and sums `(N, 8)`: count, then offset, intensity, viewpoint times count."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, np.int64)
    out = np.zeros(len(starts), VOXEL_TYPE)
    if len(starts):
        sums = np.add.reduceat(columns[order], starts)
        means = sums[:, 1:] / sums[:, :1]
        out["key"], out["count"] = keys[starts], sums[:, 0]
        out["offset"], out["intensity"], out["viewpoint"] = means[:, :3], means[:, 3], means[:, 4:]
        out["first_seen"] = np.minimum.reduceat(first_seen[order], starts)
        out["last_seen"] = np.maximum.reduceat(last_seen[order], starts)
    return out


def voxel_positions(voxels: np.ndarray, voxel_size: float) -> np.ndarray:
    """Mean positions `(V, 3)` float64 of rows of VOXEL_TYPE, metres relative to the map's origin."""
    return (unpack_voxels(voxels["key"]) + 0.5) * voxel_size + voxels["offset"]


def pack_voxels(index: np.ndarray) -> np.ndarray:
    """Voxel indices `(N, 3)` int64 as one int64 each, `(N,)`; sorting them sorts by x, then y, then z."""
    shifted = index + _HALF
    return (shifted[:, 0] << (2 * _AXIS_BITS)) | (shifted[:, 1] << _AXIS_BITS) | shifted[:, 2]


def unpack_voxels(keys: np.ndarray) -> np.ndarray:
    """The indices `(N, 3)` int64 of `pack_voxels`."""
    return np.stack([keys >> (2 * _AXIS_BITS), keys >> _AXIS_BITS & _MASK, keys & _MASK], 1) - _HALF
