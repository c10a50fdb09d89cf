"""How far from a first guess the pose may lie: for every method as far as for the localizer."""

from __future__ import annotations

import numpy as np
import torch

from ep2ploc_core import se3
from ep2ploc_core.datasets.sampling import START_RANGE
from ep2ploc_core.localizer_settings import DEFAULT_SETTINGS

# Half widths along and about the guess's axes, in units of `map.unit` and radians.
BOX = START_RANGE * DEFAULT_SETTINGS.greatest_distance


def share_of_box(prior: np.ndarray, map_from_camera: np.ndarray) -> np.ndarray:
    """How far poses `(..., 4, 4)` lie from a guess `(4, 4)`, both in units: `(...,)`, 1 at the limit of the box."""
    off = se3.log(torch.from_numpy(np.linalg.inv(prior) @ map_from_camera)).numpy()
    share: np.ndarray = np.abs(off / BOX).max(-1)
    return share
