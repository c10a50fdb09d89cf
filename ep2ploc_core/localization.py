"""The answer for one image, and what refining it did."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ep2ploc_core.map.unit import scaled_covariance, scaled_pose
from ep2ploc_core.pose.alignment_trace import AlignmentTrace
from ep2ploc_core.pose.belief import Evidence
from ep2ploc_core.se3 import moved


@dataclass
class Refinement:
    """What refining a pose by feature alignment did. of: the "search", or the "prior" alone. given_up: why its result
    was not taken, empty where it was. cost_before, cost_after: mean robust difference of the finest features;
    likeness_before, likeness_after: how much more alike points and image are than by chance, 0..1
    (`pose.feature_alignment`). poses `(K + 1, 4, 4)`: map_from_camera, step by step, the start first; covariance
    `(6, 6)` of the last. trace: with pixels of the given image, undistorted; only where it was asked for."""

    of: str
    given_up: str
    cost_before: float
    cost_after: float
    likeness_before: float
    likeness_after: float
    poses: np.ndarray
    covariance: np.ndarray
    trace: AlignmentTrace | None = None

    @property
    def likeness(self) -> float:
        """Of the pose that was taken, the last or, where that was given up, the first."""
        return self.likeness_before if self.given_up else self.likeness_after

    @property
    def iterations(self) -> int:
        """How many steps were tried."""
        return len(self.poses) - 1

    def __str__(self) -> str:
        if self.given_up:
            return f"given up: {self.given_up}"
        return f"taken after {self.iterations} steps: cost {self.cost_before:.3f} -> {self.cost_after:.3f}"

    def moved(self, shift: np.ndarray) -> Refinement:
        """In a frame whose origin lies at -`shift` `(3,)`."""
        trace = self.trace and replace(self.trace, points_map=self.trace.points_map + shift)
        return replace(self, poses=moved(self.poses, shift), trace=trace)

    def scaled(self, factor: float) -> Refinement:
        """In lengths `factor` times as long."""
        trace = self.trace and replace(self.trace, points_map=self.trace.points_map * factor)
        covariance = scaled_covariance(self.covariance, factor)
        return replace(self, poses=scaled_pose(self.poses, factor), covariance=covariance, trace=trace)


@dataclass
class Localization:
    """The answer for one image: a pose with its covariance, or a refusal with its reason.

    map_from_camera `(4, 4)` float64 and covariance `(6, 6)` (x y z rx ry rz, metres and radians, map axes; the tangent
    of `se3.perturb`) are None when refused; candidate `(4, 4)` is the best pose all the same, for evaluation, None when
    none was looked for. points_map `(M, 3)` and pixels `(M, 2)` of the given image: the inliers.
    """

    status: str
    reason: str = ""
    map_from_camera: np.ndarray | None = None
    covariance: np.ndarray | None = None
    candidate: np.ndarray | None = None
    num_matches: int = 0
    num_inliers: int = 0
    belief: float = 0.0
    evidence: Evidence | None = None
    refinement: Refinement | None = None
    seconds: float = 0.0
    points_map: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    pixels: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))

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
            points_map=self.points_map * factor,
        )
