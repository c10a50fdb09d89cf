"""How far poses are from the truth, and how often near enough; refusals count as failures in every recall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ep2ploc_core import se3

RECALLS = ((0.25, 2.0), (0.5, 5.0), (2.0, 5.0))  # metres, degrees


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
    true_from_estimate = np.linalg.inv(truth) @ estimate
    x, y, z, _, yaw, _ = se3.log(true_from_estimate)
    return AxisError(float(x), float(y), float(z), float(yaw))


def summarize(rows: list[dict[str, object]]) -> dict[str, object]:
    """Medians over the poses given, recalls over all queries, refusals apart.

    rows: with `status`, and where it is "ok" `translation_error_m`, `rotation_error_deg`, `lateral_error_m`, ...
    """
    given = [row for row in rows if row["status"] == "ok"]
    summary: dict[str, object] = {"queries": len(rows), "refused": len(rows) - len(given)}

    def values(name: str) -> np.ndarray:
        return np.array([float(row[name]) for row in given])  # type: ignore[arg-type]

    translation, rotation = values("translation_error_m"), values("rotation_error_deg")
    summary["median_translation_m"] = _median(translation)
    summary["median_rotation_deg"] = _median(rotation)
    for axis in ("lateral_error_m", "down_error_m", "forward_error_m", "yaw_error_deg"):
        summary[f"median_{axis}"] = _median(np.abs(values(axis)))
    for metres, degrees in RECALLS:
        hits = int(((translation <= metres) & (rotation <= degrees)).sum())
        summary[f"recall_{metres:g}m_{degrees:g}deg"] = round(hits / max(1, len(rows)), 4)
    summary["wrong_and_confident"] = int((translation > 2.0).sum())
    summary["median_seconds"] = _median(np.array([float(row["seconds"]) for row in rows]))  # type: ignore[arg-type]
    return summary


def _median(values: np.ndarray) -> float | None:
    return round(float(np.median(values)), 4) if len(values) else None
