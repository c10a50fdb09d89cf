"""A point cloud that is a map already, from a `.pcd` or `.ply` file, as posed scans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from ep2ploc_core.datasets.kitti import intensity_range
from ep2ploc_core.datasets.open_space import OpenSpace
from ep2ploc_core.datasets.point_files import open_point_file
from ep2ploc_core.datasets.posed_image import PosedImage
from ep2ploc_core.datasets.trajectory import FARTHEST_PLACE, read_trajectory
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.posed_scan import PosedScan

CHUNK = 1_000_000  # points
REACH = 50_000.0  # metres
UNKNOWN_INTENSITY = 0.5


@dataclass
class _Survey:
    """What has to be known of the whole cloud before its first point can be handed out. `middle` `(3,)` float64, whole
    metres; `open_space` relative to it."""

    middle: np.ndarray
    full_intensity: float
    open_space: OpenSpace | None


class CloudFileSource:
    """The points of a file, a million at a time, in the order of the file; frames are the numbers of these chunks.

    The file's frame is the map's frame, z up, in metres. Coordinates of any size keep their precision (in the file:
    float32 is too coarse for UTM). Intensities up to 1, 255 or 65535 are scaled by the range that the largest one lies
    in; without any, they are 0.5. Points that are not finite, or more than 50 km from the middle, are dropped.

    Normals are turned towards where a point was seen from: the nearest place of the trajectory `poses` (rows of 12 or
    TUM; only the places count), else the VIEWPOINT of a PCD file of one chunk, else a guess by the open ground around.
    The file is read twice: first for the ranges and the ground.
    """

    has_poses = True
    images: tuple[PosedImage, ...] = ()

    def __init__(self, path: Path | str, poses: Path | str | None = None) -> None:
        self.path = Path(path)
        self.poses = None if poses is None else Path(poses)
        self.file = open_point_file(self.path)
        self._trajectory = None if poses is None else read_trajectory(poses).poses[:, :3, 3]
        self._surveyed: _Survey | None = None

    def __len__(self) -> int:
        return -(-self.file.count // CHUNK)

    def scans(self, first: int = 0) -> Iterator[PosedScan]:
        """The chunks from number `first` on."""
        survey = self._surveyed = self._surveyed or self._survey()
        for frame, chunk in enumerate(self.file.chunks(CHUNK, first), first):
            kept = chunk[_within_reach(chunk, survey.middle)]
            # float32 relative to the chunk's own middle, so that it is fine to millimetres for 10 km around.
            origin = np.round(np.median(kept[:, :3], axis=0)) if len(kept) else survey.middle
            points = np.empty((len(kept), 4), np.float32)
            points[:, :3] = kept[:, :3] - origin
            points[:, 3] = (kept[:, 3] / survey.full_intensity).clip(0, 1)
            if not self.file.has_intensity:
                points[:, 3] = UNKNOWN_INTENSITY
            map_from_lidar = np.eye(4)
            map_from_lidar[:3, 3] = origin
            viewpoints = self._viewpoints(kept[:, :3], survey) - origin
            yield PosedScan(frame, points, map_from_lidar, viewpoints=viewpoints.astype(np.float32))

    def describe(self) -> dict[str, Any]:
        """What the map remembers of its source, enough to open it again."""
        return {
            "kind": "cloud_file",
            "path": str(self.path.resolve()),
            "poses": None if self.poses is None else str(self.poses.resolve()),
        }

    def _survey(self) -> _Survey:
        survey = None
        for chunk in self.file.chunks(CHUNK):
            finite = chunk[np.isfinite(chunk).all(1) & (np.abs(chunk[:, :3]) < FARTHEST_PLACE).all(1)]
            if survey is None:
                if not len(finite):
                    continue
                guess = self._trajectory is None and self._one_viewpoint() is None
                middle = np.round(np.median(finite[:, :3], axis=0))
                survey = _Survey(middle, 0.0, OpenSpace() if guess else None)
            kept = finite[_within_reach(finite, survey.middle)]
            survey.full_intensity = max(survey.full_intensity, float(kept[:, 3].max(initial=0)))
            if survey.open_space is not None:
                survey.open_space.add(kept[:, :3] - survey.middle)
        if survey is None:
            raise InputError(f"{self.path} holds no point whose coordinates and intensity are finite numbers.")
        survey.full_intensity = intensity_range(survey.full_intensity)
        return survey

    def _viewpoints(self, xyz: np.ndarray, survey: _Survey) -> np.ndarray:
        """Where the points `(n, 3)` were seen from, `(n, 3)`, both in the map's frame."""
        if self._trajectory is not None:
            return self._trajectory[cKDTree(self._trajectory).query(xyz)[1]]
        if survey.open_space is not None:
            return survey.open_space.viewpoints(xyz - survey.middle) + survey.middle
        return np.broadcast_to(np.asarray(self._one_viewpoint()), xyz.shape)

    def _one_viewpoint(self) -> np.ndarray | None:
        return self.file.viewpoint if len(self) == 1 else None


def _within_reach(chunk: np.ndarray, middle: np.ndarray) -> np.ndarray:
    return np.isfinite(chunk[:, 3]) & (np.abs(chunk[:, :3] - middle) < REACH).all(1)
