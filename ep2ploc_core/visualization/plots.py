"""Plots of results: the trajectory over the map, and how many queries are within which error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ep2ploc_core.map.point_map import MapPoints

matplotlib.use("Agg")


def plot_trajectory(
    points: MapPoints, origin: np.ndarray, truth: np.ndarray, estimates: list[np.ndarray | None], path: Path
) -> None:
    """True camera places and estimates over the map seen from above.

    truth `(N, 4, 4)`; estimates: N poses map_from_camera `(4, 4)`, None where refused.
    """
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.add_subplot()
    near = points.attributes[:, 5] > 0.5  # what stands on the ground draws the streets
    shown = np.flatnonzero(near)[:: max(1, int(near.sum()) // 60_000)]
    x, y = (points.xyz[shown, :2] + origin[:2]).T
    axes.scatter(x, y, s=0.1, color="0.75", rasterized=True)
    axes.plot(truth[:, 0, 3], truth[:, 1, 3], ".-", color="tab:green", label="truth", markersize=4, linewidth=0.8)
    given = [(pose, true) for pose, true in zip(estimates, truth, strict=True) if pose is not None]
    if given:
        found = np.stack([pose[:2, 3] for pose, _ in given])
        axes.plot(*found.T, "x", color="tab:red", label="estimate", markersize=5)
        for pose, true in given:
            axes.plot([pose[0, 3], true[0, 3]], [pose[1, 3], true[1, 3]], color="tab:red", linewidth=0.6)
    refused = [true for pose, true in zip(estimates, truth, strict=True) if pose is None]
    if refused:
        axes.plot(*np.stack([true[:2, 3] for true in refused]).T, "o", mfc="none", color="tab:blue", label="refused")
    margin = 25
    axes.set_xlim(truth[:, 0, 3].min() - margin, truth[:, 0, 3].max() + margin)
    axes.set_ylim(truth[:, 1, 3].min() - margin, truth[:, 1, 3].max() + margin)
    axes.set_aspect("equal")
    axes.set_xlabel("x [m]")
    axes.set_ylabel("y [m]")
    axes.legend(loc="upper right")
    _save(figure, path)


def plot_recall(reports: dict[str, dict[str, Any]], path: Path) -> None:
    """For each named evaluation the share of all queries whose translation error is below each bound."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, report in reports.items():
        rows = report["results"]
        errors = np.sort([row["translation_error_m"] for row in rows if row["status"] == "ok"])
        share = np.arange(1, len(errors) + 1) / max(1, len(rows))
        axes.step(np.r_[0, errors, 5], np.r_[0, share, share[-1] if len(share) else 0], where="post", label=name)
    axes.set_xlim(0, 2.5)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.set_xlabel("translation error [m]")
    axes.set_ylabel("share of all queries")
    axes.legend(loc="lower right")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp{path.suffix}")
    figure.savefig(aside, dpi=130)
    aside.replace(path)
