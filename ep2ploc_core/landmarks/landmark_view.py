"""What one image of the mapping run contributes to a map's landmarks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ep2ploc_core.landmarks.features import root_sift


@dataclass(frozen=True)
class LandmarkView:
    """A mapping image: its pose map_from_camera `(4, 4)`, the SIFT descriptors `(K, 128)` uint8 of its features, the
    strongest first, and their places xyz `(K, 3)`. A `MapSource` gives metres, xyz float32 relative to the map's
    origin; `MapInUnits` gives units, xyz float64 in map coordinates."""

    map_from_camera: np.ndarray
    descriptors: np.ndarray
    xyz: np.ndarray

    def __len__(self) -> int:
        return len(self.descriptors)

    @cached_property
    def root(self) -> np.ndarray:
        """See `root_sift`."""
        return root_sift(self.descriptors)

    def strongest(self, most: int) -> LandmarkView:
        """So many of its features."""
        return LandmarkView(self.map_from_camera, self.descriptors[:most], self.xyz[:most])
