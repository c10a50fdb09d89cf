"""Whether covariances are true: how many errors lie within the ellipsoids that should hold so many of them.

An error is measured in the tangent that a covariance speaks of (`se3.perturb`): metres along the map's axes, then the
rotation vector, in the map's axes, of the turn about the camera's centre. Taken from the truth to the estimate or the
other way round it only changes its sign.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.stats import binom, chi2

from ep2ploc_core import se3

LEVELS = (0.5, 0.68, 0.9, 0.95, 0.99)
# Which components of the tangent each part of a pose takes.
PARTS = {"position": slice(0, 3), "rotation": slice(3, 6), "pose": slice(0, 6)}


def degrees_of_freedom(part: str) -> int:
    """How many numbers a part of PARTS has: 3 or 6."""
    return PARTS[part].stop - PARTS[part].start


def tangent_error(estimate: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The tangent `(6,)` by which `se3.perturb` makes the estimate of the truth, both map_from_camera `(4, 4)`."""
    turn = torch.from_numpy(estimate[:3, :3] @ truth[:3, :3].T)
    return np.concatenate([estimate[:3, 3] - truth[:3, 3], se3.so3_log(turn).numpy()])


def mahalanobis_squared(estimate: np.ndarray, truth: np.ndarray, covariance: np.ndarray) -> dict[str, float | None]:
    """The error of a pose measured by its own covariance, squared, for each of PARTS; chi-square distributed with 3, 3
    and 6 degrees of freedom where covariances are true.

    estimate, truth: map_from_camera `(4, 4)`. covariance `(6, 6)`, metres and radians. None where the covariance is not
    positive definite: it excludes every error.
    """
    error = tangent_error(estimate, truth)
    squared: dict[str, float | None] = {}
    for part, axes in PARTS.items():
        try:
            factor = cho_factor(covariance[axes, axes])
        except (LinAlgError, ValueError):  # ValueError: not finite
            squared[part] = None
        else:
            squared[part] = float(error[axes] @ cho_solve(factor, error[axes]))
    return squared


def calibrate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Expected against observed coverage over the poses given.

    rows: results with `position_mahalanobis_squared` and the like; those without (refused) are left out. Gives `of`,
    the number of poses, `queries`, that of different images among them, `expected`, LEVELS, and for each of PARTS
    `{"observed": the shares within the ellipsoids of LEVELS, "error_over_sigma_squared"}`: the median of the squared
    errors over that of the chi-square distribution, 1 where covariances are true, 4 where errors are twice as large as
    said. None where there is no pose.
    """
    given = [row for row in rows if "pose_mahalanobis_squared" in row]
    result: dict[str, Any] = {
        "of": len(given),
        "queries": len({row.get("query", number) for number, row in enumerate(given)}),
        "expected": list(LEVELS),
    }
    for part in PARTS:
        values = [row[f"{part}_mahalanobis_squared"] for row in given]
        squared = np.array([np.inf if value is None else value for value in values])
        bounds, middle = chi2.ppf(LEVELS, degrees_of_freedom(part)), chi2.median(degrees_of_freedom(part))
        observed = [round(float((squared <= bound).mean()), 4) for bound in bounds] if given else None
        ratio = float(np.median(squared) / middle) if given else np.inf
        result[part] = {
            "observed": observed,
            "error_over_sigma_squared": round(ratio, 4) if np.isfinite(ratio) else None,
        }
    return result


def chance_band(level: float | np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest coverage to be seen 19 times of 20 at these levels, by chance alone, among `count`
    independent poses with true covariances (binomial)."""
    low, high = binom.interval(0.95, count, level)
    return np.asarray(low) / count, np.asarray(high) / count
