"""Files that people wait for: written aside and then named, so that what was there is never half of something."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ep2ploc_core.errors import InputError


def write_json(path: Path, content: Any) -> None:
    """Writes JSON; makes the directory too."""
    write_text(path, json.dumps(content, indent=1))


def write_text(path: Path, text: str) -> None:
    """Writes a text; makes the directory too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text)
    os.replace(aside, path)


@contextmanager
def written_directory(out: Path, mark: str, kind: str) -> Iterator[Path]:
    """A directory to fill, which takes the place of `out` once it is whole. What is there may only be one made so
    before, which has a file `mark`: else InputError, and nothing is touched. kind: what it is, for people."""
    if out.exists() and any(out.iterdir()) and not (out / mark).is_file():
        raise InputError(f"{out} holds something that is no {kind} made before; give another directory.")
    aside = out.with_name(f".{out.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        shutil.rmtree(out, ignore_errors=True)
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
