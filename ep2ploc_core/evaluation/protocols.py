"""Tracking in an accumulated map: localize each query from wrong starts, and compare with the truth.

What it leaks: the start lies within a known box around the truth. What it must not leak: the query's own scan and its
neighbours have to be left out of the map (`ep2ploc map build --hold-out QUERIES`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from ep2ploc_core import se3
from ep2ploc_core.datasets.queries import Queries
from ep2ploc_core.datasets.sampling import START_RANGE, draw_start
from ep2ploc_core.errors import InputError
from ep2ploc_core.evaluation.metrics import axis_error, summarize
from ep2ploc_core.localizer import Localization, Localizer


@dataclass(frozen=True)
class TrackingProtocol:
    """Start errors drawn uniformly up to `metres` (a quarter of it up and down) and `degrees` of yaw (a third of pitch
    and roll), `repeats` for each query. `swap`: each query gets the image of another one, half the drive away: a
    network that looks at the image must do badly then."""

    metres: float = 2.0
    degrees: float = 10.0
    repeats: int = 1
    seed: int = 0
    swap: bool = False


def evaluate_tracking(
    localizer: Localizer,
    queries: Queries,
    protocol: TrackingProtocol,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, object]:
    """`{"protocol", "summary", "results": a row per query and start}`, and the same for the starts: `"start"`,
    `"start_results"`."""
    if queries.map_from_camera is None:
        raise InputError(f"{queries.path} has no poses.txt, so there is nothing to compare with.")
    rng = np.random.default_rng(protocol.seed)
    rows: list[dict[str, object]] = []
    starts: list[dict[str, object]] = []
    total = len(queries) * protocol.repeats
    scale = np.array([protocol.metres / START_RANGE[0]] * 3 + [math.radians(protocol.degrees) / START_RANGE[4]] * 3)
    for query in range(len(queries)):
        truth = queries.map_from_camera[query]
        shown = (query + len(queries) // 2) % len(queries) if protocol.swap else query
        image = queries.image(shown)
        for _ in range(protocol.repeats):
            error = draw_start(rng, 1.0) * scale
            start = truth @ se3.exp(torch.from_numpy(error)).numpy()
            result = localizer.localize(image, queries.camera, start)
            name = {"image": queries.image_paths[shown].name, "query": query}
            rows.append({
                **name,
                **result_row(result),
                **error_row(result.map_from_camera, truth),
                **error_row(result.candidate, truth, "candidate_"),
                **_surprise(result, truth),
            })  # fmt: skip
            errors = {**error_row(start, truth), **error_row(start, truth, "candidate_")}
            starts.append({**name, "status": "ok", "seconds": 0.0, **errors})
            progress(len(rows), total)
    return {
        "protocol": {"name": "tracking", **asdict(protocol)},
        "summary": summarize(rows),
        "start": summarize(starts),
        "results": rows,
        "start_results": starts,
    }


def result_row(result: Localization) -> dict[str, object]:
    """The promised form of one result in JSON."""
    pose, covariance = result.map_from_camera, result.covariance
    return {
        "status": result.status,
        "map_from_camera": None if pose is None else pose.tolist(),
        "covariance": None if covariance is None else covariance.tolist(),
        "num_matches": result.num_matches,
        "num_inliers": result.num_inliers,
        "score": round(result.score, 4),
        "reason": result.reason,
        "seconds": round(result.seconds, 4),
    }


def _surprise(result: Localization, truth: np.ndarray) -> dict[str, object]:
    """The position error measured by its own covariance, squared: under 6.25 in 90 % of cases if that is honest."""
    if result.map_from_camera is None or result.covariance is None:
        return {}
    error = result.map_from_camera[:3, 3] - truth[:3, 3]
    return {"position_mahalanobis_squared": round(float(error @ np.linalg.solve(result.covariance[:3, :3], error)), 3)}


def error_row(estimate: np.ndarray | None, truth: np.ndarray, prefix: str = "") -> dict[str, object]:
    """Errors of a pose `(4, 4)` in the promised form, names behind a prefix; empty when there is none."""
    if estimate is None:
        return {}
    metres, radians = se3.pose_error(estimate, truth)
    axes = axis_error(estimate, truth)
    errors = {
        "translation_error_m": metres,
        "rotation_error_deg": math.degrees(radians),
        "lateral_error_m": axes.lateral,
        "down_error_m": axes.down,
        "forward_error_m": axes.forward,
        "yaw_error_deg": math.degrees(axes.yaw),
    }
    return {prefix + name: round(value, 4) for name, value in errors.items()}
