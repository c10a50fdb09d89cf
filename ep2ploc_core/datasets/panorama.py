"""Perspective views cut out of the panoramas of Stanford 2D-3D-S, in the layout of its perspective images.

```
area_1/pano/rgb/camera_UUID_office_3_frame_equirectangular_domain_rgb.png
            pose/camera_UUID_office_3_frame_equirectangular_domain_pose.json
```
The middle of a panorama is where its camera looks, columns run to the right through 360 degrees, rows from straight up
to straight down; `camera_rt_matrix` is camera_from_area, optical frame, as of the perspective images.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.kitti import read_image
from ep2ploc_core.datasets.stanford_cameras import read_pose
from ep2ploc_core.errors import InputError

VIEWS = 8  # around each panorama
VIEW = Camera(640, 480, 417.0, 417.0, 319.5, 239.5)  # 75 degrees wide
_NAME = re.compile(r"(camera_[0-9a-f]+_+[A-Za-z]+_[0-9]+_frame_)equirectangular_domain_+rgb\.png")


def cut_panoramas(panoramas: Path, out: Path, progress: Callable[[int, int], None]) -> None:
    """Cuts every panorama with a pose in `panoramas` (`area_1/pano`) into views in `out`/rgb and `out`/pose; what is
    there already is left as it is. Raises InputError when there is none, or one cannot be read."""
    rgb = panoramas / "rgb"
    named = [(file, _NAME.fullmatch(file.name)) for file in sorted(rgb.iterdir())] if rgb.is_dir() else []
    found = [(file, name[1]) for file, name in named if name and _pose_of(file).is_file()]
    if not found:
        raise InputError(f"{panoramas} holds no panorama with a pose (rgb/..._frame_equirectangular_domain_rgb.png).")
    for folder in ("rgb", "pose"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for done, (file, stem) in enumerate(found, 1):
        # The last file that is written of a panorama: with it, all are there.
        if not (out / "pose" / f"{stem}{VIEWS - 1}_domain_pose.json").is_file():
            _cut(file, stem, out)
        progress(done, len(found))


def cut_view(panorama: np.ndarray, panorama_from_view: np.ndarray, view: Camera = VIEW) -> np.ndarray:
    """What a camera sees of a panorama `(H, W, 3)`, `(h, w, 3)`; panorama_from_view: rotation `(3, 3)` between the two
    optical frames."""
    height, width = panorama.shape[:2]
    rows, columns = np.indices((view.height, view.width))
    x, y, z = (view.unproject(np.stack([columns, rows], -1)) @ panorama_from_view.T).T
    u = (np.arctan2(x, z) / (2 * np.pi) + 0.5) * width - 0.5
    v = (np.arcsin(y.clip(-1, 1)) / np.pi + 0.5) * height - 0.5
    shape = view.height, view.width
    cut: np.ndarray = cv2.remap(
        panorama, u.reshape(shape).astype(np.float32), v.reshape(shape).astype(np.float32), cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )  # fmt: skip
    return cut


def _cut(file: Path, stem: str, out: Path) -> None:
    panorama = read_image(file)
    area_from_panorama = read_pose(_pose_of(file))
    # Pixels counted from the corner, as in the files that these stand beside.
    matrix = VIEW.matrix + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    for number in range(VIEWS):
        angle = 2 * np.pi * number / VIEWS
        panorama_from_view = np.eye(4)
        panorama_from_view[:3, :3] = [
            [np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)],
        ]  # fmt: skip
        area_from_view = area_from_panorama @ panorama_from_view
        pose = {
            "camera_k_matrix": matrix.tolist(),
            "camera_rt_matrix": np.linalg.inv(area_from_view)[:3].tolist(),
            "camera_location": area_from_view[:3, 3].tolist(),
        }
        picture = cut_view(panorama, panorama_from_view[:3, :3])
        encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
        _write(out / "rgb" / f"{stem}{number}_domain_rgb.png", encoded.tobytes())
        _write(out / "pose" / f"{stem}{number}_domain_pose.json", json.dumps(pose).encode())


def _pose_of(panorama: Path) -> Path:
    return panorama.parent.parent / "pose" / (panorama.name.removesuffix("rgb.png") + "pose.json")


def _write(path: Path, content: bytes) -> None:
    aside = path.with_name(path.name + ".tmp")
    aside.write_bytes(content)
    os.replace(aside, path)
