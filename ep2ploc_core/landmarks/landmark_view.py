"""What one image of the mapping run contributes to a map's landmarks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ep2ploc_core.landmarks.features import unit_descriptors


@dataclass(frozen=True)
class LandmarkView:
    """A mapping image: its pose map_from_camera `(4, 4)`, the SIFT descriptors `(K, 128)` uint8 of its features, the
    strongest first, and their places xyz `(K, 3)` relative to the map's origin, in the lengths of the pose."""

    map_from_camera: np.ndarray
    descriptors: np.ndarray
    xyz: np.ndarray

    def __len__(self) -> int:
        return len(self.descriptors)

    @cached_property
    def unit(self) -> np.ndarray:
        """See `unit_descriptors`."""
        return unit_descriptors(self.descriptors)

    def strongest(self, most: int) -> LandmarkView:
        """So many of its features."""
        return LandmarkView(self.map_from_camera, self.descriptors[:most], self.xyz[:most])
