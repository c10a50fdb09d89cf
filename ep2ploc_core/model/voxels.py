"""Sparse voxels in plain PyTorch: coordinates, neighbours, and the two pooling levels of the point transformer.

A voxel is one int64 key (batch, x, y, z), so finding a neighbour is a search in the sorted keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BITS = 18  # of a voxel index along each axis: +-131,072 voxels around the first point of a crop
_HALF = 1 << (_BITS - 1)
OFFSETS = 27  # of a voxel's 3 x 3 x 3 neighbourhood, itself included; offset k and 26 - k are opposite


@dataclass
class Voxels:
    """Occupied voxels. keys `(V,)` sorted int64; `parent` `(V or N,)`: the voxel of each finer voxel or point."""

    keys: Tensor
    parent: Tensor

    def __len__(self) -> int:
        return len(self.keys)


@dataclass
class Pairs:
    """Neighbouring voxels: `target[p]` has the neighbour `source[p]` at offset number `offset[p]`; sorted by target."""

    target: Tensor
    source: Tensor
    offset: Tensor


def pack(batch: Tensor, index: Tensor) -> Tensor:
    """Keys `(N,)` of batch numbers `(N,)` and voxel indices `(N, 3)`, both int64."""
    x, y, z = (index + _HALF).unbind(1)
    return (((batch << _BITS | x) << _BITS) | y) << _BITS | z


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Batch numbers `(N,)` and voxel indices `(N, 3)` of keys."""
    mask = (1 << _BITS) - 1
    index = torch.stack([keys >> (2 * _BITS) & mask, keys >> _BITS & mask, keys & mask], 1) - _HALF
    return keys >> (3 * _BITS), index


def voxelize(xyz: Tensor, batch: Tensor, size: float) -> Voxels:
    """The voxels of edge `size` metres that hold points `(N, 3)`; `batch` `(N,)` keeps separate clouds apart."""
    keys, parent = torch.unique(pack(batch, torch.floor(xyz / size).long()), return_inverse=True)
    return Voxels(keys, parent)


def coarsen(voxels: Voxels) -> Voxels:
    """The voxels of twice the size."""
    batch, index = unpack(voxels.keys)
    keys, parent = torch.unique(pack(batch, index >> 1), return_inverse=True)
    return Voxels(keys, parent)


def neighbour_pairs(voxels: Voxels) -> Pairs:
    """All pairs of occupied voxels that touch, 3 x 3 x 3; a voxel is its own neighbour, at offset number 13."""
    steps = torch.arange(-1, 2, device=voxels.keys.device)
    # Keys are linear in the voxel index, so an offset is one number added to the key.
    offsets = ((steps[:, None, None] << _BITS) + steps[:, None]) * (1 << _BITS) + steps
    wanted = voxels.keys[:, None] + offsets.reshape(-1)
    place = torch.searchsorted(voxels.keys, wanted).clamp(max=len(voxels) - 1)
    target, offset = (voxels.keys[place] == wanted).nonzero().unbind(1)
    return Pairs(target, place[target, offset], offset)


def average(values: Tensor, parent: Tensor, count: int) -> Tensor:
    """Means `(count, C)` of values `(N, C)` over the rows that share a parent."""
    total = values.new_zeros(count, values.shape[1]).index_add_(0, parent, values)
    number = torch.bincount(parent, minlength=count).clamp(min=1)
    return total / number[:, None].to(values.dtype)
