"""Results as tables, on the terminal and in Markdown."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

# Medians of all candidates: those of the poses given alone would look better the more is refused.
COLUMNS = {
    "candidate_median_translation_error_m": "m",
    "candidate_median_rotation_error_deg": "deg",
    "candidate_median_lateral_error_m": "lateral m",
    "candidate_median_forward_error_m": "forward m",
    "recall_0.25m_2deg": "in .25m/2deg",
    "recall_0.5m_5deg": "in .5m/5deg",
    "recall_2m_5deg": "in 2m/5deg",
    "refused": "refused",
    "wrong_and_given": "given, >1m off",
    "queries": "of",
}


def summary_table(rows: dict[str, Any]) -> Table:
    """A terminal table of named summaries (`metrics.summarize`)."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("medians of all, recalls of the poses given", min_width=24)
    for title in COLUMNS.values():
        table.add_column(title, justify="right")
    for name, summary in rows.items():
        table.add_row(name, *(_cell(column, summary) for column in COLUMNS))
    return table


def summary_markdown(rows: dict[str, Any]) -> str:
    """The same table in Markdown."""
    lines = [
        "| medians of all, recalls of the poses given | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for name, summary in rows.items():
        lines.append(f"| {name} | " + " | ".join(_cell(column, summary) for column in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def _cell(column: str, summary: dict[str, Any]) -> str:
    value = summary.get(column)
    if value is None:
        return "-"
    if column.startswith("recall"):
        return f"{value:.0%}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
