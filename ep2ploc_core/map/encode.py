"""Encode once: the point encoder runs over a whole map and its descriptors stay in the map."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ep2ploc_core.map.point_map import MapPoints, PointMap
from ep2ploc_core.model.ep2ploc import EP2PLoc
from ep2ploc_core.model.voxels import voxelize

# Blocks are encoded one after the other, each with a border wider than a point's descriptor looks (under 8 m), so the
# descriptors are those of the map encoded in one piece. Both are whole voxels of the coarsest level.
BLOCK_METRES = 96.0
BORDER_METRES = 16.0


def encode_map(
    point_map: PointMap, network: EP2PLoc, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Stores the descriptors of every point, and the network's fingerprint, in the map."""
    points = point_map.all_points()
    point_map.store_descriptors(encode_points(points, network, progress=progress), network.fingerprint)


@torch.inference_mode()
def encode_points(
    points: MapPoints,
    network: EP2PLoc,
    codes: Tensor | None = None,
    code_voxel: np.ndarray | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Descriptors `(N, D)` int8 (unit vectors times 127) of the points.

    codes `(V, D)` and code_voxel `(N,)`, the row of each point, are what adaptation learned of the site.
    """
    device = next(network.parameters()).device
    out = np.zeros((len(points), network.config.descriptor_width), np.int8)
    block = np.floor(points.xyz[:, :2] / BLOCK_METRES).astype(np.int64)
    blocks = np.unique(block, axis=0)
    for done, corner in enumerate(blocks):
        low, high = corner * BLOCK_METRES, (corner + 1) * BLOCK_METRES
        near = np.flatnonzero(
            ((points.xyz[:, :2] > low - BORDER_METRES) & (points.xyz[:, :2] < high + BORDER_METRES)).all(1)
        )
        shift = np.array([*low, 0.0], np.float32)
        xyz = torch.from_numpy(points.xyz[near] - shift).to(device)
        batch = torch.zeros(len(near), dtype=torch.long, device=device)
        voxel_codes = None
        if codes is not None and code_voxel is not None:
            voxels = voxelize(xyz, batch, network.config.point_voxel)
            row = torch.zeros(len(voxels), dtype=torch.long, device=device)
            row[voxels.parent] = torch.from_numpy(code_voxel[near]).to(device)
            voxel_codes = codes.to(device)[row]
        descriptors = network.encode_points(
            xyz, torch.from_numpy(points.attributes[near]).to(device), batch, voxel_codes
        )
        own = (block[near] == corner).all(1)
        out[near[own]] = (descriptors[torch.from_numpy(own).to(device)] * 127).round().to(torch.int8).cpu().numpy()
        progress(done + 1, len(blocks))
    return out
