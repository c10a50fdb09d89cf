"""The answer for one image."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ep2ploc_core.map.unit import scaled_covariance, scaled_pose
from ep2ploc_core.pose.belief import AlignmentEvidence, Evidence
from ep2ploc_core.refinement import Refinement


@dataclass
class Localization:
    """The answer for one image: a pose with its covariance, or a refusal with its reason.

    map_from_camera `(4, 4)` float64 and covariance `(6, 6)` (x y z rx ry rz, metres and radians, map axes; the tangent
    of `se3.perturb`) are None when refused; candidate `(4, 4)` is the best pose all the same, for evaluation, None when
    none was looked for. points_map `(M, 3)` and pixels `(M, 2)` of the given image: the inliers. refinement: by feature
    alignment; sharpening: by its finest features, from where that led. focal_ratio: by what share of the focal length
    given the landmarks of this camera's images so far were seen best, None where none told.
    """

    status: str
    reason: str = ""
    map_from_camera: np.ndarray | None = None
    covariance: np.ndarray | None = None
    candidate: np.ndarray | None = None
    num_matches: int = 0
    num_inliers: int = 0
    belief: float = 0.0
    evidence: Evidence | AlignmentEvidence | None = None
    refinement: Refinement | None = None
    sharpening: Refinement | None = None
    focal_ratio: float | None = None
    seconds: float = 0.0
    points_map: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    pixels: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))

    @property
    def refinements(self) -> list[Refinement]:
        """Those that were tried, in their order."""
        return [one for one in (self.refinement, self.sharpening) if one is not None]

    def scaled(self, factor: float) -> Localization:
        """In lengths `factor` times as long."""

        def pose(given: np.ndarray | None) -> np.ndarray | None:
            return None if given is None else scaled_pose(given, factor)

        return replace(
            self,
            map_from_camera=pose(self.map_from_camera),
            candidate=pose(self.candidate),
            covariance=None if self.covariance is None else scaled_covariance(self.covariance, factor),
            refinement=None if self.refinement is None else self.refinement.scaled(factor),
            sharpening=None if self.sharpening is None else self.sharpening.scaled(factor),
            points_map=self.points_map * factor,
        )
