"""What finds voxels and their neighbours: PyTorch alone, or MinkowskiEngine where the environment asks for it.

Both find the same in the same order, so weights, site codes and encoded maps do not depend on the choice. That is why
it belongs to the machine, and not to a network's configuration.
"""

from __future__ import annotations

import os
from typing import Protocol

from torch import Tensor

from ep2ploc_core.errors import InputError
from ep2ploc_core.model import voxels
from ep2ploc_core.model.voxels import Pairs, Voxels

VARIABLE = "EP2PLOC_VOXELS"  # "torch" (as without it) or "minkowski"


class VoxelBackend(Protocol):
    """The three functions that a backend's module has; `voxels.py` says what each one returns."""

    def voxelize(self, xyz: Tensor, batch: Tensor, size: float) -> Voxels: ...

    def coarsen(self, voxels: Voxels) -> Voxels: ...

    def neighbour_pairs(self, voxels: Voxels) -> Pairs: ...


def voxel_backend() -> VoxelBackend:
    """The module that the environment asks for."""
    choice = os.environ.get(VARIABLE, "torch")
    if choice == "torch":
        return voxels
    if choice != "minkowski":
        raise InputError(f"{VARIABLE} is '{choice}'; it can be torch or minkowski.")
    try:
        # Only on request: importing MinkowskiEngine adds names as common as `diagnostics` to the path of modules.
        from ep2ploc_core.model import minkowski_voxels
    except ImportError as error:
        raise InputError(f"{VARIABLE} is minkowski, but MinkowskiEngine cannot be imported: {error}.") from error
    return minkowski_voxels
