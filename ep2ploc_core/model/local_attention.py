"""The sum at the heart of local attention, over pairs of neighbouring voxels, without a message per pair in memory.

Written out in plain PyTorch the messages of half a million pairs are stored, read and scattered one after the other.
Here the forward pass and the values' gradient are bags of weighted rows, which PyTorch sums in one fused loop; the
values' gradient can be such a bag too because neighbourhood is symmetric. That is several times faster on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from ep2ploc_core.model.voxels import OFFSETS, Neighbourhood

_CHUNK = 8192  # pairs whose messages stay in a core's cache


class _NeighbourSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor, hood: Neighbourhood) -> Tensor:
        ctx.save_for_backward(value, weight)
        ctx.hood = hood
        pairs = hood.pairs
        return _bags(value, weight, pairs.target * OFFSETS + pairs.offset, pairs.source, pairs.target, weight.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous()
        value, weight = ctx.saved_tensors
        pairs, mirrored = ctx.hood.pairs, ctx.hood.mirrored
        # The pair (a, b, offset) has its mirror (b, a, OFFSETS - 1 - offset), so the values that flowed from b to all
        # that it is a neighbour of come back in its own bag, with the weights that those gave it.
        taken = mirrored.source * OFFSETS + (OFFSETS - 1 - mirrored.offset)
        value_gradient = _bags(gradient, weight, taken, mirrored.source, mirrored.target, len(value))
        heads = weight.shape[0]
        weight_gradient = torch.zeros_like(weight)
        place = pairs.target * OFFSETS + pairs.offset
        head_of_channel = torch.eye(heads, device=value.device).repeat_interleave(value.shape[1] // heads, 1)
        parts = (pairs.target.split(_CHUNK), pairs.source.split(_CHUNK), place.split(_CHUNK))
        for to, start, row in zip(*parts, strict=True):
            product = gradient.index_select(0, to).mul_(value.index_select(0, start))
            weight_gradient.flatten(1).index_copy_(1, row, head_of_channel @ product.T)
        return value_gradient, weight_gradient, None


def _bags(rows: Tensor, weight: Tensor, weight_index: Tensor, source: Tensor, target: Tensor, count: int) -> Tensor:
    starts = torch.searchsorted(target, torch.arange(count, device=target.device))
    heads = []
    for part, weights in zip(rows.chunk(len(weight), 1), weight.flatten(1), strict=True):
        chosen = weights.index_select(0, weight_index)
        heads.append(functional.embedding_bag(source, part.contiguous(), starts, mode="sum", per_sample_weights=chosen))
    return torch.cat(heads, 1)


def neighbour_sum(value: Tensor, weight: Tensor, hood: Neighbourhood) -> Tensor:
    """`out[a, h] = sum over neighbours b of a of weight[h, a, offset(a, b)] * value[b, h]`, `(T, H * C)`.

    value `(S, H * C)` of the inputs, weight `(H, T, 27)` of the outputs, both float32.
    """
    result: Tensor = _NeighbourSum.apply(value, weight, hood)
    return result
