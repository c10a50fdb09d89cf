"""RGB-D recordings in the layout of 7-Scenes, as posed scans and posed images.

```
[seq-01/] frame-000000.color.png (or .jpg)    RGB
          frame-000000.depth.png              uint16 millimetres along the optical axis; 0 and 65535: none
          frame-000000.pose.txt               map_from_camera, 4x4
camera-intrinsics.txt                         3x3; here or in the directory above
```
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.gravity import up_direction
from ep2ploc_core.datasets.hold_out import IMAGE_MARGIN, SCAN_MARGIN, far_from
from ep2ploc_core.datasets.kitti import read_camera_file, read_image
from ep2ploc_core.datasets.posed_image import PosedImage
from ep2ploc_core.datasets.trajectory import FARTHEST_PLACE, is_rotation
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.posed_scan import PosedScan

FRAME_RATE = 30.0  # frames a second; the layout has no times
NO_DEPTH = (0, 65535)
FARTHEST = 5.0  # metres; beyond, the sensor's steps are 7 cm and more
STRIDE = 4  # pixels; 2 cm at 3 m
JUMP = 0.04  # of the depth: where a pixel's neighbours differ by more, it may float between two surfaces
UNKNOWN_INTENSITY = 0.5
SEVEN_SCENES_CAMERA = Camera(640, 480, 585.0, 585.0, 320.0, 240.0)
_LARGEST_SIDE = 16384  # pixels
_MOST_FRAMES = 65_535  # PointMap keeps frame numbers in 16 bits
_UP_FRAMES = 40  # that vote on which way is up


@dataclass(frozen=True)
class RgbdFrame:
    """One moment with a pose, map_from_camera `(4, 4)`; what else it lacks is None. In a recording of several
    sequences, `index` is the sequence's number times a power of ten, 1000 or more, plus the number of the frame."""

    index: int
    colour_path: Path | None
    depth_path: Path | None
    map_from_camera: np.ndarray


class RgbdSource:
    """The back-projected depth images of a recording, in the camera's optical frame, and its colour images.

    The map frame is that of the poses, whichever way up that is: `describe()["up"]` says which, as a unit vector in it.
    The intensity of a point is the grey value where the colour camera sees it. Frames whose pose holds NaN or infinity,
    as the layout marks lost ones, are left out. `camera`: calibration of the depth camera, instead of
    camera-intrinsics.txt; without either, that of 7-Scenes. `colour_camera`: that of the colour camera, which is taken
    to be in the same place; without it, the same calibration. `hold_out`: frame numbers. `sequences`: numbers N of the
    seq-N directories to take, all by default.
    """

    has_poses = True

    def __init__(
        self,
        path: Path | str,
        camera: Path | str | None = None,
        hold_out: list[int] | None = None,
        colour_camera: Path | str | None = None,
        sequences: list[int] | None = None,
    ) -> None:
        self.path = Path(path)
        self.sequences = None if sequences is None else sorted(sequences)
        self.camera_file = None if camera is None else Path(camera)
        self.colour_camera_file = None if colour_camera is None else Path(colour_camera)
        self.hold_out = sorted(hold_out or [])
        self.frames = find_frames(self.path, self.sequences)
        self.camera = self._read_camera()
        self.colour_camera = self._read_colour_camera()
        self._scan_frames = [frame for frame in self.frames if frame.depth_path and self._kept(frame, SCAN_MARGIN)]
        self.images = [
            PosedImage(frame.index, _stamp(frame), frame.colour_path, self.colour_camera, frame.map_from_camera)
            for frame in self.frames
            if frame.colour_path and self._kept(frame, IMAGE_MARGIN)
        ]
        self._up: np.ndarray | None = None
        if not self._scan_frames:
            raise InputError(f"{path} has no depth image with a pose that is not held out; hold out less.")

    def __len__(self) -> int:
        return len(self._scan_frames)

    def scans(self, first: int = 0) -> Iterator[PosedScan]:
        """The scans from number `first` on."""
        for frame in self._scan_frames[first:]:
            yield PosedScan(frame.index, self.read_points(frame), frame.map_from_camera, _stamp(frame))

    def read_points(self, frame: RgbdFrame) -> np.ndarray:
        """The points `(N, 4)` float32 of a frame's depth image: x, y, z in metres in the optical frame, grey value
        0..1; every fourth pixel each way, up to 5 m, without those at the edges of depth jumps."""
        depth = self._read_depth(frame)
        points = self._back_projected(depth, STRIDE)
        points = points[points[..., 2] > 0]
        grey = np.full(len(points), UNKNOWN_INTENSITY)
        if frame.colour_path:
            camera = self.colour_camera
            image = cv2.cvtColor(read_image(frame.colour_path), cv2.COLOR_RGB2GRAY)
            image = cv2.resize(image, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
            column, row = np.round(np.nan_to_num(camera.project(points), nan=-1)).astype(np.int64).T
            inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
            grey[inside] = image[row[inside], column[inside]] / 255
        return np.concatenate([points, grey[:, None]], axis=1).astype(np.float32)

    def describe(self) -> dict[str, Any]:
        """What the map remembers of its source, enough to open it again, and which way is `up` in its frame."""
        if self._up is None:
            self._up = self._find_up()
        description = {
            "kind": "rgbd",
            "path": str(self.path.resolve()),
            "camera": None if self.camera_file is None else str(self.camera_file.resolve()),
            "colour_camera": None if self.colour_camera_file is None else str(self.colour_camera_file.resolve()),
            "hold_out": self.hold_out,
            "up": self._up.tolist(),
        }
        # Only where it was asked for, so that maps of whole recordings are still known by what they say of themselves.
        return description if self.sequences is None else {**description, "sequences": self.sequences}

    def _kept(self, frame: RgbdFrame, margin: int) -> bool:
        return far_from(self.hold_out, frame.index, margin)

    def _read_camera(self) -> Camera:
        depth_path = next((frame.depth_path for frame in self.frames if frame.depth_path), None)
        if depth_path is None:
            raise InputError(f"{self.path} has no depth image with a pose (frame-N.depth.png, frame-N.pose.txt).")
        height, width = read_depth(depth_path).shape
        if self.camera_file is not None:
            return read_camera_file(self.camera_file, width, height).resize(width, height)
        for directory in (self.path, self.path.resolve().parent):
            if (directory / "camera-intrinsics.txt").is_file():
                return read_camera_file(directory / "camera-intrinsics.txt", width, height)
        return SEVEN_SCENES_CAMERA.resize(width, height)

    def _read_colour_camera(self) -> Camera:
        image = next((frame.colour_path for frame in self.frames if frame.colour_path), None)
        if image is None:
            return self.camera
        height, width = read_image(image).shape[:2]
        if self.colour_camera_file is None:
            return self.camera.resize(width, height)
        return read_camera_file(self.colour_camera_file, width, height).resize(width, height)

    def _read_depth(self, frame: RgbdFrame) -> np.ndarray:
        assert frame.depth_path is not None
        depth = read_depth(frame.depth_path)
        if depth.shape != (self.camera.height, self.camera.width):
            raise InputError(
                f"The depth image {frame.depth_path} is {depth.shape[1]}x{depth.shape[0]} and others are "
                f"{self.camera.width}x{self.camera.height}; leave it out."
            )
        return depth

    def _back_projected(self, depth: np.ndarray, stride: int) -> np.ndarray:
        """Points `(h, w, 3)` float64 of every `stride`-th pixel, zero where there is none to trust."""
        jump = cv2.dilate(depth, np.ones((3, 3))) - cv2.erode(depth, np.ones((3, 3)))
        sound = (depth > 0) & (depth <= FARTHEST) & (jump < JUMP * depth)
        depth = np.where(sound, depth, 0)[::stride, ::stride]
        pixels = np.mgrid[0 : self.camera.height : stride, 0 : self.camera.width : stride][::-1]
        rays = self.camera.unproject(pixels.reshape(2, -1).T).reshape(*depth.shape, 3)
        seen = rays[..., 2] > 0  # not where the lens has no ray
        return np.where(seen[..., None], rays / np.where(seen, rays[..., 2], 1)[..., None] * depth[..., None], 0)

    def _find_up(self) -> np.ndarray:
        """Up in the map's frame `(3,)`: what floors and tables say, near the mean upward axis of the cameras."""
        guess = -np.mean([frame.map_from_camera[:3, 1] for frame in self.frames], axis=0)
        crosses = [np.zeros((0, 3))]
        for frame in self._scan_frames[:: -(-len(self._scan_frames) // _UP_FRAMES)]:
            points = self._back_projected(self._read_depth(frame), 2 * STRIDE)
            right, below = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
            corners = np.stack([points[1:-1, 2:], points[1:-1, :-2], points[2:, 1:-1], points[:-2, 1:-1]])[..., 2]
            flat = (corners > 0).all(axis=0) & (np.ptp(corners, axis=0) < 5 * JUMP * corners.mean(axis=0))
            crosses.append(np.cross(right, below)[flat] @ frame.map_from_camera[:3, :3].T)
        cross = np.concatenate(crosses)
        areas = np.linalg.norm(cross, axis=1)
        cross, areas = cross[areas > 1e-9], areas[areas > 1e-9]
        if np.linalg.norm(guess) < 0.1:  # cameras that roll all ways: nothing to begin with
            guess = np.array([0.0, 0.0, 1.0])
        return up_direction(cross / areas[:, None], areas, guess)


def find_frames(path: Path | str, chosen: list[int] | None = None) -> list[RgbdFrame]:
    """The frames with a pose in `path`, or in all its `seq-N` directories or those whose N is `chosen`, by number.
    Raises InputError when there is none, or a pose file holds something else than a pose."""
    path = Path(path)
    sequences = {0: path}
    if path.is_dir() and not _pose_files(path):
        folders = {folder: re.fullmatch(r"seq-([0-9]{1,4})", folder.name) for folder in path.iterdir()}
        sequences = {int(name[1]): folder for folder, name in folders.items() if name}
    if chosen is not None:
        sequences = {number: folder for number, folder in sequences.items() if number in chosen}
    files = {(sequence, number): file for sequence in sequences for number, file in _pose_files(sequences[sequence])}
    if not files and chosen is not None:
        raise InputError(f"{path} has no frame with a pose in its sequences {', '.join(map(str, chosen))}.")
    if not files:
        raise InputError(f"{path} is no RGB-D recording: neither it nor a seq-01 in it has frame-000000.pose.txt.")
    step = 10 ** max(3, len(str(max(number for _, number in files))))
    frames = []
    for (sequence, number), file in sorted(files.items()):
        pose = read_camera_pose(file)
        if pose is not None:
            stem = file.name.removesuffix(".pose.txt")
            colour = (file.with_name(f"{stem}.color{suffix}") for suffix in (".png", ".jpg", ".jpeg"))
            depth = file.with_name(f"{stem}.depth.png")
            frames.append(
                RgbdFrame(
                    step * sequence + number,
                    next((image for image in colour if image.is_file()), None),
                    depth if depth.is_file() else None,
                    pose,
                )
            )
    if frames and frames[-1].index >= _MOST_FRAMES:
        raise InputError(
            f"The frames of {path} would be numbered up to {frames[-1].index:,}, and a map tells {_MOST_FRAMES:,} "
            "apart; give its sequences one by one."
        )
    return frames


def read_camera_pose(path: Path) -> np.ndarray | None:
    """The pose `(4, 4)` of a `.pose.txt`, or None where it says that the camera was lost (NaN or infinity)."""
    try:
        text = path.read_text(encoding="ascii").lower()
        if "#" in text:  # 1.#QNAN, 1.#INF: what old Windows programs write
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file, which gets its own sentence below
            pose = np.loadtxt(text.splitlines(), ndmin=2)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise InputError(f"The pose {path} cannot be read ({reason}); give 4 rows of 4 numbers.") from error
    if pose.shape != (4, 4):
        raise InputError(f"The pose {path} has the shape {pose.shape}; give 4 rows of 4 numbers.")
    if not np.isfinite(pose).all():
        return None
    last_row = np.abs(pose[3] - [0, 0, 0, 1]).max() < 1e-3
    if not last_row or not is_rotation(pose[None, :3, :3])[0] or np.abs(pose[:3, 3]).max() > FARTHEST_PLACE:
        raise InputError(
            f"The pose {path} is no pose; give 4 rows of 4 numbers: a rotation, a place in metres, and 0 0 0 1 below."
        )
    return pose


def read_depth(path: Path) -> np.ndarray:
    """A depth image `(H, W)` float32 in metres along the optical axis, 0 where there is none."""
    try:
        with path.open("rb") as stream:
            head = stream.read(24)
    except OSError as error:
        raise InputError(f"The depth image {path} cannot be read: {error.strerror}.") from error
    sides = (int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"))
    image = None
    if head.startswith(b"\x89PNG\r\n\x1a\n") and min(sides) > 0 and max(sides) <= _LARGEST_SIDE:
        try:
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        except cv2.error:
            image = None
    if image is None or image.dtype != np.uint16 or image.ndim != 2:
        raise InputError(f"The depth image {path} is not a whole PNG of 16 bits grey (millimetres); copy it again.")
    return np.where(np.isin(image, NO_DEPTH), 0, image).astype(np.float32) / 1000


def _pose_files(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    names = ((file, re.fullmatch(r"frame-([0-9]{1,9})\.pose\.txt", file.name)) for file in folder.iterdir())
    return [(int(name[1]), file) for file, name in names if name]


def _stamp(frame: RgbdFrame) -> float:
    return frame.index / FRAME_RATE
