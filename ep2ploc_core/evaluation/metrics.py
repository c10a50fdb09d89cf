"""How far poses are from the truth, and how often near enough; refusals count as failures in every recall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ep2ploc_core import se3

RECALLS = ((0.25, 2.0), (0.5, 5.0), (2.0, 5.0))  # metres, degrees
WRONG_METRES = 1.0  # a pose given that is this far off should have been refused


@dataclass(frozen=True)
class AxisError:
    """Error of a pose along the true camera's axes, metres and radians; positive: the estimate lies to the right, low,
    ahead, and is turned to the right."""

    lateral: float
    down: float
    forward: float
    yaw: float


def axis_error(estimate: np.ndarray, truth: np.ndarray) -> AxisError:
    """Of poses map_from_camera `(4, 4)`."""
    true_from_estimate = torch.from_numpy(np.linalg.inv(truth) @ estimate)
    x, y, z, _, yaw, _ = se3.log(true_from_estimate).tolist()
    return AxisError(x, y, z, yaw)


def summarize(rows: list[dict[str, object]]) -> dict[str, object]:
    """Medians over the poses given, and over all candidates, the refused ones too; recalls of the poses given over all
    queries; refusals apart.

    rows: with `status`, and where it is "ok" `translation_error_m`, `rotation_error_deg`, `lateral_error_m`, ...; the
    same behind `candidate_` where there was a candidate.
    """
    given = [row for row in rows if row["status"] == "ok"]
    summary: dict[str, object] = {"queries": len(rows), "refused": len(rows) - len(given)}
    for prefix in ("", "candidate_"):
        for name in ("translation_error_m", "rotation_error_deg"):
            summary[f"{prefix}median_{name}"] = _median(_values(rows, prefix + name))
        for name in ("lateral_error_m", "down_error_m", "forward_error_m", "yaw_error_deg"):
            summary[f"{prefix}median_{name}"] = _median(np.abs(_values(rows, prefix + name)))
    translation, rotation = _values(rows, "translation_error_m"), _values(rows, "rotation_error_deg")
    for metres, degrees in RECALLS:
        hits = int(((translation <= metres) & (rotation <= degrees)).sum())
        summary[f"recall_{metres:g}m_{degrees:g}deg"] = round(hits / max(1, len(rows)), 4)
    summary["wrong_and_given"] = int((translation > WRONG_METRES).sum())
    surprise = _values(rows, "position_mahalanobis_squared")
    summary["in_own_90_percent_ellipsoid"] = round(float((surprise < 6.25).mean()), 4) if len(surprise) else None
    summary["median_seconds"] = _median(_values(rows, "seconds"))
    return summary


def _values(rows: list[dict[str, object]], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows if name in row])  # type: ignore[arg-type]


def _median(values: np.ndarray) -> float | None:
    return round(float(np.median(values)), 4) if len(values) else None
