"""An image as landmarks are looked for in it."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ep2ploc_core.camera import Camera
from ep2ploc_core.landmarks.features import Features, detect
from ep2ploc_core.landmarks.grey_image import grey_image

MOST_FEATURES = 3000  # of an image


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
        """The pinhole that sees the image undistorted."""
        return self._seen[1]

    @cached_property
    def _seen(self) -> tuple[Features, Camera]:
        grey, pinhole = grey_image(self._image, self._camera)
        return detect(grey, MOST_FEATURES), pinhole
