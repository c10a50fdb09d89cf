"""One vector for a whole image or for a whole set of points: NetVLAD (Arandjelovic et al., CVPR 2016)."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


class NetVLAD(nn.Module):
    """Sums the differences of local descriptors to learned cluster centres, softly assigned, into one unit vector."""

    def __init__(self, in_width: int, clusters: int, out_width: int) -> None:
        super().__init__()
        self.assign = nn.Linear(in_width, clusters)
        self.centres = nn.Parameter(functional.normalize(torch.randn(clusters, in_width), dim=1))
        self.out = nn.Linear(clusters * in_width, out_width)

    def forward(self, local: Tensor, weight: Tensor | None = None) -> Tensor:
        """local `(B, N, D)`, weight `(B, N)` (0 for padding) -> unit vectors `(B, out_width)`."""
        local = functional.normalize(local, dim=-1)
        share = self.assign(local).softmax(-1)
        if weight is not None:
            share = share * weight[..., None]
        residual = share.transpose(1, 2) @ local - share.sum(1)[..., None] * self.centres
        residual = functional.normalize(residual, dim=-1).flatten(1)
        return functional.normalize(self.out(residual), dim=-1)
