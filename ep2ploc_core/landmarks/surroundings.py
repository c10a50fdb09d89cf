"""Which landmarks of a map come into question."""

from __future__ import annotations

import numpy as np

from ep2ploc_core.landmarks.landmark_view import LandmarkView
from ep2ploc_core.map.unit import MapInUnits

RADIUS = 25.0  # units around a place from which images show much of what is seen there
_ALIKE = np.cos(np.radians(60))  # of the directions of a place and of an image


class SurroundingLandmarks:
    """The landmarks around one place after the other, each once."""

    def __init__(self, units: MapInUnits) -> None:
        self._units = units
        self._given: set[bytes] = set()

    def of(self, place: np.ndarray) -> list[LandmarkView]:
        """Of the mapping images around a camera pose `(4, 4)` that look about the same way, those that were not given
        before."""
        new = []
        for view in self._units.landmarks(place[:3, 3], RADIUS):
            key = view.map_from_camera.tobytes()
            if key not in self._given and view.map_from_camera[:3, 2] @ place[:3, 2] > _ALIKE:
                self._given.add(key)
                new.append(view)
        return new
