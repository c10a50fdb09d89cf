"""Progress on the terminal, for all work that takes longer than two seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; yields the function to call with how much is done and how much there is."""
    with stage_bars() as report:
        yield lambda done, total: report(title, done, total)


@contextmanager
def stage_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Bars on stderr, one for each stage of a long work; yields the function to call with the stage, how much of it is
    done and how much there is. In a file, where bars are drawn at the end only, it says what begins."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                if not console.is_terminal:
                    console.print(f"{stage} ...")
                tasks[stage] = progress.add_task(stage)
            progress.update(tasks[stage], completed=done, total=total)

        yield report
