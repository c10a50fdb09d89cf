"""Sequences of the KITTI odometry benchmark, as posed scans and posed images.

```
sequences/00/velodyne/000000.bin     scans
             image_2/000000.png      left colour images, rectified
             calib.txt               P2, Tr
             times.txt               seconds, row k = frame k
poses/00.txt                         rows of 12 numbers, row k = frame k: map_from_camera0
```
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ep2ploc_core.datasets.hold_out import IMAGE_MARGIN, SCAN_MARGIN, far_from
from ep2ploc_core.datasets.kitti import (
    IMAGE_SUFFIXES,
    Frame,
    numbered_files,
    read_calibration,
    read_image,
    read_odometry_calibration,
    read_scan,
    rigid_row,
)
from ep2ploc_core.datasets.posed_image import PosedImage
from ep2ploc_core.datasets.trajectory import Trajectory, read_trajectory
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.posed_scan import PosedScan

PERIOD = 0.1  # seconds from frame to frame, where no times.txt says


class KittiOdometrySource:
    """The scans and left colour images of a sequence, without those of held-out frames and their neighbours.

    The poses of the benchmark speak of the left grey camera (`camera0`) in its own first frame, y down. The map frame
    here is the LiDAR's in that frame, z up: map_from_lidar = inv(Tr) @ pose @ Tr, Tr being camera0_from_lidar.
    Poses come from `poses` (of camera0: a row for each frame, or TUM rows by the times of times.txt), else from
    `poses.txt` in the sequence, else from `../../poses/NAME.txt`; without any, `has_poses` is False and every
    map_from_lidar the identity. Missing scans and images are borne. `hold_out`: frame numbers.
    """

    def __init__(self, path: Path | str, poses: Path | str | None = None, hold_out: list[int] | None = None) -> None:
        self.path = Path(path)
        self.hold_out = sorted(hold_out or [])
        self.poses = Path(poses) if poses is not None else None
        scans = numbered_files(self.path / "velodyne", (".bin",))
        images = numbered_files(self.path / "image_2", IMAGE_SUFFIXES)
        if not scans:
            raise InputError(f"{path} is no KITTI odometry sequence: it has no scans such as velodyne/000000.bin.")
        calibration = self.path / "calib.txt"
        self._camera0_from_lidar = rigid_row(calibration, read_calibration(calibration), "Tr")
        times = self._read_times()
        count = max([*scans, *images]) + 1
        pose_file = self.poses = self.poses or self._find_poses()
        self.has_poses = pose_file is not None
        known: dict[int, np.ndarray] = {}
        if pose_file is not None:
            known = self._map_from_lidar(read_trajectory(pose_file), times, count)
        self.frames = [
            Frame(
                index,
                float(times[index]) if index < len(times) else index * PERIOD,
                images.get(index),
                scans.get(index),
                known.get(index) if self.has_poses else np.eye(4),
            )
            for index in sorted({*scans, *images})
        ]
        self._scan_frames = [frame for frame in self._posed() if frame.scan_path and self._kept(frame, SCAN_MARGIN)]
        self.images = self._posed_images() if images and self.has_poses else []
        if not self._scan_frames:
            raise InputError(f"{path} has no scan with a pose that is not held out; check --poses, or hold out less.")

    def __len__(self) -> int:
        return len(self._scan_frames)

    def scans(self, first: int = 0) -> Iterator[PosedScan]:
        """The scans from number `first` on."""
        for frame in self._scan_frames[first:]:
            assert frame.scan_path is not None and frame.map_from_lidar is not None
            yield PosedScan(frame.index, read_scan(frame.scan_path), frame.map_from_lidar, frame.stamp)

    def describe(self) -> dict[str, Any]:
        """What the map remembers of its source, enough to open it again."""
        return {
            "kind": "kitti_odometry",
            "path": str(self.path.resolve()),
            "poses": None if self.poses is None else str(self.poses.resolve()),
            "hold_out": self.hold_out,
        }

    def poses_of_camera0(self, map_from_lidar: np.ndarray) -> np.ndarray:
        """Poses `(N, 4, 4)` of the LiDAR in the map as the benchmark gives them: of camera0 in its first frame."""
        moved: np.ndarray = self._camera0_from_lidar @ map_from_lidar @ np.linalg.inv(self._camera0_from_lidar)
        return moved

    def _posed(self) -> Iterator[Frame]:
        return (frame for frame in self.frames if frame.map_from_lidar is not None)

    def _kept(self, frame: Frame, margin: int) -> bool:
        return far_from(self.hold_out, frame.index, margin)

    def _find_poses(self) -> Path | None:
        name = self.path.resolve().name
        beside = self.path.resolve().parent.parent / "poses" / f"{name}.txt"
        return next((file for file in (self.path / "poses.txt", beside) if file.is_file()), None)

    def _read_times(self) -> np.ndarray:
        """Seconds of each frame, `(N,)`; none without times.txt."""
        file = self.path / "times.txt"
        if not file.is_file():
            return np.zeros(0)
        try:
            times = np.array(file.read_text().split(), np.float64)
        except (OSError, ValueError) as error:
            raise InputError(f"The times {file} cannot be read ({error}); give one number a row.") from error
        if not np.isfinite(times).all():
            raise InputError(f"The times {file} hold values that are no numbers; copy it again.")
        return times

    def _map_from_lidar(self, trajectory: Trajectory, times: np.ndarray, count: int) -> dict[int, np.ndarray]:
        """The LiDAR's poses in the map, by frame number."""
        if trajectory.stamps is None:
            # As many rows as scans: those that LiDAR odometry found, where images go on after the last scan.
            if len(trajectory) not in (count, max(count, len(times)), self._leading_scans()):
                raise InputError(
                    f"The poses {trajectory.path} have {len(trajectory)} rows, and {self.path} has {count} frames; "
                    "give a row for each frame."
                )
            poses = trajectory.poses
        else:
            if not len(times):
                times = np.arange(count) * PERIOD
            if len(times) < count:
                raise InputError(
                    f"The poses {trajectory.path} are by time, and {self.path / 'times.txt'} has {len(times)} times "
                    f"for {count} frames; give that file whole, or poses as rows of 12 numbers."
                )
            poses = trajectory.at(times)
        lidar_from_camera0 = np.linalg.inv(self._camera0_from_lidar)
        return {
            index: lidar_from_camera0 @ pose @ self._camera0_from_lidar
            for index, pose in enumerate(poses)
            if np.isfinite(pose).all()
        }

    def _leading_scans(self) -> int:
        """How many scans there are if they are numbered without a gap, else 0."""
        numbers = sorted(numbered_files(self.path / "velodyne", (".bin",)))
        return len(numbers) if numbers == list(range(len(numbers))) else 0

    def _posed_images(self) -> list[PosedImage]:
        with_image = [frame for frame in self._posed() if frame.image_path]
        if not with_image:
            return []
        assert with_image[0].image_path is not None
        height, width = read_image(with_image[0].image_path).shape[:2]
        camera, camera_from_lidar = read_odometry_calibration(self.path / "calib.txt", width, height)
        lidar_from_camera = np.linalg.inv(camera_from_lidar)
        return [
            PosedImage(frame.index, frame.stamp, frame.image_path, camera, frame.map_from_lidar @ lidar_from_camera)
            for frame in with_image
            if frame.image_path and frame.map_from_lidar is not None and self._kept(frame, IMAGE_MARGIN)
        ]
