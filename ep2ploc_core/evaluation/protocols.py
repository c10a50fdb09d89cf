"""Localize queries in a map, and compare with the truth: with a wrong first guess (tracking) or with none (global).

What they leak: tracking, that the truth lies within a known box around the start; global, nothing. What neither must
leak: the queries' own scans and images and their neighbours have to be left out of the map and of the adaptation to it
(`ep2ploc map build --hold-out QUERIES`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ep2ploc_core import se3
from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.queries import Queries
from ep2ploc_core.datasets.sampling import START_RANGE, draw_start
from ep2ploc_core.evaluation.calibration import PARTS, mahalanobis_squared
from ep2ploc_core.evaluation.metrics import WRONG_METRES, error_row, summarize, summarize_foreign
from ep2ploc_core.evaluation.shown import show, true_poses
from ep2ploc_core.localization import Localization
from ep2ploc_core.pose.belief import AlignmentEvidence, Evidence
from ep2ploc_core.refinement import Refinement

Progress = Callable[[int, int], None]


class PoseFinder(Protocol):
    """What is judged: `Localizer`, or anything that answers as it does."""

    def localize(self, image: np.ndarray, camera: Camera, prior: np.ndarray | None = None) -> Localization:
        """See `Localizer.localize`."""


@dataclass(frozen=True)
class TrackingProtocol:
    """Start errors drawn uniformly up to `metres` (a quarter of it up and down) and `degrees` of yaw (three tenths of
    pitch and roll), `repeats` for each query; up and down, pitch and roll never by more than START_RANGE, for wherever
    a robot is lost, it stands on its wheels. `swap`: each query gets the image of another one, half the drive away: a
    network that looks at the image must do badly then."""

    metres: float = 2.0
    degrees: float = 10.0
    repeats: int = 1
    seed: int = 0
    swap: bool = False


@dataclass(frozen=True)
class GlobalProtocol:
    """Each query once, without any first guess. `swap`: each query gets the image of another one, half the drive away,
    and is compared with its own truth all the same: the right answer lies at the other image's place, so whatever still
    comes out right came from something else than the image."""

    swap: bool = False


def evaluate_tracking(
    finder: PoseFinder,
    queries: Queries,
    protocol: TrackingProtocol,
    progress: Progress = lambda done, total: None,
    foreign: Queries | None = None,
) -> dict[str, Any]:
    """`{"protocol", "summary", "results": a row per query and start}`, and the same for the starts: `"start"`,
    `"start_results"`.

    foreign: queries of another site, whose images are shown in place of the right ones at the same starts; there are no
    errors then, and every pose given is a false accept. Raises InputError when there is nothing to compare with.
    """
    truths = true_poses(queries)
    rng = np.random.default_rng(protocol.seed)
    rows: list[dict[str, Any]] = []
    starts: list[dict[str, Any]] = []
    total = len(queries) * protocol.repeats
    scale = _start_scale(protocol)
    for query, truth in enumerate(truths):
        shown = show(queries, query, protocol.swap, foreign)
        for _ in range(protocol.repeats):
            error = draw_start(rng, 1.0) * scale
            start = truth @ se3.exp(torch.from_numpy(error)).numpy()
            result = finder.localize(shown.image, shown.camera, start)
            rows.append({**shown.name, **judge(result, None if foreign else truth, shown.taken)})
            errors = {**error_row(start, truth), **error_row(start, truth, "candidate_")}
            starts.append({**shown.name, "status": "ok", **errors})
            progress(len(rows), total)
    return {
        "protocol": {"name": "tracking", **asdict(protocol), "foreign": foreign and str(foreign.path)},
        "summary": summarize_foreign(rows) if foreign else summarize(rows),
        "start": summarize(starts),
        "results": rows,
        "start_results": starts,
    }


def evaluate_global(
    finder: PoseFinder,
    queries: Queries,
    protocol: GlobalProtocol,
    progress: Progress = lambda done, total: None,
    foreign: Queries | None = None,
) -> dict[str, Any]:
    """`{"protocol", "summary", "results": a row per query}`. The rest as in `evaluate_tracking`."""
    truths = true_poses(queries)
    rows: list[dict[str, Any]] = []
    for query, truth in enumerate(truths):
        shown = show(queries, query, protocol.swap, foreign)
        result = finder.localize(shown.image, shown.camera, None)
        rows.append({**shown.name, **judge(result, None if foreign else truth, shown.taken)})
        progress(len(rows), len(queries))
    return {
        "protocol": {"name": "global", **asdict(protocol), "foreign": foreign and str(foreign.path)},
        "summary": summarize_foreign(rows) if foreign else summarize(rows),
        "results": rows,
    }


def _start_scale(protocol: TrackingProtocol) -> np.ndarray:
    """By how much `(6,)` the errors of `draw_start` are to be larger."""
    metres, degrees = protocol.metres / START_RANGE[0], math.radians(protocol.degrees) / START_RANGE[4]
    return np.array([metres, min(metres, 1), metres, min(degrees, 1), degrees, min(degrees, 1)])


def result_row(result: Localization) -> dict[str, Any]:
    """The promised form of one result in JSON."""
    pose, covariance = result.map_from_camera, result.covariance
    numbers = [] if pose is None else [*pose[:3, 3], *se3.to_quaternion(pose)]
    return {
        "status": result.status,
        "pose": None if pose is None else ",".join(f"{number:.6f}" for number in numbers),
        "map_from_camera": None if pose is None else pose.tolist(),
        "covariance": None if covariance is None else covariance.tolist(),
        "num_matches": result.num_matches,
        "num_inliers": result.num_inliers,
        "belief": round(result.belief, 4),
        "evidence": None if result.evidence is None else _evidence_row(result.evidence),
        "refinement": None if result.refinement is None else _refinement_row(result.refinement),
        "sharpening": None if result.sharpening is None else _refinement_row(result.sharpening),
        "focal_ratio": None if result.focal_ratio is None else round(result.focal_ratio, 4),
        "reason": result.reason,
        "seconds": round(result.seconds, 4),
    }


def _evidence_row(evidence: Evidence | AlignmentEvidence) -> dict[str, Any]:
    return {name: None if value is None else round(value, 5) for name, value in asdict(evidence).items()}


def _refinement_row(refinement: Refinement) -> dict[str, Any]:
    return {
        "of": refinement.of,
        "given_up": refinement.given_up,
        "iterations": refinement.iterations,
        "cost_before": round(refinement.cost_before, 5),
        "cost_after": round(refinement.cost_after, 5),
        "likeness_before": round(refinement.likeness_before, 5),
        "likeness_after": round(refinement.likeness_after, 5),
    }


def judge(result: Localization, truth: np.ndarray | None, taken: np.ndarray | None) -> dict[str, Any]:
    """A result's row, with its errors where there is a truth `(4, 4)`, and whether it is a false accept: a pose given
    that is not where the image was `taken` `(4, 4)`, None if that was outside the map."""
    row = result_row(result)
    if result.map_from_camera is not None:
        row["false_accept"] = taken is None or se3.pose_error(result.map_from_camera, taken)[0] > WRONG_METRES
    if truth is None:
        return row
    row |= error_row(result.map_from_camera, truth) | error_row(result.candidate, truth, "candidate_")
    if result.map_from_camera is not None and result.covariance is not None:
        squared = mahalanobis_squared(result.map_from_camera, truth, result.covariance)
        for part in PARTS:
            value = squared[part]
            row[f"{part}_mahalanobis_squared"] = None if value is None else round(value, 3)
    return row
