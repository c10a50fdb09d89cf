"""Plots of results: the trajectory over the map, how many queries are within which error, errors over the distance to
the mapping images, and whether covariances are true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import chi2

from ep2ploc_core.evaluation.calibration import PARTS, chance_band, degrees_of_freedom
from ep2ploc_core.evaluation.retrieval import recall_by_chance
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_core.map.unit import NetworkFrame

matplotlib.use("Agg")
_DRAWN_POINTS = 300_000
_MARGIN = 25.0  # around the places, in units of `map.unit`
_LEAST_ERROR = 1e-3  # metres; a logarithmic axis has no zero
_MOST_VIEWS = 50
_ERRORS = (("translation_error_m", "translation error [m]", 2.5), ("rotation_error_deg", "rotation error [deg]", 10.0))


def plot_evaluation(
    report: dict[str, Any], truth: np.ndarray, point_map: PointMap | None, directory: Path
) -> list[Path]:
    """All plots of an evaluation with known poses `(N, 4, 4)` of its queries; says which files it wrote. Without a map
    there is no trajectory over it."""
    if report["protocol"]["name"] == "retrieval":
        plot_retrieval(report, directory / "retrieval.png")
        return [directory / "retrieval.png"]
    rows = report["results"]
    start = {"start": {"results": report["start_results"]}} if "start_results" in report else {}
    paths = [directory / f"{name}.png" for name in ("recall", "calibration")]
    plot_recall({**start, "network": report}, paths[0])
    plot_calibration(rows, paths[1])
    if point_map is not None:
        paths.append(directory / "trajectory.png")
        estimates = [None if row["map_from_camera"] is None else np.array(row["map_from_camera"]) for row in rows]
        plot_trajectory(point_map, np.stack([truth[row["query"]] for row in rows]), estimates, paths[-1])
    if any("distance_to_mapping_m" in row for row in rows):
        paths.append(directory / "error_over_distance.png")
        plot_error_over_distance(rows, paths[-1])
    return paths


def plot_retrieval(report: dict[str, Any], path: Path) -> None:
    """The share of all queries with a right view among the first 1, 2, 3, ... views; dashed, that of chance; dotted, of
    those that have a right one at all."""
    rows, views = report["results"], report["summary"]["views"]
    counts = np.arange(1, min(_MOST_VIEWS, views) + 1)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for number, metres in enumerate(report["protocol"]["metres"]):
        colour = f"C{number}"
        ranks = np.array([row[f"rank_{metres:g}m"] or np.inf for row in rows])
        axes.plot(counts, [(ranks <= count).mean() for count in counts], color=colour, label=f"within {metres:g} m")
        right = [row[f"right_views_{metres:g}m"] for row in rows]
        by_chance = [recall_by_chance(right, views, int(count)) for count in counts]
        axes.plot(counts, by_chance, "--", color=colour, linewidth=0.9, label="by chance")
        axes.axhline(np.isfinite(ranks).mean(), color=colour, linewidth=0.9, linestyle=":", label="there is one")
    axes.set_xlim(1, counts[-1])
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.set_xlabel("views, the most alike first")
    axes.set_ylabel("share of all queries with a right one among them")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(report["protocol"]["metres"]), frameon=False)
    _save(figure, path)


def plot_trajectory(
    point_map: PointMap,
    truth: np.ndarray,
    estimates: list[np.ndarray | None],
    path: Path,
    dropped: np.ndarray | None = None,
) -> None:
    """True camera places and estimates over the map seen from above.

    truth `(N, 4, 4)`; estimates: N poses map_from_camera `(4, 4)`, None where refused, or where `dropped` `(N,)` says
    that nobody worked on the image.
    """
    dropped = np.zeros(len(truth), bool) if dropped is None else dropped
    frame = NetworkFrame.of_map(point_map.voxel_size, point_map.info.up)
    points = point_map.thinned(_DRAWN_POINTS)
    level = frame.rotation[:2]  # two axes across up, which need not be the map's z

    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.add_subplot()
    near = points.attributes[:, 5] > 0.5 * frame.unit  # what stands on the ground draws the streets
    shown = np.flatnonzero(near)[:: max(1, int(near.sum()) // 60_000)]
    x, y = level @ (points.xyz[shown] + point_map.origin).T
    axes.scatter(x, y, s=0.1, color="0.75", rasterized=True)
    true_places = truth[:, :3, 3] @ level.T
    axes.plot(*true_places.T, ".-", color="tab:green", label="truth", markersize=4, linewidth=0.8)
    given = [(level @ pose[:3, 3], true) for pose, true in zip(estimates, true_places, strict=True) if pose is not None]
    if given:
        axes.plot(*np.stack([found for found, _ in given]).T, "x", color="tab:red", label="estimate", markersize=5)
        for found, true in given:
            axes.plot(*np.stack([found, true]).T, color="tab:red", linewidth=0.6)
    missing = np.array([pose is None for pose in estimates], bool)
    for chosen, colour, label in ((missing & ~dropped, "tab:blue", "refused"), (missing & dropped, "0.5", "dropped")):
        if chosen.any():
            axes.plot(*true_places[chosen].T, "o", mfc="none", color=colour, label=label)
    margin = _MARGIN * frame.unit
    axes.set_xlim(true_places[:, 0].min() - margin, true_places[:, 0].max() + margin)
    axes.set_ylim(true_places[:, 1].min() - margin, true_places[:, 1].max() + margin)
    axes.set_aspect("equal")
    axes.set_xlabel("x [m]")
    axes.set_ylabel("y [m]")
    axes.legend(loc="upper right")
    _save(figure, path)


def plot_recall(reports: dict[str, dict[str, Any]], path: Path) -> None:
    """For each named evaluation the share of all queries for which a pose was given whose error of position, and of
    rotation, is below each bound; the curves end below 1 by what was refused."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    sides = figure.subplots(1, 2, sharey=True)
    for axes, (error, title, most) in zip(sides, _ERRORS, strict=True):
        for name, report in reports.items():
            rows = report["results"]
            errors = np.sort([row[error] for row in rows if row["status"] == "ok"])
            share = np.arange(1, len(errors) + 1) / max(1, len(rows))
            end = max(most, errors.max(initial=0))
            axes.step(np.r_[0, errors, end], np.r_[0, share, share[-1] if len(share) else 0], where="post", label=name)
        axes.set_xlim(0, most)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
        axes.set_xlabel(title)
    sides[0].set_ylabel("share of all queries, refusals being failures")
    figure.legend(*sides[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False)
    _save(figure, path)


def plot_error_over_distance(rows: list[dict[str, Any]], path: Path) -> None:
    """Translation error of each candidate over `distance_to_mapping_m`; poses given filled, refused ones hollow."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for status, face, label in (("ok", "tab:red", "given"), ("refused", "none", "refused candidate")):
        some = [row for row in rows if row["status"] == status and "candidate_translation_error_m" in row]
        distance = [row["distance_to_mapping_m"] for row in some]
        error = [max(row["candidate_translation_error_m"], _LEAST_ERROR) for row in some]
        colour = "tab:red" if status == "ok" else "tab:blue"
        axes.scatter(distance, error, s=18, facecolors=face, edgecolors=colour, linewidths=0.9, label=label)
    if any("candidate_translation_error_m" in row for row in rows):
        axes.set_yscale("log")
    else:
        axes.text(0.5, 0.5, "no pose was found", ha="center", transform=axes.transAxes)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3, which="both")
    axes.set_xlabel("distance to the nearest mapping image [m]")
    axes.set_ylabel("translation error [m]")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)  # above: points may lie anywhere
    _save(figure, path)


def plot_calibration(rows: list[dict[str, Any]], path: Path) -> None:
    """Observed over expected coverage of the poses given; true covariances lie on the diagonal, over it they are too
    wide, under it too narrow. Grey: what chance makes of true ones 19 times of 20, with one pose of each query, since
    poses of the same image are not independent."""
    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    axes = figure.add_subplot()
    given = [row for row in rows if "pose_mahalanobis_squared" in row]
    levels = np.linspace(0, 1, 201)
    if given:
        queries = len({row["query"] for row in given})
        axes.fill_between(levels, *chance_band(levels, queries), step="mid", color="0.88")
        for part in PARTS:
            values = [row[f"{part}_mahalanobis_squared"] for row in given]
            squared = np.sort([np.inf if value is None else value for value in values])
            # The level at which the ellipsoid reaches each error; with as many errors inside.
            reached = chi2.cdf(squared, degrees_of_freedom(part))
            share = np.arange(1, len(squared) + 1) / len(squared)
            axes.step(np.r_[0, reached, 1], np.r_[0, share, 1], where="post", label=part)
        axes.legend(loc="lower right", title=f"{len(given)} poses of {queries} images")
    else:
        axes.text(0.5, 0.8, "no pose was given", ha="center")
    axes.plot([0, 1], [0, 1], color="0.4", linewidth=0.8, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.grid(alpha=0.3)
    axes.set_xlabel("expected share within the ellipsoid")
    axes.set_ylabel("observed share")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp{path.suffix}")
    figure.savefig(aside, dpi=130)
    aside.replace(path)
