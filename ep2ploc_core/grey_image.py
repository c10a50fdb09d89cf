"""An image as the classical methods take it: grey, as an ideal pinhole would have seen it."""

from __future__ import annotations

import cv2
import numpy as np

from ep2ploc_core.camera import Camera
from ep2ploc_core.model.image_input import check_image


def grey_image(image: np.ndarray, camera: Camera) -> tuple[np.ndarray, Camera]:
    """Grey values `(H, W)` uint8 of an image `(H, W, 3)` RGB or `(H, W)`, undistorted, and the pinhole that saw them.
    Raises InputError when image and camera do not fit."""
    check_image(image)
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return camera.undistort(grey)


def values_at(field: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Values `(N,)` of a field `(H, W)` float32 at pixels `(N, 2)` float32 inside it, between its own bilinearly; N is
    at most 32767."""
    values: np.ndarray = cv2.remap(field, pixels[:, :1], pixels[:, 1:], cv2.INTER_LINEAR)[:, 0]
    return values
