"""Results as tables, on the terminal and in Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ep2ploc_core.evaluation.calibration import PARTS
from ep2ploc_core.evaluation.metrics import AXES
from ep2ploc_core.evaluation.retrieval import COUNTS

# Medians of all candidates: those of the poses given alone would look better the more is refused.
COLUMNS = {
    "candidate_median_translation_error_m": "m",
    "candidate_median_rotation_error_deg": "deg",
    "candidate_median_lateral_error_m": "lateral m",
    "candidate_median_forward_error_m": "forward m",
    "recall_0.1m_1deg": "in .1m/1deg",
    "recall_0.25m_2deg": "in .25m/2deg",
    "recall_0.5m_5deg": "in .5m/5deg",
    "recall_2m_5deg": "in 2m/5deg",
    "refused": "refused",
    "wrong_and_given": "given, >1m off",
    "false_accept_share": "false accepts",
    "queries": "of",
    "median_seconds": "s",
}
AXIS_COLUMNS = {
    "median": "poses given",
    "bias": "bias",
    "candidate_median": "all candidates",
    "candidate_bias": "bias of all",
}
REGISTRATION_COLUMNS = (
    "RTE m", "RRE deg", "registered", "registered and given", "RTE of registered", "RRE of registered", "no candidate",
    "of",
)  # fmt: skip
WIDEST = 8  # columns that a terminal of 80 characters has room for


@dataclass(frozen=True)
class Grid:
    """A table: titles of the columns, the first that of the rows' names; cells as text."""

    header: list[str]
    rows: list[list[str]]

    def on_terminal(self) -> Table:
        """For rich. A table of many columns is turned, rows for columns: a terminal would leave out the last ones."""
        lines = [self.header, *self.rows]
        if len(self.header) > WIDEST:
            lines = [list(line) for line in zip(*lines, strict=True)]
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column(lines[0][0], min_width=24)
        for title in lines[0][1:]:
            table.add_column(title, justify="right")
        for line in lines[1:]:
            table.add_row(*line)
        return table

    def in_markdown(self) -> str:
        """Ends in a line break."""
        lines = [f"| {' | '.join(cells)} |\n" for cells in (self.header, *self.rows)]
        lines.insert(1, "|---" * len(self.header) + "|\n")
        return "".join(lines)


def summary_grid(rows: dict[str, Any]) -> Grid:
    """Named summaries (`metrics.summarize`), one to a row."""
    return Grid(
        ["medians of all, recalls of the poses given", *COLUMNS.values()],
        [[name, *(_cell(column, summary) for column in COLUMNS)] for name, summary in rows.items()],
    )


def axis_grid(summary: dict[str, Any]) -> Grid:
    """Errors along and about the camera's axes: the median without the sign, and the bias, the median with it."""
    rows = []
    for name in AXES:
        title = name.replace("_error_", " ")
        rows.append([title, *(_number(summary.get(f"{kind}_{name}"), 3) for kind in AXIS_COLUMNS)])
    return Grid(["median error", *AXIS_COLUMNS.values()], rows)


def calibration_grid(calibration: dict[str, Any]) -> Grid:
    """Coverage (`calibration.calibrate`): the share of the poses given within each ellipsoid."""
    header = [
        f"within the ellipsoid that should hold (of {calibration['of']})",
        *(f"{level:.0%}" for level in calibration["expected"]),
        "error²/covariance",
    ]
    rows = []
    for part in PARTS:
        found = calibration[part]
        shares = found["observed"] or [None] * len(calibration["expected"])
        rows.append([
            part,
            *("-" if share is None else f"{share:.0%}" for share in shares),
            _number(found["error_over_sigma_squared"], 2),
        ])  # fmt: skip
    return Grid(header, rows)


def retrieval_grid(report: dict[str, Any]) -> Grid:
    """Recalls of `retrieval.evaluate_retrieval` beside those of chance, and for how many queries there is no right
    view."""
    summary, chance = report["summary"], report["chance"]
    rows = []
    for metres in report["protocol"]["metres"]:
        for count in COUNTS:
            name = f"recall_at_{count}_{metres:g}m"
            rows.append(
                [f"within {metres:g} m, among the first {count}", f"{chance[name]:.0%}", f"{summary[name]:.0%}"]
            )
        missing = f"{summary[f'without_right_view_{metres:g}m']} of {summary['queries']}"
        rows.append([f"within {metres:g} m there is none", missing, missing])
    return Grid([f"a right one of {summary['views']} views", "chance", "network"], rows)


def registration_grid(rows: dict[str, Any]) -> Grid:
    """Named summaries as papers on registration give them (`registration.summarize_registration`)."""
    cells = []
    for name, summary in rows.items():
        errors = [f"{summary[f'mean_{error}']:.2f} ± {summary[f'std_{error}']:.2f}" for error in ("rte_m", "rre_deg")]
        recalls = [f"{summary[f'{whose}registration_recall']:.0%}" for whose in ("candidate_", "")]
        of_registered = [_number(summary[f"registered_mean_{error}"], 2) for error in ("rte_m", "rre_deg")]
        counts = [str(summary[count]) for count in ("without_candidate", "queries")]
        cells.append([name, *errors, *recalls, *of_registered, *counts])
    return Grid(["means of all candidates", *REGISTRATION_COLUMNS], cells)


def report_grids(report: dict[str, Any]) -> list[Grid]:
    """All tables of an evaluation by any of the protocols."""
    if report["protocol"]["name"] == "retrieval":
        return [retrieval_grid(report)]
    start = {"start": report["start"]} if "start" in report else {}
    summary = report["summary"]
    named = {**start, report.get("method", "network"): summary}
    grids = [summary_grid(named)]
    if report["protocol"]["name"] == "registration":
        grids.insert(0, registration_grid(named))
    if "calibration" in summary:
        grids += [axis_grid(summary), calibration_grid(summary["calibration"])]
    return grids


def comparison_grid(reports: dict[str, dict[str, Any]]) -> Grid:
    """The summaries of evaluations of several methods by one protocol, from the same starts."""
    first = next(iter(reports.values()))
    start = {"start": first["start"]} if "start" in first else {}
    return summary_grid({**start, **{method: report["summary"] for method, report in reports.items()}})


def summary_table(rows: dict[str, Any]) -> Table:
    """A terminal table of named summaries (`metrics.summarize`)."""
    return summary_grid(rows).on_terminal()


def summary_markdown(rows: dict[str, Any]) -> str:
    """The same table in Markdown."""
    return summary_grid(rows).in_markdown()


def _cell(column: str, summary: dict[str, Any]) -> str:
    value = summary.get(column)
    if value is None:
        return "-"
    if column.startswith("recall") or column.endswith("_share"):
        return f"{value:.0%}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
