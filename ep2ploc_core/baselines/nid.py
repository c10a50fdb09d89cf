"""Alignment by normalized information distance: how little an image's grey values and a LiDAR's intensities say of each
other (Pascoe, Maddern, Newman: Robust direct visual localisation using normalised information distance, BMVC 2015;
Koide et al.: General, single-shot, target-less, and automatic LiDAR-camera extrinsic calibration toolbox, ICRA 2023).

NID = 1 - I(X; Y) / H(X, Y): 0 where each determines the other, 1 where they are independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from ep2ploc_core.baselines.alignment import NO_FIT, AlignmentPlan, Problem, coarse_to_fine
from ep2ploc_core.camera import Camera
from ep2ploc_core.grey_image import values_at
from ep2ploc_core.map.visible_points import VisiblePoints, spread_points

# Standard deviations that are surely noise, of intensities 0..1 and of grey values 0..255.
INTENSITY_NOISE, GREY_NOISE = 0.03, 8.0

NID_PLAN = AlignmentPlan(coarse_to_fine(generations=40), least_contrast=12.0)


@dataclass(frozen=True)
class InformationDistance:
    """The measure. Points count by how much brighter they are than the others in their cube of `cell` units: shadows
    lie in the image alone, and intensity falls with range and angle. Histograms have `bins` steps on each side, those
    of grey from -`widest` to `widest` standard deviations. A pose has to keep `least_inside` of the points inside the
    image: of few points chance makes any distance."""

    bins: int = 6
    cell: float = 4.0
    widest: float = 1.8
    least_inside: float = 0.4
    least_points: int = 500

    def problem(
        self, grey: np.ndarray, camera: Camera, seen: VisiblePoints, spacing: float, most: int
    ) -> Problem | str:
        """Of the points that have an intensity: 0 stands for one that was not measured."""
        known = seen.select(np.flatnonzero(seen.attributes[:, 0] > 0))
        if len(known) < self.least_points:
            return f"only {len(known)} of the map points seen from there have an intensity"
        cube = _cubes(known.xyz, self.cell)
        contrast = local_contrast(known.attributes[:, 0], cube, INTENSITY_NOISE)
        chosen = spread_points(known.pixels, most)
        row = (rankdata(contrast[chosen]) * (self.bins / (len(chosen) + 1))).astype(np.int64)
        cube, values = cube[chosen], grey.astype(np.float32)

        def cost(pixels: np.ndarray, inside: np.ndarray) -> float:
            if inside.mean() < self.least_inside:
                return NO_FIT
            shown = values_at(values, pixels[inside])
            above = local_contrast(shown, cube[inside], GREY_NOISE)
            column = (above / (2 * self.widest) + 0.5).clip(0, 1) * (self.bins - 1)
            return nid(self._joint(row[inside], column)) - 1

        return Problem(known.xyz[chosen], cost)

    def _joint(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """The joint histogram `(bins, bins)` of whole rows and of columns `(N,)` that count in both steps that they lie
        between, each by its nearness."""
        lower = np.minimum(column.astype(np.int64), self.bins - 2)
        share = column - lower
        cells, count = row * self.bins + lower, self.bins * self.bins
        joint = np.bincount(cells, 1 - share, count) + np.bincount(cells + 1, share, count)
        return joint.reshape(self.bins, self.bins)


def nid(joint: np.ndarray) -> float:
    """Normalized information distance, 0..1, of a joint histogram `(A, B)`; 1 where both are of a single value."""
    joint = joint / max(joint.sum(), 1e-12)
    whole = _entropy(joint)
    return 1.0 if whole <= 0 else 1 - (_entropy(joint.sum(0)) + _entropy(joint.sum(1)) - whole) / whole


def local_contrast(values: np.ndarray, group: np.ndarray, noise: float) -> np.ndarray:
    """By how many of their standard deviations, `noise` added, values `(N,)` lie above the mean of their group
    `(N,)`."""
    count = np.maximum(np.bincount(group), 1)
    above = values - (np.bincount(group, values) / count)[group]
    deviation = np.sqrt(np.bincount(group, above**2) / count)
    contrast: np.ndarray = above / (deviation + noise)[group]
    return contrast


def _cubes(xyz: np.ndarray, edge: float) -> np.ndarray:
    """The number `(N,)` of the cube that each of the points `(N, 3)` lies in."""
    _, cube = np.unique(np.floor(xyz / edge).astype(np.int64), axis=0, return_inverse=True)
    return cube.ravel()


def _entropy(shares: np.ndarray) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())
