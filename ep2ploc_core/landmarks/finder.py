"""Poses from landmarks: features of the image are matched with those of the mapping run's images, whose places in the
map are known, and the pose is solved from the matches (as in Sattler, Leibe, Kobbelt: Efficient and effective
prioritized matching for large-scale image-based localization, PAMI 2017; places from the LiDAR instead of structure
from motion)."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch

from ep2ploc_core import se3
from ep2ploc_core.camera import Camera, project_pinhole
from ep2ploc_core.landmarks.features import Features, Windows, match, match_in_windows
from ep2ploc_core.landmarks.landmark_view import LandmarkView
from ep2ploc_core.pose.pnp import refine, reprojection_errors, solve_ransac
from ep2ploc_core.pose.prior_box import BOX, share_of_box

NEAREST = 0.5  # in units of `map.unit`; places nearer than that are not matched


@dataclass(frozen=True)
class LandmarkSettings:
    """views: how many mapping images are matched: those nearest to the first guess that look the same way within
    `turned` degrees; without one, those with most matches among the strongest `voters` features of either, of which the
    best `kept` are held in memory. threshold: pixels beyond which a match is surely wrong; scale: pixels at which the
    robust cost begins to discount one. second_round: the share of the prior's box that the first round's pose may be
    off. least_inliers: features of the image that have to agree with a pose in the first round. rival_distance: units
    beyond which images show another place; farthest_view: and within which the nearest matched image has to be of the
    pose."""

    views: int = 8
    turned: float = 60.0
    voters: int = 500
    kept: int = 200
    threshold: float = 8.0
    scale: float = 2.0
    second_round: float = 0.15
    least_inliers: int = 12
    rival_distance: float = 15.0
    farthest_view: float = 25.0


@dataclass
class LandmarkMatches:
    """Which `feature` `(M,)` of the image, at `pixels` `(M, 2)`, shows which place `xyz` `(M, 3)`."""

    feature: np.ndarray
    pixels: np.ndarray
    xyz: np.ndarray


@dataclass
class LandmarkPose:
    """What the landmarks tell: map_from_camera `(4, 4)` in units; its covariance `(6, 6)` from the scatter of the
    inliers, which knows nothing of the errors that they share; the matches, and which of them are inliers `(M,)`.
    unguided: the matches that are evidence, of the first round; those of the second were looked for where they had to
    be. num_agreeing: how many features of the image have one that agreed."""

    map_from_camera: np.ndarray
    covariance: np.ndarray
    matches: LandmarkMatches
    inliers: np.ndarray
    unguided: LandmarkMatches
    num_agreeing: int


class LandmarkFinder:
    """Finds poses among the landmarks of a map, all in units of `map.unit`."""

    def __init__(self, settings: LandmarkSettings = LandmarkSettings()) -> None:
        self.settings = settings

    def find(
        self, features: Features, camera: Camera, views: list[LandmarkView], start: np.ndarray
    ) -> LandmarkPose | None:
        """The pose of a pinhole within the box around a first guess `(4, 4)`; None where the landmarks give none."""
        views = self._near(views, start)
        windows = [_windows(view.xyz, start, 1.0, camera) for view in views]
        found = self._find(features, camera, views, windows)
        return found if found is not None and share_of_box(start, found.map_from_camera) <= 1 else None

    def recognize(self, features: Features, camera: Camera, views: Iterable[LandmarkView]) -> list[LandmarkPose]:
        """The pose without a first guess, and the best of another place, the rival, where there is one; none or one
        where the landmarks give no more."""
        voted = self._voted(features, views)
        best = self._find(features, camera, voted[: self.settings.views], None)
        if best is None:
            return []
        away = [np.linalg.norm((view.map_from_camera - best.map_from_camera)[:3, 3]) for view in voted]
        others = [view for view, far in zip(voted, away, strict=True) if far > self.settings.rival_distance]
        rival = self._find(features, camera, others[: self.settings.views], None)
        return [best] if rival is None else [best, rival]

    def agreeing(self, found: LandmarkPose, map_from_camera: np.ndarray, camera: Camera) -> int:
        """How many features of the image have an unguided match that agrees with a pose `(4, 4)`."""
        matches = found.unguided
        errors = reprojection_errors(map_from_camera, matches.xyz, matches.pixels, camera.matrix)
        return len(np.unique(matches.feature[errors < 3 * self.settings.scale]))

    def _find(
        self, features: Features, camera: Camera, views: list[LandmarkView], windows: list[Windows] | None
    ) -> LandmarkPose | None:
        """Two rounds: the second matches again what the pose found in the first one puts near a feature. windows: where
        in the image the features of each view may be; None: anywhere."""
        first = self._solve(features, camera, views, windows)
        if first is None or first.num_agreeing < self.settings.least_inliers:
            return None
        away = [np.linalg.norm((view.map_from_camera - first.map_from_camera)[:3, 3]) for view in views]
        if not min(away) < self.settings.farthest_view:  # one clump of features says little of where the camera is
            return None
        share = self.settings.second_round
        windows = [_windows(view.xyz, first.map_from_camera, share, camera) for view in views]
        again = self._solve(features, camera, views, windows)
        if again is None or again.num_agreeing <= first.num_agreeing:
            return first
        return replace(again, unguided=first.unguided, num_agreeing=first.num_agreeing)

    def _solve(
        self, features: Features, camera: Camera, views: list[LandmarkView], windows: list[Windows] | None
    ) -> LandmarkPose | None:
        feature, xyz = [np.zeros(0, np.int64)], [np.zeros((0, 3))]
        for number, view in enumerate(views):
            if windows is None:
                mine, theirs = match(features.root, view.root)
            else:
                mine, theirs = match_in_windows(features, view.root, windows[number])
            feature.append(mine)
            xyz.append(view.xyz[theirs])
        matched, places = np.concatenate(feature), np.concatenate(xyz)
        matches = LandmarkMatches(matched, features.pixels[matched].astype(np.float64), places)
        start = solve_ransac(places, matches.pixels, camera.matrix, self.settings.threshold)
        if start is None:
            return None
        solved = refine(start, places, matches.pixels, np.ones(len(places)), camera.matrix, self.settings.scale)
        agreeing = len(np.unique(matched[solved.inliers]))
        return LandmarkPose(
            solved.map_from_camera, solved.covariance, matches, solved.inliers, matches, agreeing
        )  # fmt: skip

    def _near(self, views: list[LandmarkView], start: np.ndarray) -> list[LandmarkView]:
        """The views nearest to a first guess `(4, 4)` that look about the same way."""
        alike = np.cos(np.radians(self.settings.turned))
        views = [view for view in views if view.map_from_camera[:3, 2] @ start[:3, 2] > alike]
        away = [float(np.linalg.norm(view.map_from_camera[:3, 3] - start[:3, 3])) for view in views]
        return [views[number] for number in np.argsort(away, kind="stable")[: self.settings.views]]

    def _voted(self, features: Features, views: Iterable[LandmarkView]) -> list[LandmarkView]:
        """The views, those first that the image's strongest features match most."""
        asked = features.root[: self.settings.voters]
        voted = ((len(match(asked, view.strongest(self.settings.voters).root)[0]), view) for view in views)
        return [view for _, view in heapq.nlargest(self.settings.kept, voted, key=lambda one: one[0])]


def _windows(xyz: np.ndarray, pose: np.ndarray, share: float, camera: Camera) -> Windows:
    """Of places `(K, 3)`, for cameras up to `share` of the prior's box off a pose `(4, 4)`: what its corners see."""
    corners = torch.from_numpy(share * BOX * np.array(list(product((-1, 1), repeat=6))))
    turned = torch.tensor(pose)
    turned[:3, 3] = 0  # near the camera float32 is fine to a thousandth of a pixel, and twice as fast
    camera_from_near = se3.inverse(turned @ se3.exp(corners)).float()
    seen = se3.apply(camera_from_near, torch.from_numpy(xyz - pose[:3, 3]).float())
    pixels, depth = project_pinhole(torch.from_numpy(camera.intrinsics).float(), seen)
    low, high = pixels.amin(0), pixels.amax(0)
    outside = (high < 0).any(1) | (low > torch.tensor([camera.width, camera.height])).any(1)
    low[outside | (depth.amin(0) < NEAREST)] = torch.inf  # nothing lies in such a window
    return Windows(low.numpy(), high.numpy())
