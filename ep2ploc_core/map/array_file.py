"""Arrays on disk: memory-mapped to read, written aside and renamed."""

from __future__ import annotations

import os
import tokenize
from pathlib import Path

import numpy as np


def load_array(file: Path) -> np.ndarray:
    """An array of a .npy file, memory-mapped; OSError, ValueError or EOFError when it is missing or cut off."""
    try:
        array: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    except (SyntaxError, tokenize.TokenError) as error:  # numpy reads the header as Python
        raise ValueError(f"the header of {file} is broken") from error
    return array


def save_array(file: Path, array: np.ndarray) -> None:
    """Writes a .npy file aside and renames it; OSError with its number when the disk is full."""
    array = np.ascontiguousarray(array)
    aside = file.with_name(file.name + ".tmp")
    with aside.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
        stream.write(array.reshape(-1).view(np.uint8).data)  # np.save would not tell that the disk is full
    os.replace(aside, file)
