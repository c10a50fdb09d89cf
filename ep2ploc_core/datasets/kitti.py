"""KITTI raw drives: calibration, frames, images, scans, poses; single frames of the object layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.trajectory import Trajectory, is_rotation, read_trajectory
from ep2ploc_core.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
FARTHEST_POINT = 1e4  # metres from the sensor
ROTATION_TOLERANCE = 1e-3  # KITTI writes rotations with seven digits


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

    The calibration is looked for in the drive's directory and in the one above. Poses, map_from_lidar, are rows of 12
    numbers (row k = frame k) or TUM rows (taken at the frames' stamps, interpolated between rows up to 0.25 s apart),
    by default from `poses_lidar.txt` in the drive. Frames that are missing or have no pose are borne.
    """

    def __init__(self, path: Path | str, poses: Path | None = None) -> None:
        self.path = Path(path)
        images = numbered_files(self.path / "image_02" / "data", IMAGE_SUFFIXES)
        scans = numbered_files(self.path / "velodyne_points" / "data", (".bin",))
        if not images and not scans:
            raise InputError(
                f"{self.path} is not a KITTI raw drive: it has neither image_02/data nor velodyne_points/data; "
                "give the directory that ends in _sync."
            )
        self.camera, self.camera_from_lidar = _read_raw_calibration(self._calibration_directory())
        pose_file = poses or self.path / "poses_lidar.txt"
        indices = sorted({*images, *scans})
        stamps = _read_stamps(self.path, indices)
        known = _poses_of(read_trajectory(pose_file), stamps) if poses or pose_file.exists() else {}
        self.frames = [
            Frame(index, stamps[index], images.get(index), scans.get(index), known.get(index)) for index in indices
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
    try:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    except cv2.error:  # a header that tells of more pixels than OpenCV takes
        image = None
    if image is None:
        raise InputError(f"The image {path} cannot be decoded; is it a whole PNG or JPEG file?")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_scan(path: Path) -> np.ndarray:
    """A KITTI `.bin` scan as `(N, 4)` float32: x, y, z in metres, reflectance 0..1.

    Points that are not finite are dropped. A reflectance of 0..255 or 0..65535 is scaled by that range. Raises
    InputError when the file is cut off or holds something else.
    """
    if not path.is_file():
        raise InputError(f"The scan {path} does not exist.")
    size = path.stat().st_size
    if size == 0 or size % 16:
        raise InputError(f"The scan {path} is truncated: {size} bytes are no whole number of points; copy it again.")
    scan = np.fromfile(path, "<f4").reshape(-1, 4)
    scan = scan[np.isfinite(scan).all(1)]
    plausible = (np.abs(scan[:, :3]) < FARTHEST_POINT).all(1) & (scan[:, 3] >= 0)
    if plausible.sum() < 0.5 * len(scan):  # of random bytes 8 % of the rows pass
        raise InputError(f"The scan {path} holds no LiDAR points; give float32 x, y, z, reflectance as KITTI writes.")
    scan = scan[plausible]
    scan[:, 3] = (scan[:, 3] / intensity_range(float(scan[:, 3].max(initial=0)))).clip(0, 1)
    return scan


def intensity_range(largest: float) -> float:
    """By what to divide intensities whose largest value is this, so that they lie in 0..1: 1, 255, 65535 or itself.
    A value up to 1 % over a range, by noise or rounding, still belongs to it."""
    return next((full for full in (1.0, 255.0, 65535.0) if largest <= 1.01 * full), largest)


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
    camera = Camera.from_matrix(width, height, projection[:, :3])
    camera_from_rectified = np.eye(4)
    camera_from_rectified[:3, 3] = np.linalg.solve(projection[:, :3], projection[:, 3])
    return camera, camera_from_rectified


def read_object_calibration(path: Path, width: int, height: int) -> tuple[Camera, np.ndarray]:
    """Camera 2 and `camera_from_lidar` `(4, 4)` of a KITTI object `calib/N.txt` for an image of this size."""
    rows = read_calibration(path)
    camera, camera_from_rectified = _rectified_camera(path, rows, "P2", width, height)
    rectified_from_lidar = rigid_row(path, rows, "R0_rect") @ rigid_row(path, rows, "Tr_velo_to_cam")
    return camera, camera_from_rectified @ rectified_from_lidar


def read_odometry_calibration(path: Path, width: int, height: int) -> tuple[Camera, np.ndarray]:
    """Camera 2 and `camera_from_lidar` `(4, 4)` of a KITTI odometry `calib.txt` for an image of this size."""
    rows = read_calibration(path)
    camera, camera_from_rectified = _rectified_camera(path, rows, "P2", width, height)
    return camera, camera_from_rectified @ rigid_row(path, rows, "Tr")


def read_raw_camera(path: Path) -> tuple[Camera, np.ndarray]:
    """Camera 2 and `camera_from_reference` `(4, 4)` of a KITTI raw `calib_cam_to_cam.txt`, rectified."""
    rows = read_calibration(path)
    width, height = _row(path, rows, "S_rect_02", 2).clip(0, 1e9).astype(int)
    camera, camera_from_rectified = _rectified_camera(path, rows, "P_rect_02", width, height)
    return camera, camera_from_rectified @ rigid_row(path, rows, "R_rect_00")


def read_camera_file(path: Path, width: int, height: int) -> Camera:
    """The camera of a `--camera` file for images of this size.

    The file: YAML of camera_calibration; camera 2 of a KITTI raw `calib_cam_to_cam.txt` or of a KITTI odometry or
    object calibration; or the nine numbers of an intrinsic matrix, as in the 7-Scenes layout.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"The camera file {path} does not exist.")
    if path.suffix in (".yaml", ".yml"):
        return Camera.from_yaml(path)
    rows = read_calibration(path)
    if "P_rect_02" in rows:
        return read_raw_camera(path)[0]
    if "P2" in rows:
        return _rectified_camera(path, rows, "P2", width, height)[0]
    try:
        matrix = np.array(path.read_text().split(), dtype=np.float64).reshape(3, 3)
    except ValueError as error:
        raise InputError(
            f"The camera file {path} is no KITTI calibration with camera 2 (P_rect_02 or P2) and no 3x3 intrinsic "
            "matrix; give one of these, or the .yaml that camera_calibration writes."
        ) from error
    with _named(path):
        return Camera.from_matrix(width, height, matrix)


def _read_raw_calibration(directory: Path) -> tuple[Camera, np.ndarray]:
    camera, camera_from_reference = read_raw_camera(directory / "calib_cam_to_cam.txt")
    path = directory / "calib_velo_to_cam.txt"
    rows = read_calibration(path)
    reference_from_lidar = rigid_row(path, rows, "R")
    reference_from_lidar[:3, 3] = _row(path, rows, "T", 3)
    return camera, camera_from_reference @ reference_from_lidar


def _row(path: Path, rows: dict[str, np.ndarray], name: str, count: int) -> np.ndarray:
    values = rows.get(name)
    if values is None or values.size != count or not np.isfinite(values).all():
        raise InputError(f"The calibration {path} lacks a whole row '{name}' of {count} numbers; copy it again.")
    return values


def _rectified_camera(
    path: Path, rows: dict[str, np.ndarray], name: str, width: int, height: int
) -> tuple[Camera, np.ndarray]:
    projection = _row(path, rows, name, 12)
    with _named(path):
        return camera_from_projection(projection, width, height)


def rigid_row(path: Path, rows: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A transform `(4, 4)` of a row with a 3x3 rotation (its name begins with R) or a 3x4 transform."""
    columns = 3 if name.startswith("R") else 4
    transform = np.eye(4)
    transform[:3, :columns] = _row(path, rows, name, 3 * columns).reshape(3, columns)
    rotation = transform[:3, :3]
    if not is_rotation(rotation[None], ROTATION_TOLERANCE)[0]:
        raise InputError(f"The row '{name}' of the calibration {path} holds no rotation; copy it again.")
    return transform


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts the file's name before what is wrong with its camera."""
    try:
        yield
    except InputError as error:
        raise InputError(f"The camera in {path} cannot be used: {error}") from error


def numbered_files(directory: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    """The files of a directory whose names are a number and one of these suffixes, by that number."""
    if not directory.is_dir():
        return {}
    files = (file for file in directory.iterdir() if file.suffix in suffixes)
    return {int(file.stem): file for file in files if file.stem.isascii() and file.stem.isdecimal()}


def _poses_of(trajectory: Trajectory, stamps: dict[int, float]) -> dict[int, np.ndarray]:
    """The poses that the trajectory knows, by frame number."""
    if trajectory.stamps is None:
        return {index: trajectory.poses[index] for index in stamps if index < len(trajectory)}
    poses = trajectory.at(np.array(list(stamps.values())))
    known = {index: pose for index, pose in zip(stamps, poses, strict=True) if np.isfinite(pose).all()}
    if not known:
        raise InputError(
            f"The poses {trajectory.path} run from {trajectory.stamps[0]:.3f} to {trajectory.stamps[-1]:.3f} s and the "
            f"frames from {min(stamps.values()):.3f} to {max(stamps.values()):.3f} s: none has a pose; give poses by "
            "the same clock."
        )
    return known


def _read_stamps(drive: Path, indices: list[int]) -> dict[int, float]:
    """Seconds since 1970 of each frame number (rising): the camera's clock, else the LiDAR's, else 10 Hz from zero."""
    for sensor in ("image_02", "velodyne_points"):
        file = drive / sensor / "timestamps.txt"
        if file.exists():
            try:
                lines = file.read_text().rstrip().split("\n")
            except (OSError, ValueError) as error:
                raise InputError(f"The times {file} cannot be read ({type(error).__name__}); copy it again.") from error
            if len(lines) > indices[-1]:
                return {index: _parse_stamp(lines[index], file) for index in indices}
    return {index: index / 10 for index in indices}


def _parse_stamp(line: str, file: Path) -> float:
    try:
        moment = datetime.strptime(line.strip()[:26], "%Y-%m-%d %H:%M:%S.%f")
    except ValueError as error:
        raise InputError(
            f"The time '{line.strip()}' in {file} is not of the form 2011-09-26 13:02:25.964389445."
        ) from error
    return moment.replace(tzinfo=timezone.utc).timestamp()
