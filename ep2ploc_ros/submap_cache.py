"""The part of the map that the localizer holds, as the map_server sent it."""

from __future__ import annotations

import numpy as np

from ep2ploc_core.map.point_map import MapPoints


class SubmapCache:
    """A MapSource that holds the last submap. Its coordinates are those of the ROS map frame, so its origin is zero."""

    def __init__(self, checkpoint: str, refresh: float) -> None:
        """checkpoint: fingerprint of the network that made the descriptors. refresh: metres from the centre at which
        the next submap is due."""
        self.origin = np.zeros(3)
        self.checkpoint = checkpoint
        self.refresh = refresh
        self._centre: np.ndarray | None = None
        self._points = MapPoints.concatenate([])

    def hold(self, centre: np.ndarray, points: MapPoints) -> None:
        """Replaces the submap by the points around `centre` `(3,)`, map frame."""
        self._centre, self._points = np.asarray(centre, np.float64), points

    def is_due(self, position: np.ndarray) -> bool:
        """Whether a camera at `position` `(3,)` should have a new submap."""
        return self._distance(position) > self.refresh

    def covers(self, position: np.ndarray) -> bool:
        """Whether the submap still serves a camera at `position` `(3,)`, with less of a margin."""
        return self._distance(position) <= 2 * self.refresh

    def query(self, centre: np.ndarray, radius: float) -> MapPoints:
        """The held points within `radius` metres (horizontally) of `centre` `(3,)`, map frame."""
        offset = self._points.xyz[:, :2] - np.asarray(centre, np.float32)[:2]
        return self._points.select((offset * offset).sum(1) < radius * radius)

    def _distance(self, position: np.ndarray) -> float:
        if self._centre is None:
            return float("inf")
        return float(np.linalg.norm((np.asarray(position) - self._centre)[:2]))
