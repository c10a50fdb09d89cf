"""Alignment to the image from a first guess: the pose near it at which a cost of the visible map points is least.

Coarse to fine: differential evolution (Storn, Price 1997) searches the guess's box, Nelder-Mead goes down from the best
pose that it found, and from there what is visible is found anew. What fits is the business of a `Measure`: `nid`,
`depth_edges`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from scipy.optimize import differential_evolution, minimize
from scipy.spatial.transform import Rotation
from scipy.stats import qmc

from ep2ploc_core.camera import Camera
from ep2ploc_core.grey_image import grey_image
from ep2ploc_core.localization import Localization
from ep2ploc_core.map.point_map import MapSource
from ep2ploc_core.map.unit import MapInUnits, scaled_pose, unit_of
from ep2ploc_core.map.visible_points import VisiblePoints, visible_points
from ep2ploc_core.pose.prior_box import BOX, share_of_box

NO_FIT = 0.0  # the cost of a pose at which nothing fits better than by chance


@dataclass(frozen=True)
class Problem:
    """What is aligned: points xyz `(M, 3)`, as in `VisiblePoints`, and how well they fit where they lie in the image:
    cost(pixels `(M, 2)` float32, which of them are inside the image `(M,)` bool), NO_FIT or less, the lower the better.
    """

    xyz: np.ndarray
    cost: Callable[[np.ndarray, np.ndarray], float]


class Measure(Protocol):
    """How well map points fit an image."""

    def problem(
        self, grey: np.ndarray, camera: Camera, seen: VisiblePoints, spacing: float, most: int
    ) -> Problem | str:
        """For an image `(H, W)` uint8 of a pinhole and `most` of the points seen, which are `spacing` apart in the map;
        or why there is none."""


@dataclass(frozen=True)
class Stage:
    """The image is reduced to one `shrink`-th; `points` take part. Differential evolution searches `spread` times the
    box around the pose so far, for `generations` of `population` poses; Nelder-Mead ends it, with a simplex of `step`
    times the box and `evaluations` of the cost at most."""

    shrink: int
    points: int
    spread: float
    population: int
    generations: int
    step: float
    evaluations: int


def coarse_to_fine(generations: int) -> tuple[Stage, ...]:
    """Nearly the whole box in an image of half the size, in so many generations; a fifth of it; a twentieth, in
    full."""
    return (
        Stage(2, 2000, 0.85, 128, generations, 0.05, 150),
        Stage(2, 3000, 0.2, 64, 12, 0.05, 150),
        Stage(1, 3000, 0.05, 64, 8, 0.02, 200),
    )


@dataclass(frozen=True)
class AlignmentPlan:
    """The stages, the share by which the image is widened so that a wrong guess does not lose what the camera sees, and
    what is asked of a pose: `least_contrast`: by how many standard deviations of the costs all over the box its own
    has to lie below their median, in the first stage."""

    stages: tuple[Stage, ...]
    least_contrast: float
    margin: float = 0.15
    least_points: int = 60


@dataclass(frozen=True)
class _Lowest:
    """The pose `(4, 4)` of least cost, and by how many standard deviations it lies below the median of the box."""

    map_from_camera: np.ndarray
    contrast: float


class AlignmentFinder:
    """Finds poses in one map by aligning the points seen from the first guess."""

    def __init__(self, point_map: MapSource, measure: Measure, plan: AlignmentPlan) -> None:
        self.point_map = point_map
        self.measure = measure
        self.plan = plan

    def localize(self, image: np.ndarray, camera: Camera, prior: np.ndarray | None = None) -> Localization:
        """As `Localizer.localize`, but without a covariance, and refused where there is no prior."""
        begin = time.perf_counter()
        grey, pinhole = grey_image(image, camera)
        if prior is None:
            return _refuse("alignment begins at a first guess of the pose, and none was given", begin)
        units = MapInUnits(self.point_map)
        start = scaled_pose(prior, 1 / units.unit)
        pose, contrast, aligned = start, 0.0, 0
        for number, stage in enumerate(self.plan.stages):
            seen_by = pinhole.resize(max(1, pinhole.width // stage.shrink), max(1, pinhole.height // stage.shrink))
            small = cv2.resize(grey, (seen_by.width, seen_by.height), interpolation=cv2.INTER_AREA)
            seen = visible_points(units, pose, seen_by, self.plan.margin)
            if len(seen) < self.plan.least_points:
                return _refuse("too few map points are visible from where the camera should be", begin)
            problem = self.measure.problem(small, seen_by, seen, units.voxel_size, stage.points)
            if isinstance(problem, str):
                return _refuse(problem, begin)
            lowest = _descend(problem, seen_by, pose, stage)
            pose, aligned = lowest.map_from_camera, len(problem.xyz)
            contrast = lowest.contrast if number == 0 else contrast
        reason = self._doubt(start, pose, contrast)
        found = Localization(
            "refused" if reason else "ok",
            reason,
            None if reason else pose,
            candidate=pose,
            num_matches=aligned,
        ).scaled(unit_of(self.point_map.voxel_size))
        found.seconds = time.perf_counter() - begin
        return found

    def _doubt(self, start: np.ndarray, pose: np.ndarray, contrast: float) -> str:
        """Why the pose should not be believed; empty when nothing speaks against it."""
        if share_of_box(start, pose) > 1:
            return "the best pose lies at the limit of what the prior pose allows"
        if contrast < self.plan.least_contrast:
            return f"no pose fits much better than those around it (by {contrast:.1f} standard deviations)"
        return ""


def _refuse(reason: str, begin: float) -> Localization:
    return Localization("refused", reason, seconds=time.perf_counter() - begin)


def _descend(problem: Problem, camera: Camera, map_from_camera: np.ndarray, stage: Stage) -> _Lowest:
    """The pose of least cost around the one `(4, 4)` that the points of the problem were seen from."""
    points = problem.xyz @ map_from_camera[:3, :3].astype(np.float32)  # in the axes of the camera there
    focal, centre = camera.intrinsics[:2].astype(np.float32), camera.intrinsics[2:].astype(np.float32)
    size = np.array([camera.width, camera.height], np.float32) - 1

    def cost(share: np.ndarray) -> float:
        """At a pose moved by `share` `(6,)` of the box, along and about the axes of the camera."""
        way = share * BOX
        turn = Rotation.from_rotvec(way[3:]).as_matrix().astype(np.float32)
        moved = (points - way[:3].astype(np.float32)) @ turn
        depth = np.maximum(moved[:, 2:], 1e-3)
        pixels = moved[:, :2] / depth * focal + centre
        inside = (moved[:, 2] > 0.3) & (pixels >= 0).all(1) & (pixels <= size).all(1)
        return problem.cost(pixels, inside)

    best, contrast = np.zeros(6), 0.0
    if stage.generations:
        first = stage.spread * (2 * qmc.Sobol(6, seed=0).random(stage.population) - 1)
        costs = np.array([cost(share) for share in first])
        bounds = [(-stage.spread, stage.spread)] * 6
        found = differential_evolution(
            cost, bounds, init=first, x0=best, maxiter=stage.generations, tol=0, polish=False, seed=0
        )
        best = found.x
        contrast = (float(np.median(costs)) - found.fun) / max(float(costs.std()), 1e-12)
    simplex = best + np.concatenate([np.zeros((1, 6)), stage.step * np.eye(6)])
    options = {"initial_simplex": simplex, "maxfev": stage.evaluations, "xatol": 1e-4, "fatol": 1e-6}
    best = minimize(cost, best, method="Nelder-Mead", options=options).x
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = Rotation.from_rotvec(best[3:] * BOX[3:]).as_matrix(), best[:3] * BOX[:3]
    return _Lowest(map_from_camera @ moved, contrast)
