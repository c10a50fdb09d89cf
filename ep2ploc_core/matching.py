"""What the stages of the localizer hand on to each other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ep2ploc_core.camera import Camera
from ep2ploc_core.landmarks.sighting import Sighting
from ep2ploc_core.localization import Localization
from ep2ploc_core.model.alignment_head import DenseFeatures
from ep2ploc_core.model.ep2ploc import ImageFeatures, PointView
from ep2ploc_core.model.patch_classifier import PatchScores
from ep2ploc_core.pose.jackknife import Jackknife


@dataclass
class Query:
    """An image as the network sees it: features, the pinhole of that size, the scale back to the given image; as
    landmarks are looked for in it; and, once a pose was refined, `dense` features."""

    features: ImageFeatures
    camera: Camera
    intrinsics: Tensor
    scale: np.ndarray
    sighting: Sighting
    dense: list[DenseFeatures] | None = None


@dataclass
class Matches:
    """2D-3D matches: points `(M, 3)` relative to the local origin, pixels `(M, 2)` of the network's image, weights."""

    points: np.ndarray
    pixels: np.ndarray
    weights: np.ndarray


@dataclass
class Matching:
    """Scores of the points visible from one pose, `view` and `scores` of batch size 1; and the pose that fits them
    best, `map_from_camera` `(4, 4)` float32, relative to the local origin, with its covariances `(6, 6)`."""

    view: PointView
    scores: PatchScores
    map_from_camera: Tensor
    covariance: Tensor
    jackknife: Jackknife | None = None  # of the last pass


def show_inliers(found: Localization, matches: Matches, agreeing: np.ndarray, query: Query, origin: np.ndarray) -> None:
    """Takes those of the matches `(M,)` that agree with the pose for its inliers."""
    found.num_inliers = int(agreeing.sum())
    found.points_map = matches.points[agreeing] + origin
    found.pixels = (matches.pixels[agreeing] + 0.5) * query.scale - 0.5


def first_points(view: PointView, count: int) -> PointView:
    """The view with `count` of its points, or all if there are fewer; the first are spread over the image as evenly as
    all."""
    return replace(
        view, xyz=view.xyz[:, :count], attributes=view.attributes[:, :count], descriptors=view.descriptors[:, :count],
        valid=view.valid[:, :count], appearance=None if view.appearance is None else view.appearance[:, :count],
    )  # fmt: skip
