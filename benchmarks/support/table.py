"""How benchmarks show what they measured: on the terminal, and in Markdown where a file is named."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ep2ploc_core.evaluation.report import Grid


def show_table(title: str, grid: Grid, file: Path | None = None, note: str = "") -> None:
    """Prints a table with its title above and a note below; the same into `file`."""
    console = Console(width=110)
    console.print(f"\n[bold]{title}", highlight=False)
    console.print(grid.on_terminal())
    if note:
        console.print(note, highlight=False)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(part for part in (f"{title}:\n", grid.in_markdown(), note and f"{note}\n") if part))
