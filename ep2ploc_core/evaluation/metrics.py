"""How far poses are from the truth, and how often near enough; refusals, and images that were dropped for
lack of time, count as failures in every recall."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ep2ploc_core import se3
from ep2ploc_core.evaluation.calibration import LEVELS, calibrate

RECALLS = ((0.1, 1.0), (0.25, 2.0), (0.5, 5.0), (2.0, 5.0))  # metres, degrees
WRONG_METRES = 1.0  # a pose given that is this far off should have been refused
AXES = (
    "lateral_error_m", "down_error_m", "forward_error_m", "pitch_error_deg", "yaw_error_deg", "roll_error_deg",
)  # fmt: skip


@dataclass(frozen=True)
class AxisError:
    """Error of a pose along and about the true camera's axes, metres and radians; positive: the estimate lies to the
    right, low, ahead, and looks up, to the right, and leans to the right."""

    lateral: float
    down: float
    forward: float
    pitch: float
    yaw: float
    roll: float


def axis_error(estimate: np.ndarray, truth: np.ndarray) -> AxisError:
    """Of poses map_from_camera `(4, 4)`."""
    true_from_estimate = torch.from_numpy(np.linalg.inv(truth) @ estimate)
    return AxisError(*se3.log(true_from_estimate).tolist())


def error_row(estimate: np.ndarray | None, truth: np.ndarray, prefix: str = "") -> dict[str, object]:
    """Errors of a pose `(4, 4)` in the promised form, names behind a prefix; empty when there is none."""
    if estimate is None:
        return {}
    metres, radians = se3.pose_error(estimate, truth)
    along = asdict(axis_error(estimate, truth)).values()
    errors = {"translation_error_m": metres, "rotation_error_deg": math.degrees(radians)}
    for name, value in zip(AXES, along, strict=True):
        errors[name] = math.degrees(value) if name.endswith("deg") else value
    return {prefix + name: round(value, 4) for name, value in errors.items()}


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the poses given, and over all candidates, the refused ones too; recalls of the poses given over all
    queries; refusals apart, and so are dropped images; `calibration` of the covariances given.

    rows: with `status`: "ok", "dropped" (nobody worked on it), or anything else where it was refused; and where it is
    "ok" `translation_error_m`, `rotation_error_deg`, `lateral_error_m`, ...; the same behind `candidate_` where there
    was a candidate. `median_` of an axis is of errors without their sign, `bias_` the median with it. Of all rows,
    `false_accept_share` are poses given far from where the image was taken: rows may say so (`false_accept`), since
    with a control that is not where the errors count from.
    """
    given = [row for row in rows if row["status"] == "ok"]
    dropped = sum(row["status"] == "dropped" for row in rows)
    summary: dict[str, Any] = {"queries": len(rows), "refused": len(rows) - len(given) - dropped, "dropped": dropped}
    for prefix in ("", "candidate_"):
        for name in ("translation_error_m", "rotation_error_deg"):
            summary[f"{prefix}median_{name}"] = _median(_values(rows, prefix + name))
        for name in AXES:
            summary[f"{prefix}median_{name}"] = _median(np.abs(_values(rows, prefix + name)))
            summary[f"{prefix}bias_{name}"] = _median(_values(rows, prefix + name))
    translation, rotation = _values(rows, "translation_error_m"), _values(rows, "rotation_error_deg")
    for metres, degrees in RECALLS:
        hits = int(((translation <= metres) & (rotation <= degrees)).sum())
        summary[f"recall_{metres:g}m_{degrees:g}deg"] = round(hits / max(1, len(rows)), 4)
    summary["wrong_and_given"] = int((translation > WRONG_METRES).sum())
    summary["false_accept_share"] = _false_accept_share(rows)
    summary["calibration"] = calibrate(rows)
    positions = summary["calibration"]["position"]["observed"]
    summary["in_own_90_percent_ellipsoid"] = positions and positions[LEVELS.index(0.9)]
    for kind in ("refinement", "sharpening"):
        tried = [row[kind] for row in rows if row.get(kind)]
        summary[f"{kind}s"] = len(tried)
        summary[f"{kind}s_given_up"] = sum(bool(one["given_up"]) for one in tried)
    summary["median_seconds"] = _median(_values(rows, "seconds"))
    return summary


def summarize_foreign(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of images that were not taken in the map, so that there is no right pose: every pose given is a false accept."""
    given = sum(row["status"] == "ok" for row in rows)
    return {
        "queries": len(rows),
        "refused": len(rows) - given,
        "wrong_and_given": given,
        "false_accept_share": round(given / max(1, len(rows)), 4),
        "median_seconds": _median(_values(rows, "seconds")),
    }


def _false_accept_share(rows: list[dict[str, Any]]) -> float:
    wrong = [row.get("false_accept", row.get("translation_error_m", 0.0) > WRONG_METRES) for row in rows]
    return round(sum(wrong) / max(1, len(rows)), 4)


def _values(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows if name in row])


def _median(values: np.ndarray) -> float | None:
    return round(float(np.median(values)), 4) if len(values) else None
