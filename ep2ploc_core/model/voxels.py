"""Sparse voxels in plain PyTorch: coordinates, neighbours, and the two pooling levels of the point transformer.

A voxel is one int64 key (batch, x, y, z), so finding a neighbour is a search in the sorted keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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

    def select(self, index: Tensor) -> Pairs:
        """Those of numbers `(K,)`."""
        return Pairs(*(part.index_select(0, index) for part in (self.target, self.source, self.offset)))


@dataclass
class Neighbourhood:
    """The neighbours out of which a block makes some voxels anew: `outputs` `(T,)` out of `inputs` `(S,)`, both sorted
    numbers of voxels, the former among the latter; None: all V voxels.

    `pairs` have their targets counted among the outputs, their sources among the inputs. `mirrored` are the same pairs
    seen from the other side: targets among the inputs, sources among the outputs, offsets opposite. `places` `(T,)`:
    where among the inputs the outputs are.
    """

    pairs: Pairs
    mirrored: Pairs
    inputs: Tensor | None = None
    outputs: Tensor | None = None
    places: Tensor | None = None

    @classmethod
    def of_all(cls, pairs: Pairs) -> Neighbourhood:
        """Of all voxels that there are; being neighbours is symmetric."""
        return cls(pairs, pairs)

    @classmethod
    def of_some(cls, pairs: Pairs, wanted: Tensor) -> Neighbourhood:
        """Of the voxels marked in `wanted` `(V,)` bool, out of all their neighbours."""
        asking = pairs.select(true_places(wanted.index_select(0, pairs.target)))
        asked = pairs.select(true_places(wanted.index_select(0, pairs.source)))
        given = torch.zeros_like(wanted)
        given[asked.target] = True
        inputs, outputs = true_places(given), true_places(wanted)
        input_number, output_number = given.cumsum(0) - 1, wanted.cumsum(0) - 1
        return cls(
            Pairs(output_number[asking.target], input_number[asking.source], asking.offset),
            Pairs(input_number[asked.target], output_number[asked.source], asked.offset),
            inputs,
            outputs,
            input_number[outputs],
        )


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
    keys = voxels.keys
    steps = torch.arange(-1, 2, device=keys.device)
    # Keys are linear in the voxel index, so an offset is one number added to the key; and z runs fastest, so that what
    # there is of the three voxels of a column lies in a row, and one search finds all of them.
    columns = ((steps[:, None] << _BITS) + steps).flatten() << _BITS
    lowest = keys[:, None] + (columns - 1)
    place = torch.searchsorted(keys, lowest)
    padded = torch.cat([keys, keys.new_full((1,), -1)])
    places = place.new_empty(len(voxels), 9, 3)
    found = torch.empty_like(places, dtype=torch.bool)
    for height in range(3):
        places[..., height] = place
        there = padded.index_select(0, place.flatten()).view_as(place) == lowest + height
        found[..., height] = there
        place = place + there
    pair = true_places(found.flatten())
    target = torch.div(pair, OFFSETS, rounding_mode="floor")
    return Pairs(target, places.flatten().index_select(0, pair), pair - OFFSETS * target)


def true_places(mask: Tensor) -> Tensor:
    """Indices of the true ones of `(N,)` bool. On a CPU NumPy finds them some ten times as fast as `nonzero`."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().squeeze(1)


def average(values: Tensor, parent: Tensor, count: int) -> Tensor:
    """Means `(count, C)` of values `(N, C)` over the rows that share a parent."""
    total = values.new_zeros(count, values.shape[1]).index_add_(0, parent, values)
    number = torch.bincount(parent, minlength=count).clamp(min=1)
    return total / number[:, None].to(values.dtype)
