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
from ep2ploc_core.model.voxel_backend import voxel_backend
from ep2ploc_core.model.voxels import OFFSETS, Neighbourhood, Voxels, average


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

    def forward(self, features: Tensor, hood: Neighbourhood) -> Tensor:
        """features `(S, C)` of the inputs -> `(T, C)` of the outputs."""
        asking = _rows(features, hood.places)
        query = self.query(asking).view(len(asking), self.heads, -1)
        query = query * (1 / query.norm(dim=-1, keepdim=True).clamp(min=1e-12))  # dividing all of it is slower
        code = functional.normalize(self.offset_code, dim=-1).to(query.dtype)
        weight = query.transpose(0, 1) @ code.permute(1, 2, 0)
        return self.out(neighbour_sum(self.value(features).float(), weight.float(), hood))


class Block(nn.Module):
    """Local attention and a point-wise MLP, each added to its normalized input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = LocalAttention(width, heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, features: Tensor, hood: Neighbourhood) -> Tensor:
        """features `(S, C)` of the inputs -> `(T, C)` of the outputs."""
        features = _rows(features, hood.places) + self.attention(self.attention_norm(features), hood)
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

    def forward(
        self,
        xyz: Tensor,
        attributes: Tensor,
        batch: Tensor,
        voxel_codes: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Unit descriptors `(N, D)`, or `(K, D)` of the wanted points alone, which is sooner done.

        xyz `(N, 3)` metres, map axes; attributes `(N, 6)` as in `MapPoints`; batch `(N,)` int64 keeps clouds apart.
        voxel_codes `(V, D)`: what site adaptation learned about each voxel, in the order of `voxelize`. wanted `(K,)`
        int64: numbers of points, in any order, some maybe twice.
        """
        backend = voxel_backend()
        levels = [backend.voxelize(xyz, batch, self.voxel_size)]
        while len(levels) < len(self.encode):
            levels.append(backend.coarsen(levels[-1]))
        everywhere = [Neighbourhood.of_all(backend.neighbour_pairs(level)) for level in levels]
        decoded = everywhere if wanted is None else self._needed(levels, everywhere, wanted)

        first, activation, second = self.point_mlp
        embedded = activation(first(self._point_features(xyz, attributes, levels[0])))
        features = second(average(embedded, levels[0].parent, len(levels[0])))  # linear: its mean is that of the mean
        skips = []
        for depth, block in enumerate(self.encode):
            if depth:
                features = average(self.down[depth - 1](features), levels[depth].parent, len(levels[depth]))
            features = block(features, everywhere[depth])
            skips.append(features)
        for depth in reversed(range(len(self.decode))):
            inputs, coarser = decoded[depth].inputs, decoded[depth + 1].outputs
            above = _number(_rows(levels[depth + 1].parent, inputs), coarser)
            features = _rows(skips[depth], inputs) + self.up[depth](features).index_select(0, above)
            features = self.decode[depth](features, decoded[depth])

        voxel = _rows(levels[0].parent, wanted)
        per_voxel = self.voxel_out(features).index_select(0, _number(voxel, decoded[0].outputs))
        if voxel_codes is not None:
            per_voxel = per_voxel + voxel_codes.index_select(0, voxel)
        return functional.normalize(per_voxel + self.point_out(second(_rows(embedded, wanted))), dim=-1)

    def _needed(self, levels: list[Voxels], everywhere: list[Neighbourhood], wanted: Tensor) -> list[Neighbourhood]:
        """What the decoder must look at on each level so that the wanted points `(K,)` get their descriptors."""
        needed = []
        chosen = levels[0].parent[wanted]
        for depth, hood in enumerate(everywhere[:-1]):
            marked = torch.zeros(len(levels[depth]), dtype=torch.bool, device=wanted.device)
            marked[chosen] = True
            needed.append(Neighbourhood.of_some(hood.pairs, marked))
            chosen = levels[depth + 1].parent[needed[-1].inputs]
        return [*needed, everywhere[-1]]

    def _point_features(self, xyz: Tensor, attributes: Tensor, voxels: Voxels) -> Tensor:
        """Place relative to the voxel's centroid, in voxels, and the attributes at comparable scales, `(N, 9)`."""
        centroid = average(xyz, voxels.parent, len(voxels))
        offset = (xyz - centroid[voxels.parent]) / self.voxel_size
        height = (attributes[:, 5:] / 4).clamp(-2, 2)
        return torch.cat([offset, attributes[:, :5], height], 1)


def _rows(values: Tensor, index: Tensor | None) -> Tensor:
    return values if index is None else values.index_select(0, index)


def _number(voxels: Tensor, among: Tensor | None) -> Tensor:
    """Which of the sorted voxels `among` these are."""
    return voxels if among is None else torch.searchsorted(among, voxels)
