"""A directory of query images: `images/` in the order of their names, `camera.yaml` (or a KITTI calibration) and,
for evaluation, `poses.txt` (TUM rows: time x y z qx qy qz qw, map_from_camera); `frames.txt` where they came
from a recording."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ep2ploc_core import se3
from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.kitti import IMAGE_SUFFIXES, KittiDrive, read_camera_file, read_image
from ep2ploc_core.datasets.posed_image import PosedImage
from ep2ploc_core.errors import InputError
from ep2ploc_core.written_file import written_directory


class Queries:
    """Query images of one camera. `map_from_camera` `(N, 4, 4)` or None; `frames` `(N,)`: frame numbers in their
    recording, by which the map can leave them out, or None."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        folder = self.path / "images"
        if not folder.is_dir():
            raise InputError(f"{path} is no directory of queries: it has no images/ in it.")
        self.image_paths = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not self.image_paths:
            raise InputError(f"There are no PNG or JPEG images in {folder}.")
        height, width = read_image(self.image_paths[0]).shape[:2]
        self.camera: Camera = read_camera_file(self._camera_file(), width, height)
        self.stamps, self.map_from_camera = self._read_poses()
        self.frames = self._read_frames()

    def __len__(self) -> int:
        return len(self.image_paths)

    def image(self, index: int) -> np.ndarray:
        """Query image number `index`, `(H, W, 3)` uint8 RGB."""
        return read_image(self.image_paths[index])

    def _camera_file(self) -> Path:
        for name in ("camera.yaml", "calib_cam_to_cam.txt", "calib.txt"):
            if (self.path / name).is_file():
                return self.path / name
        raise InputError(f"{self.path} has no camera.yaml; put the one that camera_calibration wrote there.")

    def _read_poses(self) -> tuple[np.ndarray, np.ndarray | None]:
        file = self.path / "poses.txt"
        if not file.exists():
            return np.arange(len(self.image_paths), dtype=np.float64), None
        try:
            rows = np.loadtxt(file, ndmin=2)
        except ValueError as error:
            raise InputError(
                f"The poses {file} cannot be read ({error}); give rows of time x y z qx qy qz qw."
            ) from error
        if rows.shape != (len(self.image_paths), 8) or not np.isfinite(rows).all():
            raise InputError(
                f"The poses {file} hold {rows.shape[0]} rows of {rows.shape[1]} numbers; give one row of 8 (time x y z "
                f"qx qy qz qw) for each of the {len(self.image_paths)} images."
            )
        if (np.linalg.norm(rows[:, 4:], axis=1) < 1e-6).any():
            raise InputError(f"The poses {file} hold a quaternion of zeros; give rows of time x y z qx qy qz qw.")
        return rows[:, 0], np.stack([se3.from_quaternion(row[1:4], row[4:8]) for row in rows])

    def _read_frames(self) -> np.ndarray | None:
        file = self.path / "frames.txt"
        if not file.exists():
            return None
        try:
            frames = np.loadtxt(file, dtype=np.int64, ndmin=1)
        except ValueError as error:
            raise InputError(f"{file} cannot be read ({error}); give one frame number in each row.") from error
        if len(frames) != len(self.image_paths):
            raise InputError(f"{file} holds {len(frames)} frame numbers for {len(self.image_paths)} images.")
        return frames


def write_queries(drive: KittiDrive, frames: list[int], out: Path) -> Queries:
    """Makes a directory of queries from frames of a drive; see `write_image_queries`."""
    images = []
    for index in frames:
        frame = drive.frame(index)
        if frame.image_path is None:
            raise InputError(f"Frame {index} of {drive.path} has no image, so it can be no query.")
        pose = drive.map_from_camera(frame)
        images.append(PosedImage(index, frame.stamp, frame.image_path, drive.camera, pose))
    return write_image_queries(images, out)


def write_image_queries(images: Sequence[PosedImage], out: Path) -> Queries:
    """Makes a directory of queries from images of one camera: images copied, camera, poses, frame numbers. Raises
    InputError when there is no image."""
    if not images:
        raise InputError(f"There are no images to make the queries {out} of; name frames that have one.")
    if any(out.resolve() in image.path.resolve().parents for image in images):
        raise InputError(f"The queries cannot be made in {out}: their images lie there; give another directory.")
    with written_directory(out, "frames.txt", "directory of queries") as aside:
        (aside / "images").mkdir()
        rows = []
        for image in images:
            image.copy_to(aside / "images")
            rows.append([image.stamp, *image.map_from_camera[:3, 3], *se3.to_quaternion(image.map_from_camera)])
        images[0].camera.to_yaml(aside / "camera.yaml")
        np.savetxt(aside / "poses.txt", rows, fmt="%.9f")
        np.savetxt(aside / "frames.txt", [image.frame for image in images], fmt="%d")
    return Queries(out)


def parse_frames(text: str) -> list[int]:
    """Frame numbers of a text such as `6:108:12,40:70` (first:end:step, end not included; single numbers too)."""
    frames: set[int] = set()
    try:
        for part in text.split(","):
            numbers = [int(number) for number in part.split(":")]
            frames |= {numbers[0]} if len(numbers) == 1 else set(range(*numbers))
    except (ValueError, TypeError) as error:
        raise InputError(f"'{text}' names no frames; write for instance 6:108:12,40:70 (first:end:step).") from error
    return sorted(frames)
