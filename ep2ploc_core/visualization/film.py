"""Images in a row as a GIF, which every viewer and web page shows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

_WIDTH = 560
_COLORS = 96  # with them, and without dithering, half a hundred frames stay below five megabytes
_BAND = 22  # pixels below the image


def film_frame(image: np.ndarray, caption: str) -> np.ndarray:
    """An image `(H, W, 3)` uint8 RGB, scaled to the film's width, with a line of text below it."""
    height = round(image.shape[0] * _WIDTH / image.shape[1])
    small = cv2.resize(image, (_WIDTH, height), interpolation=cv2.INTER_AREA)
    band = np.full((_BAND, _WIDTH, 3), 20, np.uint8)
    cv2.putText(band, caption, (6, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return np.vstack([small, band])


def write_film(frames: Iterable[np.ndarray], path: Path, seconds: float) -> None:
    """Writes frames `(H, W, 3)` uint8 RGB of one size, each shown for so many seconds; at least one of them."""
    pictures = [
        Image.fromarray(frame).quantize(_COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        for frame in frames
    ]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    first, *others = pictures
    first.save(
        aside, format="GIF", save_all=True, append_images=others, duration=round(1000 * seconds), loop=0, optimize=False
    )
    os.replace(aside, path)
