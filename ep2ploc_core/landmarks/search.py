"""Looking for an image's landmarks ahead of time, beside whatever else is done with it."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from ep2ploc_core.landmarks.finder import LandmarkFinder, LandmarkPose
from ep2ploc_core.landmarks.landmark_view import LandmarkView
from ep2ploc_core.landmarks.sighting import Sighting


class LandmarkSearch:
    """What the landmarks of some views tell of an image near a first guess `(4, 4)`. It takes long and is not always
    asked for, so it is found out when it is, or by a thread from when it is likely to be."""

    def __init__(
        self, finder: LandmarkFinder, sighting: Sighting, views: list[LandmarkView], start: np.ndarray
    ) -> None:
        self._finder, self._sighting, self._views, self._start = finder, sighting, views, start
        self._begun: Future[LandmarkPose | None] | None = None

    def begin(self, thread: ThreadPoolExecutor) -> None:
        """Goes on in a thread; until the result is asked for, nobody else may look at the image's features."""
        self._begun = thread.submit(self._find)

    def result(self) -> LandmarkPose | None:
        """The pose; None where the landmarks give none."""
        return self._find() if self._begun is None else self._begun.result()

    def _find(self) -> LandmarkPose | None:
        if not self._views:
            return None
        return self._finder.find(self._sighting.features, self._sighting.camera, self._views, self._start)
