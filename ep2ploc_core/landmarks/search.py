"""Looking for an image's landmarks ahead of time, beside whatever else is done with it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from ep2ploc_core.landmarks.finder import LandmarkFinder, LandmarkPose
from ep2ploc_core.landmarks.landmark_view import LandmarkView
from ep2ploc_core.landmarks.sighting import Sighting


class LandmarkSearch:
    """What the landmarks tell of an image near a first guess `(4, 4)`. It takes long and is not always asked for, so it
    is found out when it is, or by a thread from when it is likely to be. views: gives those around the guess; it is
    called by whoever calls this, never in the thread, since maps are not made for two at once."""

    def __init__(
        self, finder: LandmarkFinder, sighting: Sighting, views: Callable[[], list[LandmarkView]], start: np.ndarray
    ) -> None:
        self._finder, self._sighting, self._views, self._start = finder, sighting, views, start
        self._begun: Future[LandmarkPose | None] | None = None

    def begin(self, thread: ThreadPoolExecutor) -> None:
        """Goes on in a thread; until the result is asked for, nobody else may look at the image's features."""
        self._begun = thread.submit(self._find, self._views())

    def result(self) -> LandmarkPose | None:
        """The pose; None where the landmarks give none."""
        return self._find(self._views()) if self._begun is None else self._begun.result()

    def _find(self, views: list[LandmarkView]) -> LandmarkPose | None:
        if not views:
            return None
        return self._finder.find(self._sighting.features, self._sighting.camera, views, self._start)
