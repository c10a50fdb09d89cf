"""Point encoder: Fast Point Transformer (Park et al., CVPR 2022) in plain PyTorch.

Points are averaged into voxels about their centroids, a U-net of local self-attention blocks runs on the voxels, and
each point takes its voxel's feature back together with its own place in the voxel.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ep2ploc_core.map.point_map import ATTRIBUTES
from ep2ploc_core.model.local_attention import neighbour_sum
from ep2ploc_core.model.voxels import OFFSETS, Pairs, Voxels, average, coarsen, neighbour_pairs, voxelize


class LocalAttention(nn.Module):
    """Attention over the 27 neighbours of a voxel.

    The weight of a neighbour is the cosine between the voxel's query and a learned code of the neighbour's offset
    (Fast Point Transformer, equation 5): no softmax, no keys, so its cost does not depend on what the neighbour holds.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.offset_code = nn.Parameter(torch.randn(OFFSETS, heads, width // heads))

    def forward(self, features: Tensor, pairs: Pairs) -> Tensor:
        """features `(V, C)` -> `(V, C)`."""
        shape = (len(features), self.heads, -1)
        query = functional.normalize(self.query(features).view(shape), dim=-1)
        code = functional.normalize(self.offset_code, dim=-1).to(query.dtype)
        weight = torch.einsum("vhc,khc->vkh", query, code)
        value = self.value(features).view(shape)
        return self.out(neighbour_sum(value.float(), weight.float(), pairs).flatten(1))


class Block(nn.Module):
    """Local attention and a point-wise MLP, each added to its normalized input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = LocalAttention(width, heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, features: Tensor, pairs: Pairs) -> Tensor:
        """features `(V, C)` -> `(V, C)`."""
        features = features + self.attention(self.attention_norm(features), pairs)
        return features + self.mlp(features)


class PointTransformer(nn.Module):
    """Descriptors of map points from the points around them, in the map's own axes: no view enters, so a map is
    encoded once."""

    def __init__(self, width: int, out_width: int, voxel_size: float, heads: int = 4) -> None:
        super().__init__()
        self.voxel_size = voxel_size
        widths = [width, width * 3 // 2, width * 2]
        self.point_mlp = nn.Sequential(nn.Linear(3 + len(ATTRIBUTES), width), nn.GELU(), nn.Linear(width, width))
        self.down = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.encode = nn.ModuleList(Block(w, heads) for w in widths)
        self.up = nn.ModuleList(nn.Linear(b, a) for a, b in pairwise(widths))
        self.decode = nn.ModuleList(Block(w, heads) for w in widths[:-1])
        self.voxel_out = nn.Linear(width, out_width)
        self.point_out = nn.Linear(width, out_width)

    def forward(self, xyz: Tensor, attributes: Tensor, batch: Tensor, voxel_codes: Tensor | None = None) -> Tensor:
        """Unit descriptors `(N, D)`.

        xyz `(N, 3)` metres, map axes; attributes `(N, 6)` as in `MapPoints`; batch `(N,)` int64 keeps clouds apart.
        voxel_codes `(V, D)`: what site adaptation learned about each voxel, in the order of `voxelize`.
        """
        levels = [voxelize(xyz, batch, self.voxel_size)]
        while len(levels) < len(self.encode):
            levels.append(coarsen(levels[-1]))
        pairs = [neighbour_pairs(level) for level in levels]

        embedded = self.point_mlp(self._point_features(xyz, attributes, levels[0]))
        features = average(embedded, levels[0].parent, len(levels[0]))
        skips = []
        for depth, block in enumerate(self.encode):
            if depth:
                features = average(self.down[depth - 1](features), levels[depth].parent, len(levels[depth]))
            features = block(features, pairs[depth])
            skips.append(features)
        for depth in reversed(range(len(self.decode))):
            features = skips[depth] + self.up[depth](features)[levels[depth + 1].parent]
            features = self.decode[depth](features, pairs[depth])

        per_voxel = self.voxel_out(features)
        if voxel_codes is not None:
            per_voxel = per_voxel + voxel_codes
        return functional.normalize(per_voxel[levels[0].parent] + self.point_out(embedded), dim=-1)

    def _point_features(self, xyz: Tensor, attributes: Tensor, voxels: Voxels) -> Tensor:
        """Place relative to the voxel's centroid, in voxels, and the attributes at comparable scales, `(N, 9)`."""
        centroid = average(xyz, voxels.parent, len(voxels))
        offset = (xyz - centroid[voxels.parent]) / self.voxel_size
        height = (attributes[:, 5:] / 4).clamp(-2, 2)
        return torch.cat([offset, attributes[:, :5], height], 1)
