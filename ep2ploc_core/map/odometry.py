"""Poses for a recording that brings none: LiDAR odometry by KISS-ICP (Vizzo et al., RA-L 2023), each scan checked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from kiss_icp.config import KISSConfig
from kiss_icp.mapping import get_voxel_hash_map
from kiss_icp.preprocess import get_preprocessor
from kiss_icp.registration import get_registration
from kiss_icp.threshold import get_threshold_estimator
from kiss_icp.voxelization import voxel_down_sample
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from ep2ploc_core.errors import InputError
from ep2ploc_core.map.posed_scan import ScanSource

# KISS-ICP's own voxels, 1 m outdoors. Where nine of ten points are nearer than 12 m, in proportion less.
_VOXELS_TO_FAR_POINT = 12.0
_SMALLEST_VOXEL, _LARGEST_VOXEL = 0.1, 1.0
_RANGE_IN_VOXELS = 100.0
_MIN_POINTS = 50  # voxels of a scan
# Share of a scan's points that have a neighbour in the scan before, within half a voxel. On KITTI 0.67 to 0.85 where
# the pose is right (0.54 to 0.75 with a quarter of the beams), 0.56 to 0.67 where ICP slid along a street, 0.22 to 0.31
# between scans of different places.
_USUAL_OVERLAP = 0.75
_DOUBTFUL, _FAILED = 0.85, 0.5  # as a share of the overlap usual in this recording
_OTHER_DISTANCES = (1.5, 3.0, 4.5, 6.0, 8.0, 10.0)  # voxels
_OTHER_DIRECTIONS = 8
_OTHER_TURNS = (-40, -20, 20, 40)  # degrees
_LEVELLING_SCANS = 10
_MAX_TILT = np.deg2rad(30)
_LEAST_GROUND = 0.25  # of the near points; 0.4 to 0.85 on streets and in rooms
_PLANE_POINTS, _PLANE_TRIALS = 4000, 600
_log = logging.getLogger(__name__)


@dataclass
class SensorPath:
    """Of N scans: the numbers of their `frames` `(N,)`, their times `stamps` `(N,)` in seconds, and the sensor's poses
    `map_from_lidar` `(N, 4, 4)`."""

    frames: np.ndarray
    stamps: np.ndarray
    map_from_lidar: np.ndarray


def estimate_path(source: ScanSource, progress: Callable[[int, int], None] | None = None) -> SensorPath:
    """The poses of all scans, by matching each with those before it.

    The map's origin is the sensor at the first scan, x where it looked; z is up where level ground is found around the
    first scans, else as the sensor stood, which is logged. Errors add up along the way: on KITTI 0.04 to 0.08 m in 10 m
    (median) and 0.07 to 0.6 m after 70 to 110 m. Scans are taken as rigid: the motion during one is not undone. It runs
    on one core, so the same scans give the same poses, bit by bit. `progress(done, N)` is called after each.

    Raises InputError, with the scan's number, where a scan does not overlap with the one before or is all but empty.
    """
    odometry: _Odometry | None = None
    ground: np.ndarray | None = None
    frames, stamps, poses = [], [], []
    for scan in source.scans():
        points = scan.points[:, :3].astype(np.float64)
        odometry = odometry or _Odometry(_voxel_size(points))
        poses.append(odometry.register(points, scan.frame))
        frames.append(scan.frame)
        stamps.append(scan.stamp)
        if len(poses) == _LEVELLING_SCANS:
            ground = odometry.map_points()
        if progress is not None:
            progress(len(poses), len(source))
    if odometry is None:
        raise InputError("The recording holds no scan, so there is no path to find.")
    level = level_from_tilted(odometry.map_points() if ground is None else ground)
    return SensorPath(np.array(frames), np.array(stamps), level @ np.array(poses))


@dataclass
class _Match:
    """A pose that ICP found, from where it started, and the overlap with the scan before."""

    start: np.ndarray
    pose: np.ndarray
    overlap: float


class _Odometry:
    """KISS-ICP's pipeline, with a look at each result before it goes into the local map."""

    def __init__(self, voxel_size: float) -> None:
        config = KISSConfig()
        config.data.deskew = False
        config.data.max_range = _RANGE_IN_VOXELS * voxel_size
        config.mapping.voxel_size = voxel_size
        config.adaptive_threshold.initial_threshold = 2 * voxel_size
        config.registration.max_num_threads = 1  # sums in one order
        self._voxel_size = voxel_size
        self._preprocessor = get_preprocessor(config)
        self._registration = get_registration(config)
        self._threshold = get_threshold_estimator(config)
        self._map = get_voxel_hash_map(config)
        self._pose = self._step = np.eye(4)
        self._before: cKDTree | None = None
        self._overlaps = [_USUAL_OVERLAP]

    def register(self, points: np.ndarray, frame: int) -> np.ndarray:
        """The pose `(4, 4)` of the next scan `(N, 3)`, relative to the first; `frame` is for the error alone."""
        points = self._preprocessor.preprocess(points, np.zeros(0), self._step)
        dense = voxel_down_sample(points, 0.5 * self._voxel_size)
        sparse = voxel_down_sample(dense, 1.5 * self._voxel_size)
        if len(sparse) < _MIN_POINTS:
            raise InputError(
                f"Scan {frame} holds only {len(points)} points in {len(sparse)} places, too few to find its pose; give "
                "poses, or leave it out."
            )
        if self._before is not None:
            match = self._match(sparse, frame)
            self._threshold.update_model_deviation(np.linalg.inv(match.start) @ match.pose)
            self._step = np.linalg.inv(self._pose) @ match.pose
            self._pose = match.pose
            self._overlaps.append(match.overlap)
        self._map.update(dense, self._pose)
        self._before = cKDTree(_moved(self._pose, dense))
        return self._pose.copy()

    def map_points(self) -> np.ndarray:
        """Points `(N, 3)` of the last scans, in the frame of the first."""
        return self._map.point_cloud()

    def _match(self, sparse: np.ndarray, frame: int) -> _Match:
        """ICP from constant velocity. Where its result is doubtful (the first step of a car at speed, a sharp turn) it
        starts again from all sides."""
        usual = float(np.median(self._overlaps))
        best = self._align(sparse, self._pose @ self._step)
        if best.overlap < _DOUBTFUL * usual:
            for step in _other_steps(self._voxel_size):
                best = max(best, self._align(sparse, self._pose @ step), key=lambda match: match.overlap)
        if not best.overlap > _FAILED * usual:
            raise InputError(
                f"Scan {frame} does not fit the one before it: {best.overlap:.0%} of its points have a neighbour "
                f"there, {usual:.0%} is usual in this recording; give poses, or the parts apart."
            )
        return best

    def _align(self, sparse: np.ndarray, start: np.ndarray) -> _Match:
        sigma = self._threshold.get_threshold()
        pose = self._registration.align_points_to_map(sparse, self._map, start, 3 * sigma, sigma)
        if not np.isfinite(pose).all():
            return _Match(start, start, 0.0)
        assert self._before is not None
        near = 0.5 * self._voxel_size
        distance, _ = self._before.query(_moved(pose, sparse), distance_upper_bound=near)
        return _Match(start, pose, float(np.mean(distance < near)))


def level_from_tilted(points: np.ndarray) -> np.ndarray:
    """The rotation `(4, 4)` that turns the ground in `(N, 3)`, the points around a sensor, level (its normal to +z).
    The identity, with a warning in the log, where no plane within 30 degrees of level holds a quarter of the near
    points. Ground that slopes is taken for level; on KITTI's streets the result is within 0.4 degrees of the inertial
    sensor."""
    level = np.eye(4)
    distance = np.linalg.norm(points, axis=1)
    near = points[distance <= np.percentile(distance, 30)]  # further off, the ground may rise and fall
    normal = _ground_normal(near, 0.01 * float(np.median(distance)))
    if normal is None:
        _log.warning("No ground found around the first scans: z of the map is that of the sensor, not up.")
        return level
    axis = np.cross(normal, [0, 0, 1])
    level[:3, :3] = Rotation.from_rotvec(axis / max(np.linalg.norm(axis), 1e-12) * np.arccos(normal[2])).as_matrix()
    return level


def _ground_normal(points: np.ndarray, near: float) -> np.ndarray | None:
    """The unit normal `(3,)`, z up, of the plane near level with most of `(N, 3)` within `near` metres of it. RANSAC of
    our own: that of open3d takes no limit on the tilt, and gives another plane at each call, whatever the seed."""
    random = np.random.default_rng(0)
    points = points[random.permutation(len(points))[:_PLANE_POINTS]]
    first, second, third = points[random.integers(0, len(points), (3, _PLANE_TRIALS))]
    normals = np.cross(second - first, third - first)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    upright = np.abs(normals[:, 2]) > np.cos(_MAX_TILT)
    if not upright.any():
        return None
    offsets = (first * normals).sum(1)[upright]
    distances = np.abs(points @ normals[upright].T - offsets)
    inliers = points[distances[:, (distances < near).sum(0).argmax()] < near]
    if len(inliers) < _LEAST_GROUND * len(points):
        return None
    for _ in range(3):
        centre = inliers.mean(0)
        normal = np.linalg.svd(inliers - centre, full_matrices=False)[2][2]
        inliers = points[np.abs((points - centre) @ normal) < near]
    return normal * np.sign(normal[2])


def _voxel_size(points: np.ndarray) -> float:
    if not len(points):
        return _LARGEST_VOXEL
    far = float(np.percentile(np.linalg.norm(points, axis=1), 90))
    return float(np.clip(far / _VOXELS_TO_FAR_POINT, _SMALLEST_VOXEL, _LARGEST_VOXEL))


def _other_steps(voxel_size: float) -> Iterator[np.ndarray]:
    """Movements `(4, 4)` from one scan to the next that constant velocity would not think of."""
    yield np.eye(4)
    for distance in _OTHER_DISTANCES:
        for angle in np.arange(_OTHER_DIRECTIONS) * 2 * np.pi / _OTHER_DIRECTIONS:
            step = np.eye(4)
            step[:2, 3] = distance * voxel_size * np.cos(angle), distance * voxel_size * np.sin(angle)
            yield step
    for turn in _OTHER_TURNS:
        step = np.eye(4)
        step[:3, :3] = Rotation.from_euler("z", turn, degrees=True).as_matrix()
        yield step


def _moved(target_from_source: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ target_from_source[:3, :3].T + target_from_source[:3, 3]
