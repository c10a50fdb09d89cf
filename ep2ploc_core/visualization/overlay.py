"""The map drawn over an image from a pose: whether the pose is right can be seen at once."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import torch

from ep2ploc_core.camera import Camera
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.point_map import MapPoints
from ep2ploc_core.visibility import VisibilitySettings, remove_invisible


def draw_overlay(
    image: np.ndarray, camera: Camera, points: MapPoints, origin: np.ndarray, map_from_camera: np.ndarray
) -> np.ndarray:
    """The visible map points over the image `(H, W, 3)` uint8 RGB, colours from red (near) to blue (50 m and beyond).

    points: relative to origin `(3,)`. map_from_camera: `(4, 4)`.
    """
    image, pinhole = camera.undistort(image)
    xyz = (points.xyz.astype(np.float64) + origin - map_from_camera[:3, 3]).astype(np.float32)
    camera_from_local = np.eye(4)
    camera_from_local[:3, :3] = map_from_camera[:3, :3].T
    visible = remove_invisible(
        torch.from_numpy(xyz), torch.from_numpy(camera_from_local).float(), pinhole.intrinsics_tensor(),
        (camera.width, camera.height), VisibilitySettings(),
    )  # fmt: skip
    share = (visible.depths / 50).clamp(0, 1).numpy()
    colors = cv2.applyColorMap(np.round((1 - share) * 255).astype(np.uint8), cv2.COLORMAP_TURBO).reshape(-1, 3)[:, ::-1]
    out = np.ascontiguousarray(image // 4 * 3)  # darker, so that the points stand out
    for index in np.argsort(-share):
        x, y = visible.pixels[index].round().int().tolist()
        cv2.circle(out, (x, y), 1, colors[index].tolist(), -1)
    return out


def write_image(image: np.ndarray, path: Path) -> None:
    """Writes an RGB image aside and renames it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp{path.suffix}")
    try:
        written = cv2.imwrite(str(aside), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        written = False
    if not written:
        raise InputError(f"The picture {path} cannot be written; give a name that ends in .png or .jpg.")
    os.replace(aside, path)
