"""What a camera would have seen a little beside where it was: an image warped by the depth of the map.

A network that is shown a drive's images alone may learn which image it is looking at instead of where the camera is.
Between and beside the real viewpoints there are endlessly many others, whose poses are exact.
"""

from __future__ import annotations

import cv2
import numpy as np
from torch import Tensor

from ep2ploc_core.camera import Camera
from ep2ploc_core.visibility import VisibilitySettings, surface_depth

BLANK = (115, 115, 115)
NEAREST, FARTHEST = 1.0, 80.0  # metres


def dense_depth(xyz: Tensor, spacing: float, camera_from_map: Tensor, camera: Camera) -> np.ndarray:
    """Depth in metres for every pixel `(H, W)` float32, from points `(N, 3)` about `spacing` metres apart.

    Pixels without a surface, such as the sky, take the depth of the nearest pixel that has one; where nothing at all is
    seen, FARTHEST.
    """
    settings = VisibilitySettings(nearest=NEAREST, farthest=FARTHEST, slope=0.0)
    size = (camera.width, camera.height)
    result = surface_depth(xyz, camera_from_map, camera.intrinsics_tensor(), size, spacing, settings)[0].numpy()
    empty = ~np.isfinite(result)
    if empty.all():
        return np.full_like(result, FARTHEST)
    _, label = cv2.distanceTransformWithLabels(
        empty.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_3, labelType=cv2.DIST_LABEL_PIXEL
    )
    known = np.zeros(label.max() + 1, np.float32)
    known[label[~empty]] = result[~empty]
    filled: np.ndarray = known[label]
    return filled


def render_view(
    image: np.ndarray,
    camera: Camera,
    camera_from_map: np.ndarray,
    depth: np.ndarray,
    new_camera: Camera,
    new_camera_from_map: np.ndarray,
) -> np.ndarray:
    """`image` `(H, W, 3)` uint8, taken by a pinhole `camera` at `(4, 4)`, as `new_camera` at its pose would see it.

    depth `(h, w)`: of the new view, as `dense_depth` gives it. What the image does not show is BLANK; what was hidden
    in it shows what hid it.
    """
    row, column = np.indices(depth.shape, dtype=np.float32)
    ray_x, ray_y = (column - new_camera.cx) / new_camera.fx, (row - new_camera.cy) / new_camera.fy
    points = np.stack([ray_x * depth, ray_y * depth, depth], -1).reshape(-1, 3)
    old_from_new = camera_from_map @ np.linalg.inv(new_camera_from_map)
    moved = points @ old_from_new[:3, :3].T.astype(np.float32) + old_from_new[:3, 3].astype(np.float32)
    ahead = moved[:, 2] > 0.1
    z = np.where(ahead, moved[:, 2], 1)
    x = np.where(ahead, moved[:, 0] / z * camera.fx + camera.cx, -1e4).astype(np.float32).reshape(depth.shape)
    y = np.where(ahead, moved[:, 1] / z * camera.fy + camera.cy, -1e4).astype(np.float32).reshape(depth.shape)
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=BLANK)
