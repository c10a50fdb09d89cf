"""From reports in JSON to the tables that the pages show, in Markdown, by the name of their place."""

from __future__ import annotations

from typing import Any

from ep2ploc_core.evaluation.report import Grid, summary_markdown

_LEVELS = (0.5, 0.9)  # of the ellipsoids that the tables of answers tell of


def demo_tables(name: str, report: dict[str, Any]) -> dict[str, str]:
    """Of a demo's `report.json`: how far off, split as the demo splits it; what was answered; through the nodes; and
    how long it all took."""
    parts = [f"**{title}**\n\n{summary_markdown(rows)}" for title, rows in report["tables"].items()]
    return {
        name: "\n".join(parts),
        f"{name}_answers": answers_grid(report["evaluations"]).in_markdown(),
        f"{name}_nodes": _nodes_grid(report["ros"]).in_markdown(),
        f"{name}_minutes": _minutes_grid(report).in_markdown(),
    }


def evaluation_tables(name: str, reports: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Of evaluations of the same queries, by the names of their rows; the first one's starts come before them."""
    first = next(iter(reports.values()))
    starts = {"start": first["start"]} if "start" in first else {}  # without a first guess there are none
    summaries = {**starts, **{row: report["summary"] for row, report in reports.items()}}
    return {name: summary_markdown(summaries), f"{name}_answers": answers_grid(reports).in_markdown()}


def answers_grid(reports: dict[str, dict[str, Any]]) -> Grid:
    """Of each evaluation the medians of all candidates; how many of the images asked were answered with a pose, and how
    many well; how far off the worst of these is, and how many lie within their own ellipsoids."""
    shares = " / ".join(f"{level:.0%}" for level in _LEVELS)
    header = ["", "asked", "m", "deg", "answered", "in .25m/2deg", "farthest off, m"]
    header += [f"position in its {shares} ellipsoid", f"whole pose in its {shares}"]
    rows = []
    for name, report in reports.items():
        given = [row for row in report["results"] if row["status"] == "ok"]
        calibration = report["summary"]["calibration"]
        covered = [_covered(calibration, part) for part in ("position", "pose")]
        summary, asked = report["summary"], len(report["results"])
        medians = [
            _number(summary[f"candidate_median_{error}"]) for error in ("translation_error_m", "rotation_error_deg")
        ]
        well = f"{summary['recall_0.25m_2deg']:.0%}"
        rows.append([name, str(asked), *medians, str(len(given)), well, _farthest(given), *covered])
    return Grid(header, rows)


def _covered(calibration: dict[str, Any], part: str) -> str:
    observed = calibration[part]["observed"]
    if observed is None:
        return "-"
    by_level = dict(zip(calibration["expected"], observed, strict=True))
    return " / ".join(f"{by_level[level]:.0%}" for level in _LEVELS)


def _farthest(given: list[dict[str, Any]]) -> str:
    return f"{max(row['translation_error_m'] for row in given):.2f}" if given else "-"


def _nodes_grid(ros: dict[str, Any]) -> Grid:
    """Through the ROS 2 nodes: counts of images, errors of the poses published, and their age."""
    replay, accuracy = ros["replay"], ros["accuracy"]
    given = [row for row in ros["results"] if row["status"] == "ok"]
    columns = {
        "images": replay["images"],
        "a second": replay["images_sent_per_second"],
        "answered": len(given),
        "refused": accuracy["refused"],
        "dropped": accuracy["dropped"],
        "m": accuracy["median_translation_error_m"],
        "deg": accuracy["median_rotation_error_deg"],
        "farthest off, m": _farthest(given),
        "from image to pose, s": replay["latency_p50_s"],
        "95 %": replay["latency_p95_s"],
        "TF beside the topic, m": replay["tf_differs_from_pose_by_m"],
    }
    return Grid(list(columns), [[_number(value) for value in columns.values()]])


def _minutes_grid(report: dict[str, Any]) -> Grid:
    """How long the stages of a demo took."""
    seconds = {**report["seconds"], "all": sum(report["seconds"].values())}
    header = ["minutes", *seconds]
    steps = f"with {report['adaptation_steps']} steps of adaptation"
    return Grid(header, [[steps, *(f"{value / 60:.1f}" for value in seconds.values())]])


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
