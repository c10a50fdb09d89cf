"""Pixel head: the exact pixel of a point inside its patch, by positional encoding (EP2P-Loc, section 3.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PixelHead(nn.Module):
    """Descriptors for the pixels of single patches: patch descriptor and encoded offset through an MLP.

    No pixel descriptor is kept for the whole image: only patches that points chose are expanded.
    """

    def __init__(self, width: int, patch: int, frequencies: int = 3) -> None:
        super().__init__()
        self.patch = patch
        encoding = positional_encoding(patch, frequencies)
        self.register_buffer("encoding", encoding, persistent=False)
        hidden = width
        self.patch_in = nn.Linear(width, hidden)
        self.offset_in = nn.Linear(encoding.shape[1], hidden, bias=False)
        self.point_in = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, query: Tensor, patch_descriptor: Tensor) -> Tensor:
        """Log probabilities `(M, patch*patch)`, row by row, of each pixel of the patch being the point's.

        query `(M, D)` of the points, patch_descriptor `(M, D)` of the patch each has chosen. Always in single
        precision: what the pixels of a patch have in common is large beside what tells them apart, which bf16 would
        round away.
        """
        with torch.autocast(query.device.type, enabled=False):
            query, patch_descriptor = query.float(), patch_descriptor.float()
            unit = math.sqrt(query.shape[-1])  # brings the entries of unit vectors to the size that the layers expect
            pixels = torch.relu(self.patch_in(patch_descriptor * unit)[:, None] + self.offset_in(self.encoding))
            # The softmax does not see what all pixels of a patch have in common, so the output layer, a matrix and an
            # offset, may as well be applied to the point: once instead of once per pixel.
            wanted = self.point_in(query * unit) @ self.out.weight
            score = (pixels @ wanted[..., None]).squeeze(-1)
            return (score / unit).log_softmax(-1)


def positional_encoding(patch: int, frequencies: int) -> Tensor:
    """Sines and cosines `(patch*patch, 4*frequencies)` of the pixel offsets inside a patch, x fastest."""
    offset = (torch.arange(patch) + 0.5) / patch * 2 - 1
    y, x = torch.meshgrid(offset, offset, indexing="ij")
    place = torch.stack([x.flatten(), y.flatten()], 1)
    scaled = (place[..., None] * (2.0 ** torch.arange(frequencies)) * math.pi / 2).flatten(1)
    return torch.cat([scaled.sin(), scaled.cos()], 1)
