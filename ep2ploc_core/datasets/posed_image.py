"""The images that a mapping run brings along with its scans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ep2ploc_core.camera import Camera


@dataclass(frozen=True)
class PosedImage:
    """An image file, the number of its frame in the recording, its time in seconds, its camera, and where that was:
    `map_from_camera` `(4, 4)` float64, optical frame."""

    frame: int
    stamp: float
    path: Path
    camera: Camera
    map_from_camera: np.ndarray
