"""Classical image-based localization: SIFT features of the image are matched with those of the mapping run's images,
whose places in the map are known, and the pose is solved from the matches (as in Sattler, Leibe, Kobbelt: Efficient and
effective prioritized matching for large-scale image-based localization, PAMI 2017; places from the LiDAR instead of
structure from motion)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from ep2ploc_core import se3
from ep2ploc_core.baselines.grey_image import grey_image
from ep2ploc_core.baselines.prior_box import BOX, share_of_box
from ep2ploc_core.baselines.sift_features import Features, detect, match
from ep2ploc_core.baselines.sift_views import MOST_FEATURES, SiftView
from ep2ploc_core.camera import Camera, project_pinhole
from ep2ploc_core.localization import Localization
from ep2ploc_core.map.unit import scaled_pose
from ep2ploc_core.pose.pnp import refine, solve_ransac

NEAREST = 0.5  # in units of `map.unit`; places nearer than that are not matched


@dataclass(frozen=True)
class SiftSettings:
    """views: how many mapping images are matched: those nearest to the first guess that look the same way within
    `turned` degrees; without one, those with most matches of the image's strongest `voters` features. threshold: pixels
    beyond which a match is surely wrong; scale: pixels at which the robust cost begins to discount one.
    second_round: the share of the prior's box that the first round's pose may be off. least_inliers: features of the
    image that have to agree with a pose in the first round."""

    views: int = 12
    turned: float = 60.0
    voters: int = 500
    threshold: float = 8.0
    scale: float = 2.0
    second_round: float = 0.15
    least_inliers: int = 12


@dataclass(frozen=True)
class _Windows:
    """Where in the image places may be seen: from low `(K, 2)` to high `(K, 2)`, pixels."""

    low: np.ndarray
    high: np.ndarray

    def hold(self, pixels: np.ndarray) -> np.ndarray:
        """Which pixels `(F, 2)` lie in which window, `(F, K)`."""
        x, y = pixels[:, :1], pixels[:, 1:]
        inside: np.ndarray = (x > self.low[:, 0]) & (x < self.high[:, 0]) & (y > self.low[:, 1]) & (y < self.high[:, 1])
        return inside


class SiftFinder:
    """Finds poses among the views of one map, whose unit is `unit` metres."""

    def __init__(self, views: list[SiftView], unit: float = 1.0, settings: SiftSettings = SiftSettings()) -> None:
        self.views = views
        self.unit = unit
        self.settings = settings

    def localize(self, image: np.ndarray, camera: Camera, prior: np.ndarray | None = None) -> Localization:
        """As `Localizer.localize`, but without a covariance: that of the matches alone (`pose.pnp`) knows nothing
        of the errors that all features of a mapping image share, and is many times too small."""
        begin = time.perf_counter()
        grey, pinhole = grey_image(image, camera)
        start = None if prior is None else scaled_pose(prior, 1 / self.unit)
        found = self._solve(detect(grey, MOST_FEATURES), pinhole, start).scaled(self.unit)
        found.seconds = time.perf_counter() - begin
        return found

    def _solve(self, features: Features, camera: Camera, start: np.ndarray | None) -> Localization:
        """Two rounds: the second matches again what the pose found in the first one puts near a feature."""
        if start is None:
            views, windows = self._voted(features), None
        else:
            views = self._near(start)
            windows = [_windows(view.xyz, start, 1.0, camera) for view in views]
        found = self._solve_once(features, camera, views, windows)
        found.reason = self._doubt(found, start)
        if not found.reason:
            # What agrees with a pose here does so because it was looked for there: only the first round's is evidence.
            assert found.candidate is not None
            share = self.settings.second_round
            windows = [_windows(view.xyz, found.candidate, share, camera) for view in views]
            again = self._solve_once(features, camera, views, windows)
            found = again if again.num_inliers > found.num_inliers else found
            found.reason = self._doubt(found, start)
        if found.reason:
            found.status, found.map_from_camera = "refused", None
        return found

    def _solve_once(
        self, features: Features, camera: Camera, views: list[SiftView], windows: list[_Windows] | None
    ) -> Localization:
        """windows: where in the image the features of each view may be; None: anywhere."""
        feature, xyz = [np.zeros(0, np.int64)], [np.zeros((0, 3))]
        for number, view in enumerate(views):
            allowed = None if windows is None else windows[number].hold(features.pixels)
            mine, theirs = match(features.descriptors, view.descriptors, allowed)
            feature.append(mine)
            xyz.append(view.xyz[theirs])
        matched, places = np.concatenate(feature), np.concatenate(xyz)
        pixels = features.pixels[matched].astype(np.float64)
        pose = solve_ransac(places, pixels, camera.matrix, self.settings.threshold)
        if pose is None:
            return Localization("refused", num_matches=len(matched))
        result = refine(pose, places, pixels, np.ones(len(pixels)), camera.matrix, self.settings.scale)
        pose, inliers = result.map_from_camera, result.inliers
        return Localization(
            "ok", map_from_camera=pose, candidate=pose, num_matches=len(matched),
            num_inliers=len(np.unique(matched[inliers])), points_map=places[inliers], pixels=pixels[inliers],
        )  # fmt: skip

    def _doubt(self, found: Localization, start: np.ndarray | None) -> str:
        """Why the pose should not be believed; empty when nothing speaks against it."""
        if found.candidate is None:
            return f"no pose fits the {found.num_matches} matches"
        if found.num_inliers < self.settings.least_inliers:
            return f"only {found.num_inliers} of the image's features agree on one pose"
        if start is not None and share_of_box(start, found.candidate) > 1:
            return "the best pose lies at the limit of what the prior pose allows"
        return ""

    def _near(self, start: np.ndarray) -> list[SiftView]:
        """The views nearest to a first guess `(4, 4)` that look about the same way."""
        alike = np.cos(np.radians(self.settings.turned))
        views = [view for view in self.views if view.map_from_camera[:3, 2] @ start[:3, 2] > alike]
        away = [float(np.linalg.norm(view.map_from_camera[:3, 3] - start[:3, 3])) for view in views]
        return [views[number] for number in np.argsort(away, kind="stable")[: self.settings.views]]

    def _voted(self, features: Features) -> list[SiftView]:
        """The views that the image's strongest features match most."""
        asked = features.descriptors[: self.settings.voters]
        votes = np.array([len(match(asked, view.descriptors)[0]) for view in self.views])
        return [self.views[number] for number in np.argsort(-votes, kind="stable")[: self.settings.views]]


def _windows(xyz: np.ndarray, pose: np.ndarray, share: float, camera: Camera) -> _Windows:
    """Of places `(K, 3)`, for cameras up to `share` of the prior's box off a pose `(4, 4)`: what its corners see."""
    corners = torch.from_numpy(share * BOX * np.array(list(product((-1, 1), repeat=6))))
    camera_from_map = se3.inverse(torch.from_numpy(pose) @ se3.exp(corners))
    seen = se3.apply(camera_from_map, torch.from_numpy(xyz))
    pixels, depth = project_pinhole(torch.from_numpy(camera.intrinsics), seen)
    low, high = pixels.amin(0), pixels.amax(0)
    low[depth.amin(0) < NEAREST] = torch.inf  # nothing lies in such a window
    return _Windows(low.numpy(), high.numpy())
