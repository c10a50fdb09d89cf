"""An image as landmarks are looked for in it."""

from __future__ import annotations

from functools import cached_property

import cv2
import numpy as np

from ep2ploc_core.camera import Camera
from ep2ploc_core.grey_image import grey_image
from ep2ploc_core.landmarks.features import Features, detect

MOST_FEATURES = 3000  # of an image
GREATEST_WIDTH = 1300  # pixels; what is finer in larger images is beyond the accuracy of maps


def seen_by_landmarks(image: np.ndarray, camera: Camera) -> tuple[np.ndarray, Camera]:
    """Grey values `(H, W)` uint8 of an image `(H, W, 3)` RGB or `(H, W)`, undistorted and no larger than landmarks need
    it, and the pinhole that saw them. Raises InputError when image and camera do not fit."""
    grey, pinhole = grey_image(image, camera)
    if pinhole.width <= GREATEST_WIDTH:
        return grey, pinhole
    size = (GREATEST_WIDTH, round(pinhole.height * GREATEST_WIDTH / pinhole.width))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA), pinhole.resize(*size)


class Sighting:
    """The features of an image, found when they are asked for: often nobody does."""

    def __init__(self, image: np.ndarray, camera: Camera) -> None:
        """image: `(H, W, 3)` RGB or `(H, W)` grey, uint8."""
        self._image, self._camera = image, camera

    @property
    def features(self) -> Features:
        """At pixels of `camera`."""
        return self._seen[0]

    @property
    def camera(self) -> Camera:
        """The pinhole in whose image the features are."""
        return self._seen[1]

    @cached_property
    def _seen(self) -> tuple[Features, Camera]:
        grey, pinhole = seen_by_landmarks(self._image, self._camera)
        return detect(grey, MOST_FEATURES), pinhole
