"""The points of S3DIS: `Area_1/office_3/office_3.txt`, rows of x y z in metres and r g b 0..255.

Files are hundreds of megabytes of text, so they are read in pieces of equal size, whose number is known beforehand.
Two rows of version 1.2 hold a stray control character (Area_3/hallway_2, Area_5/hallway_6), and one file is named
otherwise than its room (Area_6/copyRoom_1/copy_Room_1.txt).
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path

import numpy as np

from ep2ploc_core.errors import InputError

PIECE = 32 << 20  # bytes, about a million points
_COLUMNS = 6
_MOST_BAD = 1e-3  # of the rows of a piece
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def find_rooms(area: Path) -> dict[str, Path]:
    """The text file of each room of an area, by the room's name. Raises InputError when there is none, or a room has
    none."""
    rooms = {}
    folders = sorted(area.iterdir()) if area.is_dir() else []
    for folder in (folder for folder in folders if folder.is_dir() and not folder.name.startswith(".")):
        file = folder / f"{folder.name}.txt"
        others = sorted(folder.glob("*.txt"))
        if not file.is_file() and len(others) != 1:
            raise InputError(f"The room {folder} has no {file.name}; unpack S3DIS again.")
        rooms[folder.name] = file if file.is_file() else others[0]
    if not rooms:
        raise InputError(f"{area} has no rooms with points such as {area.name}/office_1/office_1.txt; unpack S3DIS.")
    return rooms


def count_pieces(file: Path, piece: int = PIECE) -> int:
    """How many pieces a room's file is read in, at least one."""
    return max(1, -(-file.stat().st_size // piece))


def read_piece(file: Path, number: int, piece: int = PIECE) -> np.ndarray:
    """The rows `(N, 6)` float64 that begin in piece `number` of a file: x, y, z, r, g, b. Control characters count as
    spaces; rows of other than six numbers are left out, and InputError raised when they are more than a few."""
    start, end = number * piece, (number + 1) * piece
    try:
        with file.open("rb") as stream:
            if start:
                stream.seek(start - 1)
                stream.readline()  # the rest of a row that began before
            text = stream.read(max(0, end - stream.tell()))
            if text and not text.endswith(b"\n"):
                text += stream.readline()
    except OSError as error:
        raise InputError(f"The points {file} cannot be read: {error.strerror}.") from error
    text = _CONTROL.sub(b" ", text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of no rows at all
            rows = np.loadtxt(io.BytesIO(text), ndmin=2, comments=None)
        if rows.shape[1] == _COLUMNS and np.isfinite(rows).all():
            return rows
    except ValueError:
        pass  # row by row, then
    lines = [line for line in text.splitlines() if line.strip()]
    sound = [row for row in map(_numbers, lines) if row is not None]
    if len(lines) - len(sound) > max(2, _MOST_BAD * len(lines)) or (lines and not sound):
        raise InputError(
            f"{len(lines) - len(sound)} of {len(lines)} rows of the points {file} are no six numbers (x y z r g b); "
            "unpack S3DIS again."
        )
    return np.array(sound, np.float64).reshape(-1, _COLUMNS)


def _numbers(line: bytes) -> list[float] | None:
    try:
        row = [float(word) for word in line.split()]
    except ValueError:
        return None
    return row if len(row) == _COLUMNS and np.isfinite(row).all() else None
