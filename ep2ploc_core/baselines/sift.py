"""Classical image-based localization: the landmarks alone, all of them, as who localizes by images would have them."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from ep2ploc_core.camera import Camera
from ep2ploc_core.landmarks.features import detect
from ep2ploc_core.landmarks.finder import LandmarkFinder, LandmarkSettings
from ep2ploc_core.landmarks.landmark_view import LandmarkView
from ep2ploc_core.landmarks.lifting import MOST_FEATURES
from ep2ploc_core.landmarks.sighting import seen_by_landmarks
from ep2ploc_core.localization import Localization
from ep2ploc_core.map.unit import scaled_pose

SIFT_SETTINGS = LandmarkSettings(views=12)


class SiftFinder:
    """Finds poses among the views of one map, in units of `unit` metres."""

    def __init__(
        self, views: list[LandmarkView], unit: float = 1.0, settings: LandmarkSettings = SIFT_SETTINGS
    ) -> None:
        self.views = views
        self.unit = unit
        self.finder = LandmarkFinder(settings)

    def localize(self, image: np.ndarray, camera: Camera, prior: np.ndarray | None = None) -> Localization:
        """As `Localizer.localize`, but without a covariance: that of the matches alone (`pose.pnp`) knows nothing
        of the errors that all features of a mapping image share, and is many times too small."""
        begin = time.perf_counter()
        grey, pinhole = seen_by_landmarks(image, camera)
        features = detect(grey, MOST_FEATURES)
        if prior is None:
            recognized = self.finder.recognize(features, pinhole, self.views)
            pose = recognized[0] if recognized else None
        else:
            pose = self.finder.find(features, pinhole, self.views, scaled_pose(prior, 1 / self.unit))
        if pose is None:
            found = Localization("refused", "too few of the image's features agree on a pose that is allowed")
        else:
            found = Localization(
                "ok", map_from_camera=pose.map_from_camera, candidate=pose.map_from_camera,
                num_matches=len(pose.inliers), num_inliers=pose.num_agreeing,
                points_map=pose.matches.xyz[pose.inliers], pixels=pose.matches.pixels[pose.inliers],
            )  # fmt: skip
        found = found.scaled(self.unit)
        return replace(found, seconds=time.perf_counter() - begin)
