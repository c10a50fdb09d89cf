"""Score MLP: how well each point fits each patch, by a small network on both descriptors (EP2P-Loc, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_CHUNK = 1 << 22  # numbers of the hidden layer that are held at a time


class PairScore(nn.Module):
    """An MLP of one hidden layer on the concatenation of two descriptors, for all pairs.

    Its first layer is linear in the concatenation, so it is run on points and on patches apart and the results are
    added for each pair; the pairs' hidden layer is made a few points at a time, and once more in the backward pass.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.point_in = nn.Linear(width, hidden)
        self.patch_in = nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, 1)

    def forward(self, points: Tensor, patches: Tensor) -> Tensor:
        """Scores `(B, N, P)` of points `(B, N, D)` against patches `(B, D, P)`, descriptors of about unit length."""
        unit = math.sqrt(points.shape[-1])  # brings the entries of unit vectors to the size that the layers expect
        from_points = self.point_in(points * unit)
        from_patches = self.patch_in(patches.transpose(1, 2) * unit).transpose(1, 2).contiguous()
        step = max(1, _CHUNK // (len(points) * from_patches[0].numel()))
        parts = from_points.split(step, dim=1)
        if not torch.is_grad_enabled():
            return torch.cat([self._pairs(part, from_patches) for part in parts], 1)
        return torch.cat([checkpoint(self._pairs, part, from_patches, use_reentrant=False) for part in parts], 1)

    def _pairs(self, from_points: Tensor, from_patches: Tensor) -> Tensor:
        hidden = torch.relu(from_points[..., None] + from_patches[:, None])  # (B, n, hidden, P)
        return self.out.weight[0] @ hidden + self.out.bias
