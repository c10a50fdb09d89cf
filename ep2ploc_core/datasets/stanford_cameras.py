"""The perspective cameras of Stanford 2D-3D-S: images whose pose and intrinsics a JSON file tells.

```
area_1/data/rgb/camera_UUID_office_3_frame_7_domain_rgb.png
            pose/camera_UUID_office_3_frame_7_domain_pose.json     camera_k_matrix, camera_rt_matrix, camera_location
            depth/camera_UUID_office_3_frame_7_domain_depth.png    uint16, 1/512 m along the optical axis; 65535: none
```
UUID names a scan location; all images of one location have the same centre. Every image has its own field of view.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.kitti import read_image
from ep2ploc_core.datasets.rgbd import read_depth
from ep2ploc_core.datasets.trajectory import FARTHEST_PLACE, is_rotation
from ep2ploc_core.errors import InputError

# Frame numbers are beyond what a map tells of its points (16 bits): the points of S3DIS belong to no image.
FIRST_FRAME = 100_000
FRAMES_PER_LOCATION = 1000
# area_5b was registered apart from area_5a, whose frame S3DIS has for the whole of Area_5: a quarter turn and a shift,
# as users of both have measured it (issue 40 of the data set's repository).
AREA_5_FROM_5B = np.array([
    [0, 1, 0, -4.09703582], [-1, 0, 0, 6.22617759], [0, 0, 1, 0], [0, 0, 0, 1],
])  # fmt: skip
_NAME = re.compile(r"camera_([0-9a-f]+)_+([A-Za-z]+_[0-9]+)_frame_([0-9]+)_domain_+rgb\.png")
_DEPTH_UNITS = 1000 / 512  # read_depth takes millimetres
_FARTHEST_DEPTH = 5.0  # metres
_SAME_CENTRE = 0.02  # metres


@dataclass(frozen=True)
class StanfordImage:
    """One image: number, room (`office_3`), scan location, files, camera, and map_from_camera `(4, 4)` in the frame of
    the area's S3DIS points. `depth_path` is None where there is no depth image."""

    frame: int
    room: str
    location: str
    path: Path
    depth_path: Path | None
    camera: Camera
    map_from_camera: np.ndarray


def find_images(directories: list[Path]) -> list[StanfordImage]:
    """The images with a pose in directories such as `area_1/data`, by location. Their frames are FIRST_FRAME + 1000 *
    number of the location + number in the file's name. Raises InputError when there is none, or a pose is none."""
    named = []
    for directory in directories:
        if (directory / "rgb").is_dir():
            files = sorted((directory / "rgb").iterdir())
            named += [(directory, file, name) for file in files if (name := _NAME.fullmatch(file.name))]
    locations = {location: number for number, location in enumerate(sorted({name[1] for _, _, name in named}))}
    sizes: dict[Path, tuple[int, int]] = {}
    images = []
    for directory, file, name in sorted(named, key=lambda found: (found[2][1], int(found[2][3]))):
        pose_path = _beside(file, "pose", ".json")
        if not pose_path.is_file():
            continue
        if int(name[3]) >= FRAMES_PER_LOCATION:
            raise InputError(f"The image {file} has a number of {FRAMES_PER_LOCATION} or more; leave it out.")
        if directory not in sizes:
            height, width = read_image(file).shape[:2]
            sizes[directory] = width, height
        area_from_camera = read_pose(pose_path)
        if any(part.lower() == "area_5b" for part in directory.parts):
            area_from_camera = AREA_5_FROM_5B @ area_from_camera
        depth_path = _beside(file, "depth", ".png")
        images.append(
            StanfordImage(
                FIRST_FRAME + FRAMES_PER_LOCATION * locations[name[1]] + int(name[3]),
                name[2],
                name[1],
                file,
                depth_path if depth_path.is_file() else None,
                read_camera(pose_path, *sizes[directory]),
                area_from_camera,
            )
        )
    if not images:
        raise InputError(
            f"{', '.join(map(str, directories))} holds no image with a pose (rgb/camera_..._frame_0_domain_rgb.png, "
            "pose/camera_..._frame_0_domain_pose.json)."
        )
    return images


def read_pose(path: Path) -> np.ndarray:
    """area_from_camera `(4, 4)` of a pose file: the inverse of `camera_rt_matrix`, which is the upper 3x4 of
    camera_from_area, optical frame (its description calls it 4x3). Raises InputError."""
    content = _content(path)
    try:
        camera_from_area = np.eye(4)
        camera_from_area[:3] = np.array(content["camera_rt_matrix"], np.float64)[:3]
        place = np.array(content.get("camera_location", [np.nan] * 3), np.float64).reshape(3)
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(
            f"The pose {path} has no camera_rt_matrix of 3 rows of 4 numbers, or a camera_location of other than 3; "
            "copy it again."
        ) from error
    sound = np.isfinite(camera_from_area).all() and np.abs(camera_from_area[:3, 3]).max() < FARTHEST_PLACE
    if not sound or not is_rotation(camera_from_area[None, :3, :3])[0]:
        raise InputError(f"The pose {path} is no pose: its camera_rt_matrix holds no rotation; copy it again.")
    area_from_camera: np.ndarray = np.linalg.inv(camera_from_area)
    if np.isfinite(place).all() and np.abs(area_from_camera[:3, 3] - place).max() > _SAME_CENTRE:
        raise InputError(
            f"The pose {path} contradicts itself: by its camera_rt_matrix the camera is at "
            f"{np.round(area_from_camera[:3, 3], 2).tolist()}, by its camera_location at {place.round(2).tolist()}; "
            "copy it again."
        )
    return area_from_camera


def read_camera(path: Path, width: int, height: int) -> Camera:
    """The camera of a pose file, for an image of this size; raises InputError. `camera_k_matrix` counts pixels from the
    image's corner, and cameras here from the first pixel's centre."""
    try:
        k = np.array(_content(path)["camera_k_matrix"], np.float64).reshape(3, 3)
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(f"The pose {path} has no camera_k_matrix of 3 rows of 3 numbers; copy it again.") from error
    k[:2, 2] -= 0.5
    try:
        return Camera.from_matrix(width, height, k)
    except InputError as error:
        raise InputError(f"The camera in {path} cannot be used: {error}") from error


def depth_points(image: StanfordImage, side: int = 24) -> np.ndarray:
    """Points `(N, 3)` in the map's frame of what the depth image sees up to 5 m away, at a grid of at most `side` x
    `side` pixels; none without a depth image."""
    if image.depth_path is None:
        return np.zeros((0, 3))
    depth = read_depth(image.depth_path) * _DEPTH_UNITS
    camera = image.camera.resize(depth.shape[1], depth.shape[0])
    row = np.linspace(0, depth.shape[0] - 1, side + 2)[1:-1].round().astype(int)
    column = np.linspace(0, depth.shape[1] - 1, side + 2)[1:-1].round().astype(int)
    v, u = (grid.ravel() for grid in np.meshgrid(row, column, indexing="ij"))
    z = depth[v, u]
    seen = (z > 0) & (z < _FARTHEST_DEPTH)
    rays = camera.unproject(np.stack([u[seen], v[seen]], 1))
    points = rays / rays[:, 2:] * z[seen, None]
    moved: np.ndarray = points @ image.map_from_camera[:3, :3].T + image.map_from_camera[:3, 3]
    return moved


@lru_cache(maxsize=1)  # pose and camera are read one after the other
def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"The pose {path} is no JSON file ({type(error).__name__}); copy it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"The pose {path} holds something else than names and values; copy it again.")
    return content


def _beside(image: Path, kind: str, suffix: str) -> Path:
    """The file of another kind that belongs to an image."""
    return image.parent.parent / kind / (image.name.removesuffix("rgb.png") + kind + suffix)
