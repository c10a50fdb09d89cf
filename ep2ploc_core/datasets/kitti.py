"""KITTI raw drives: calibration, frames, images, scans, poses; single frames of the object layout."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np

from ep2ploc_core.camera import Camera
from ep2ploc_core.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass
class Frame:
    """One moment of a drive. `stamp` in seconds; what the drive lacks at this moment is None."""

    index: int
    stamp: float
    image_path: Path | None
    scan_path: Path | None
    map_from_lidar: np.ndarray | None


class KittiDrive:
    """A drive in KITTI raw layout (`*_drive_*_sync`), with the left colour camera `image_02`.

    The calibration is looked for in the drive's directory and in the one above. Poses are rows of 12 numbers
    (map_from_lidar, row k = frame k), by default from `poses_lidar.txt` in the drive. Missing frames are borne.
    """

    def __init__(self, path: Path | str, poses: Path | None = None) -> None:
        self.path = Path(path)
        images = _numbered(self.path / "image_02" / "data", IMAGE_SUFFIXES)
        scans = _numbered(self.path / "velodyne_points" / "data", (".bin",))
        if not images and not scans:
            raise InputError(
                f"{self.path} is not a KITTI raw drive: it has neither image_02/data nor velodyne_points/data; "
                "give the directory that ends in _sync."
            )
        self.camera, self.camera_from_lidar = _read_raw_calibration(self._calibration_directory())
        pose_file = poses or self.path / "poses_lidar.txt"
        trajectory = read_kitti_poses(pose_file) if poses or pose_file.exists() else []
        count = max([*images, *scans]) + 1
        stamps = _read_stamps(self.path, count)
        self.frames = [
            Frame(
                index,
                stamps[index],
                images.get(index),
                scans.get(index),
                trajectory[index] if index < len(trajectory) else None,
            )
            for index in range(count)
            if index in images or index in scans
        ]
        self._by_index = {frame.index: frame for frame in self.frames}

    def frame(self, index: int) -> Frame:
        """The frame of this number; raises InputError when the drive has none."""
        if index not in self._by_index:
            raise InputError(f"The drive {self.path} has no frame {index}.")
        return self._by_index[index]

    def read_image(self, frame: Frame) -> np.ndarray:
        """The left colour image `(H, W, 3)` uint8 RGB."""
        if frame.image_path is None:
            raise InputError(f"Frame {frame.index} of {self.path} has no image.")
        return read_image(frame.image_path)

    def read_scan(self, frame: Frame) -> np.ndarray:
        """The LiDAR scan `(N, 4)` float32: x, y, z in metres in the LiDAR frame, reflectance 0..1."""
        if frame.scan_path is None:
            raise InputError(f"Frame {frame.index} of {self.path} has no LiDAR scan.")
        return read_scan(frame.scan_path)

    def map_from_camera(self, frame: Frame) -> np.ndarray:
        """Pose `(4, 4)` of the camera's optical frame in the map."""
        if frame.map_from_lidar is None:
            raise InputError(f"Frame {frame.index} of {self.path} has no pose; give one row for each with --poses.")
        return frame.map_from_lidar @ np.linalg.inv(self.camera_from_lidar)

    def _calibration_directory(self) -> Path:
        for directory in (self.path, self.path.resolve().parent):
            if (directory / "calib_cam_to_cam.txt").exists():
                return directory
        raise InputError(f"No calib_cam_to_cam.txt in {self.path} or above it; put the drive's calibration there.")


def read_image(path: Path | str) -> np.ndarray:
    """An image file as `(H, W, 3)` uint8 RGB; raises InputError when it is missing or no image."""
    if not Path(path).is_file():
        raise InputError(f"The image {path} does not exist.")
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"The image {path} cannot be decoded; is it a whole PNG or JPEG file?")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_scan(path: Path) -> np.ndarray:
    """A KITTI `.bin` scan as `(N, 4)` float32: x, y, z in metres, reflectance; points that are not finite dropped."""
    if not path.is_file():
        raise InputError(f"The scan {path} does not exist.")
    size = path.stat().st_size
    if size == 0 or size % 16:
        raise InputError(f"The scan {path} is truncated: {size} bytes are no whole number of points; copy it again.")
    scan = np.fromfile(path, np.float32).reshape(-1, 4)
    return scan[np.isfinite(scan).all(1)]


def read_kitti_poses(path: Path) -> list[np.ndarray]:
    """Poses `(4, 4)` of a file with rows of 12 numbers (the upper 3x4 part by row)."""
    try:
        rows = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise InputError(f"The poses {path} cannot be read ({error}); give rows of 12 numbers.") from error
    if rows.shape[1] != 12 or not np.isfinite(rows).all():
        raise InputError(
            f"The poses {path} have {rows.shape[1]} columns or values that are no numbers; give rows of 12 numbers."
        )
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3] = rows.reshape(-1, 3, 4)
    return list(poses)


def read_calibration(path: Path) -> dict[str, np.ndarray]:
    """All `name: numbers` rows of a KITTI calibration file."""
    rows = {}
    try:
        for line in Path(path).read_text().splitlines():
            name, _, values = line.partition(":")
            try:
                rows[name.strip()] = np.array(values.split(), dtype=np.float64)
            except ValueError:
                continue  # calib_time holds a date
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The calibration {path} cannot be read: {type(error).__name__}.") from error
    return rows


def camera_from_projection(projection: np.ndarray, width: int, height: int) -> tuple[Camera, np.ndarray]:
    """The pinhole and `camera_from_rectified` `(4, 4)` of a KITTI 3x4 projection matrix.

    Its fourth column is K times the camera's offset from the rectified reference camera: it belongs in the extrinsic.
    """
    projection = projection.reshape(3, 4)
    camera_from_rectified = np.eye(4)
    camera_from_rectified[:3, 3] = np.linalg.solve(projection[:, :3], projection[:, 3])
    return Camera.from_matrix(width, height, projection[:, :3]), camera_from_rectified


def read_object_calibration(path: Path, width: int, height: int) -> tuple[Camera, np.ndarray]:
    """Camera 2 and `camera_from_lidar` `(4, 4)` of a KITTI object `calib/N.txt` for an image of this size."""
    rows = read_calibration(path)
    try:
        camera, camera_from_rectified = camera_from_projection(rows["P2"], width, height)
        rectification, lidar = np.eye(4), np.eye(4)
        rectification[:3, :3] = rows["R0_rect"].reshape(3, 3)
        lidar[:3] = rows["Tr_velo_to_cam"].reshape(3, 4)
    except (KeyError, ValueError) as error:
        raise InputError(f"The calibration {path} lacks a whole P2, R0_rect or Tr_velo_to_cam.") from error
    return camera, camera_from_rectified @ rectification @ lidar


def read_raw_camera(path: Path) -> tuple[Camera, np.ndarray]:
    """Camera 2 and `camera_from_reference` `(4, 4)` of a KITTI raw `calib_cam_to_cam.txt`, rectified."""
    rows = read_calibration(path)
    try:
        width, height = rows["S_rect_02"].astype(int)
        camera, camera_from_rectified = camera_from_projection(rows["P_rect_02"], width, height)
        rectification = np.eye(4)
        rectification[:3, :3] = rows["R_rect_00"].reshape(3, 3)
    except (KeyError, ValueError, np.linalg.LinAlgError) as error:
        raise InputError(f"The calibration {path} lacks a whole S_rect_02, P_rect_02 or R_rect_00.") from error
    return camera, camera_from_rectified @ rectification


def read_camera_file(path: Path, width: int, height: int) -> Camera:
    """The camera of a `--camera` file for images of this size: YAML, KITTI raw, or KITTI object calibration."""
    if not Path(path).is_file():
        raise InputError(f"The camera file {path} does not exist.")
    if Path(path).suffix in (".yaml", ".yml"):
        return Camera.from_yaml(path)
    if "P_rect_02" in read_calibration(path):
        return read_raw_camera(path)[0]
    return read_object_calibration(path, width, height)[0]


def _read_raw_calibration(directory: Path) -> tuple[Camera, np.ndarray]:
    camera, camera_from_reference = read_raw_camera(directory / "calib_cam_to_cam.txt")
    rows = read_calibration(directory / "calib_velo_to_cam.txt")
    try:
        reference_from_lidar = np.eye(4)
        reference_from_lidar[:3, :3] = rows["R"].reshape(3, 3)
        reference_from_lidar[:3, 3] = rows["T"]
    except (KeyError, ValueError) as error:
        raise InputError(f"{directory / 'calib_velo_to_cam.txt'} lacks a whole R or T.") from error
    return camera, camera_from_reference @ reference_from_lidar


def _numbered(directory: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    if not directory.is_dir():
        return {}
    return {int(file.stem): file for file in directory.iterdir() if file.suffix in suffixes and file.stem.isdigit()}


def _read_stamps(drive: Path, count: int) -> list[float]:
    """Seconds since 1970 for each frame number: the camera's clock, else the LiDAR's, else 10 Hz from zero."""
    for sensor in ("image_02", "velodyne_points"):
        file = drive / sensor / "timestamps.txt"
        if file.exists():
            lines = file.read_text().split("\n")
            if len([line for line in lines if line.strip()]) >= count:
                return [_parse_stamp(line, file) for line in lines[:count]]
    return [index / 10 for index in range(count)]


def _parse_stamp(line: str, file: Path) -> float:
    try:
        moment = datetime.strptime(line.strip()[:26], "%Y-%m-%d %H:%M:%S.%f")
    except ValueError as error:
        raise InputError(
            f"The time '{line.strip()}' in {file} is not of the form 2011-09-26 13:02:25.964389445."
        ) from error
    return moment.replace(tzinfo=timezone.utc).timestamp()
