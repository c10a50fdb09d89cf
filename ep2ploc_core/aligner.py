"""The refinement by feature alignment of one image against one map: from where, of which points, how far."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ep2ploc_core import se3
from ep2ploc_core.datasets.sampling import start_sigma
from ep2ploc_core.errors import CheckpointError
from ep2ploc_core.matcher import BROKEN, Matcher, Surroundings
from ep2ploc_core.matching import Matching, first_points
from ep2ploc_core.model.ep2ploc import PointView
from ep2ploc_core.pose.alignment_trace import trace_alignment
from ep2ploc_core.pose.feature_alignment import AlignmentSettings, align_features
from ep2ploc_core.refinement import Refinement

LEAST_SHOWN = 0.5  # share of the points that mapping images show; where it is less, points expect mere guesses


class Aligner:
    """Refines poses of the image that a matcher matches, by what the settings ask for."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._network, self._settings, self._query = matcher.network, matcher.settings, matcher.query

    def is_wanted(self, view: PointView) -> bool:
        """Whether the pose found from these points is to be refined; "auto" leaves it where no images made the map."""
        if self._settings.refine == "none" or self._network.alignment_head is None:
            return False
        return self._settings.refine != "auto" or self.is_shown(view)

    def is_shown(self, view: PointView) -> bool:
        """Whether mapping images show most of the points."""
        assert self._network.alignment_head is not None
        known = self._network.alignment_head.known(view.appearance)
        return known is not None and float(known.float().mean()) > LEAST_SHOWN

    def align(self, around: Surroundings, matching: Matching) -> Refinement:
        """From the pose of the last pass."""
        pose = matching.map_from_camera
        view = replace(matching.view, camera_from_map=se3.inverse(pose)[None])
        view = first_points(view, self._settings.alignment_points)
        return self._align("search", around, view, pose, self._settings.alignment)

    def sharpen(self, around: Surroundings, map_from_camera: np.ndarray) -> Refinement | None:
        """From a pose `(4, 4)` in the map that is nearly right, by the finest features alone, of more points, those
        that are visible from there; None where too few are."""
        settings, pose = self._settings, around.local(map_from_camera)
        view = self._matcher.view(around, pose, replace(settings.passes[-1], points=settings.sharpening_points))
        return None if view is None else self._align("alignment", around, view, pose, settings.sharpening)

    def follow(self, around: Surroundings) -> Refinement | None:
        """From the prior itself; None where images do not show what the points look like: then nothing could tell."""
        settings = self._settings
        stage = replace(settings.passes[-1], points=settings.alignment_points)
        view = self._matcher.view(around, around.guess, stage)
        if view is None or not self.is_shown(view):
            return None
        return self._align("prior", around, view, around.guess, settings.following)

    def _align(
        self, of: str, around: Surroundings, view: PointView, start: Tensor, settings: AlignmentSettings
    ) -> Refinement:
        """The view's points aligned from a pose `(4, 4)` relative to the local origin, in the map. It may move as far
        as that pose may be wrong."""
        query, network, device = self._query, self._network, start.device
        query.dense = query.dense or network.dense_features(query.features)
        levels = network.align_to(query.dense, torch.zeros(1, dtype=torch.long, device=device), view)
        levels = levels[-1:] if of == "alignment" else levels
        farthest = self._settings.greatest_distance if of == "prior" else self._settings.passes[-1].scale
        prior = torch.from_numpy(start_sigma(1.0)).float().to(device)
        found = align_features(levels, view.xyz, start[None], query.intrinsics, settings, prior)
        if found.covariance is None:
            raise CheckpointError(BROKEN)
        trace = trace_alignment(levels, view.xyz, query.intrinsics, found) if self._settings.trace else None
        return Refinement.of_alignment(of, found, view.xyz, query.scale, farthest, trace).moved(around.origin)
