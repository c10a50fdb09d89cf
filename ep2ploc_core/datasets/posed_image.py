"""The images that a mapping run brings along with its scans."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.kitti import read_image


@dataclass(frozen=True)
class PosedImage:
    """An image, the number of its frame in the recording, its time in seconds, the file that it is in, its camera, and
    where that was: `map_from_camera` `(4, 4)` float64, optical frame. scan: the number of the scan taken with it, where
    that is not the frame's."""

    frame: int
    stamp: float
    path: Path
    camera: Camera
    map_from_camera: np.ndarray
    scan: int | None = None

    def read(self) -> np.ndarray:
        """Its pixels `(H, W, 3)` uint8 RGB; raises InputError when they cannot be read."""
        return read_image(self.path)

    def copy_to(self, folder: Path) -> None:
        """Puts it into a folder, as a file named after its frame."""
        shutil.copyfile(self.path, folder / f"{self.frame:010d}{self.path.suffix}")
