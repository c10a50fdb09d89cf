"""What refining a pose by feature alignment did, and whether it made things worse."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ep2ploc_core import se3
from ep2ploc_core.datasets.sampling import START_RANGE
from ep2ploc_core.map.unit import scaled_covariance, scaled_pose
from ep2ploc_core.pose.alignment_trace import AlignmentTrace
from ep2ploc_core.pose.belief import AlignmentEvidence
from ep2ploc_core.pose.feature_alignment import Alignment
from ep2ploc_core.se3 import moved

LEAST_KEPT_INSIDE = 0.9  # of the points' weight in the image
LED_AWAY = "it left the surroundings of the pose that it began with"


@dataclass
class Refinement:
    """What refining a pose by feature alignment did. of: the "search", the "alignment" of that, which is sharpened, or
    the "prior" alone. given_up: why its result was not taken, empty where it was. cost_before, cost_after: mean robust
    difference of the finest features;
    likeness_before, likeness_after: how much more alike points and image are than by chance, 0..1
    (`pose.feature_alignment`); least_likeness_before: in the part of the image where it is least. poses `(K + 1, 4,
    4)`: map_from_camera, step by step, the start first; covariance `(6, 6)` of the last, and the evidence for it.
    points_map `(M, 3)` and pixels `(M, 2)` of the given image: those of the `num_points` in it that find there more of
    what they expect than others would. trace: with pixels of the given image, undistorted; only where it was asked
    for."""

    of: str
    given_up: str
    cost_before: float
    cost_after: float
    likeness_before: float
    likeness_after: float
    least_likeness_before: float
    poses: np.ndarray
    covariance: np.ndarray
    evidence: AlignmentEvidence
    num_points: int
    points_map: np.ndarray
    pixels: np.ndarray
    trace: AlignmentTrace | None = None

    @property
    def likeness(self) -> float:
        """Of the pose that was taken, the last or, where that was given up, the first."""
        return self.likeness_before if self.given_up else self.likeness_after

    @property
    def least_likeness(self) -> float:
        """The same in the part of the image where it is least."""
        return self.least_likeness_before if self.given_up else self.evidence.least

    @property
    def led_away(self) -> bool:
        """Whether it was given up since it went farther than the pose that it began with should be wrong."""
        return self.given_up == LED_AWAY

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
        return replace(self, poses=moved(self.poses, shift), points_map=self.points_map + shift, trace=trace)

    def scaled(self, factor: float) -> Refinement:
        """In lengths `factor` times as long."""
        trace = self.trace and replace(self.trace, points_map=self.trace.points_map * factor)
        covariance = scaled_covariance(self.covariance, factor)
        poses, points = scaled_pose(self.poses, factor), self.points_map * factor
        return replace(self, poses=poses, covariance=covariance, points_map=points, trace=trace)

    @classmethod
    def of_alignment(
        cls, of: str, found: Alignment, xyz: Tensor, scale: np.ndarray, farthest: float, trace: AlignmentTrace | None
    ) -> Refinement:
        """From the alignment, with covariance, of a single view of points `xyz` `(1, N, 3)` in units. It is given up
        where it made the cost higher, moved the pose by more than `farthest` times START_RANGE, or lost points out of
        the image. scale `(2,)`: from pixels that were aligned to those of the given image."""
        assert found.covariance is not None
        poses = torch.cat(found.track).double().cpu().numpy()
        covariance = found.covariance[0].cpu().numpy()
        cost_before, cost_after = float(found.cost_before), float(found.cost_after)
        offset = se3.log(torch.from_numpy(np.linalg.inv(poses[0]) @ poses[-1])).numpy()
        way = float((np.abs(offset) / START_RANGE).max())
        given_up = ""
        if not found.inside_before > 0:
            given_up = "no point that could be aligned is in the image"
        elif not cost_after <= cost_before:  # nor where they are no numbers
            given_up = "it made the features less alike"
        elif way > farthest:
            given_up = LED_AWAY
        elif found.inside_after < LEAST_KEPT_INSIDE * found.inside_before:
            given_up = "it moved points out of the image"
        if trace is not None:
            trace = replace(trace, pixels=(trace.pixels + 0.5) * scale - 0.5)
        likeness, more = found.likeness_after, found.likeness_after.more[0].cpu()
        return cls(
            of=of,
            given_up=given_up,
            cost_before=cost_before,
            cost_after=cost_after,
            likeness_before=float(found.likeness_before.whole),
            likeness_after=float(likeness.whole),
            least_likeness_before=float(found.likeness_before.least),
            poses=poses,
            covariance=covariance,
            evidence=AlignmentEvidence(
                likeness=float(likeness.whole),
                least=float(likeness.least),
                sigma=math.sqrt(covariance[:3, :3].trace()),
                way=way,
                parts=int(likeness.parts),
            ),
            num_points=int(likeness.inside.sum()),
            points_map=xyz[0].cpu()[more].double().numpy(),
            pixels=(likeness.pixels[0].cpu()[more].double().numpy() + 0.5) * scale - 0.5,
            trace=trace,
        )
