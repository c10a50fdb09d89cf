"""What is measured as something grows: kept as JSON with the machine that it was measured on, shown as a table and as a
plot with logarithmic axes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ep2ploc_core.evaluation.report import WIDEST, Grid
from ep2ploc_core.machine import describe_machine, machine_caption
from ep2ploc_core.written_file import write_text

matplotlib.use("Agg")


@dataclass(frozen=True)
class Curve:
    """A column that the plot has, too; `panel`: on which of its axes, by the title of their scale."""

    heading: str
    panel: str = "ms"


@dataclass(frozen=True)
class Growth:
    """What one measurement shows. columns: headings of the table by the keys of the rows, the first that of what grows;
    those with a Curve are drawn."""

    title: str
    columns: dict[str, str | Curve]

    def grid(self, rows: list[dict[str, Any]]) -> Grid:
        """The table. Columns that no row knows are left out; where there are more than a page is wide, they are its
        lines."""
        known = [key for key in self.columns if any(row.get(key) is not None for row in rows)]
        headings = [self._heading(key) for key in known]
        lines = [headings, *([_cell(row.get(key)) for key in known] for row in rows)]
        if len(known) > WIDEST:
            lines = [list(line) for line in zip(*lines, strict=True)]
        return Grid(lines[0], lines[1:])

    def draw(self, rows: list[dict[str, Any]], path: Path) -> None:
        """Writes the plot."""
        grows, *others = self.columns
        curves = {key: curve for key in others if isinstance(curve := self.columns[key], Curve)}
        panels = list(dict.fromkeys(curve.panel for curve in curves.values()))
        figure = Figure(figsize=(4.6 * len(panels), 4), layout="constrained")
        for number, panel in enumerate(panels, 1):
            axes = figure.add_subplot(1, len(panels), number)
            for key, curve in curves.items():
                points = [(row[grows], row[key]) for row in rows if row.get(key) is not None]
                if curve.panel == panel and points:
                    axes.plot(*zip(*points, strict=True), "o-", markersize=3.5, linewidth=1.2, label=curve.heading)
            axes.set_xscale("log")
            axes.set_yscale("log")
            low, high = axes.get_ylim()  # to whole powers of ten, so that two at the least are written
            axes.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
            measured = [row[grows] for row in rows]
            axes.set_xticks(measured, [_cell(value) for value in measured], rotation=25)
            axes.set_xticks([], minor=True)
            axes.grid(alpha=0.3, which="both")
            axes.set_xlabel(self._heading(grows))
            axes.set_ylabel(panel)
            axes.legend(fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.tmp{path.suffix}")
        figure.savefig(aside, dpi=90)
        aside.replace(path)

    def _heading(self, key: str) -> str:
        column = self.columns[key]
        return f"{column.heading}, {column.panel}" if isinstance(column, Curve) else column


def keep(file: Path, name: str, rows: list[dict[str, Any]]) -> str:
    """Puts what was measured now into a file of results, in the place of what it had under this name; returns the
    sentence that says on what it was measured."""
    results = json.loads(file.read_text()) if file.exists() else {}
    machine = describe_machine()
    results[name] = {"machine": machine, "rows": [_rounded(row) for row in rows]}
    write_text(file, json.dumps(results, indent=1) + "\n")
    return machine_caption(machine)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Four digits are more than a benchmark knows."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
