"""What every kind of recording is turned into before a map is made of it: scans whose poses are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ep2ploc_core.datasets.posed_image import PosedImage


@dataclass
class PosedScan:
    """Points `(N, 4)` float32 in the sensor's own frame (x, y, z in metres, intensity 0..1), all finite, and the
    sensor's pose `map_from_lidar` `(4, 4)` float64. `frame` is the number of the scan in its recording; `stamp` its
    time in seconds. Where `viewpoints` `(N, 3)` float32 is given, each point was seen from a place of its own (same
    frame as the points); else all were seen from the sensor's origin."""

    frame: int
    points: np.ndarray
    map_from_lidar: np.ndarray
    stamp: float = 0.0
    viewpoints: np.ndarray | None = None


class ScanSource(Protocol):
    """A recording as posed scans. `has_poses` is False where the recording brings none: `map_from_lidar` is then the
    identity everywhere, and `map/odometry.py` has to find the poses first."""

    has_poses: bool

    @property
    def images(self) -> Sequence[PosedImage]:
        """The images with poses that it brings along and that are not held out; there may be none. Raises InputError
        where there is a reason to tell."""

    def __len__(self) -> int:
        """The number of scans."""

    def scans(self, first: int = 0) -> Iterator[PosedScan]:
        """The scans from number `first` on (0..len), in the order of their times. A build that was stopped goes on
        from there, so the same recording must give the same scans in the same order."""

    def describe(self) -> dict[str, Any]:
        """What the map remembers of its source, in plain YAML types, enough to open it again: `kind`, `path`, ..."""
