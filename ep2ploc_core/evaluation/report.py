"""Results as tables, on the terminal and in Markdown."""

from __future__ import annotations

from typing import Any

from rich.table import Table

COLUMNS = {
    "median_translation_m": "median [m]",
    "median_rotation_deg": "median [deg]",
    "median_lateral_error_m": "lateral [m]",
    "median_forward_error_m": "forward [m]",
    "recall_0.25m_2deg": "in 0.25 m/2 deg",
    "recall_0.5m_5deg": "in 0.5 m/5 deg",
    "recall_2m_5deg": "in 2 m/5 deg",
    "refused": "refused",
    "queries": "queries",
}


def summary_table(rows: dict[str, Any]) -> Table:
    """A terminal table of named summaries (`metrics.summarize`)."""
    table = Table("", *COLUMNS.values())
    for name, summary in rows.items():
        table.add_row(name, *(_cell(column, summary) for column in COLUMNS))
    return table


def summary_markdown(rows: dict[str, Any]) -> str:
    """The same table in Markdown."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
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
