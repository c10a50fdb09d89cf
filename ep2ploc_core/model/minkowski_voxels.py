"""`voxelize`, `coarsen` and `neighbour_pairs` of `voxels.py` by MinkowskiEngine's hash maps of coordinates.

Same voxels in the same order, same pairs in the same order. MinkowskiEngine numbers voxels in an order of its own, so
everything that it says is renumbered into ours.
"""

from __future__ import annotations

from typing import Any

import torch
from MinkowskiEngine import CoordinateManager, CoordinateMapType
from torch import Tensor

from ep2ploc_core.model.voxels import OFFSETS, Pairs, Voxels, pack, true_places, unpack


def voxelize(xyz: Tensor, batch: Tensor, size: float) -> Voxels:
    """The voxels of edge `size` metres that hold points `(N, 3)`; `batch` `(N,)` keeps separate clouds apart."""
    return _occupied(batch, torch.floor(xyz / size).long())


def coarsen(voxels: Voxels) -> Voxels:
    """The voxels of twice the size."""
    batch, index = unpack(voxels.keys)
    # Of the same index as its own `stride`, which takes several times as long for it.
    return _occupied(batch, index >> 1)


def neighbour_pairs(voxels: Voxels) -> Pairs:
    """All pairs of occupied voxels that touch, 3 x 3 x 3; a voxel is its own neighbour, at offset number 13."""
    if not len(voxels):  # its kernel map of nothing would crash the process
        return Pairs(voxels.keys, voxels.keys, voxels.keys)
    batch, index = unpack(voxels.keys)
    # Its kernels count the first axis fastest, our offsets the last one.
    manager, key, first, _ = _insert(batch, index.flip(1))
    sources = voxels.keys.new_full((len(voxels), OFFSETS), -1)
    for offset, (source, target) in manager.kernel_map(key, key, kernel_size=3).items():
        sources[first[target], offset] = first[source]
    pair = true_places(sources.flatten() >= 0)
    target = torch.div(pair, OFFSETS, rounding_mode="floor")
    return Pairs(target, sources.flatten().index_select(0, pair), pair - OFFSETS * target)


def _occupied(batch: Tensor, index: Tensor) -> Voxels:
    """The voxels that there are among batch numbers `(N,)` and voxel indices `(N, 3)`."""
    _, _, first, inverse = _insert(batch, index)
    keys, order = pack(batch[first], index[first]).sort()
    return Voxels(keys, order.argsort()[inverse])


def _insert(batch: Tensor, index: Tensor) -> tuple[CoordinateManager, Any, Tensor, Tensor]:
    """A manager of the coordinates of batch numbers `(N,)` and voxel indices `(N, 3)`, its key of them, where in N each
    of its V voxels first occurs `(V,)`, and which of them each of the N is in `(N,)`."""
    kind = CoordinateMapType.CUDA if index.is_cuda else CoordinateMapType.CPU
    manager = CoordinateManager(D=3, coordinate_map_type=kind)
    key, (first, inverse) = manager.insert_and_map(torch.cat([batch[:, None], index], 1).int())
    return manager, key, first.long(), inverse.long()
