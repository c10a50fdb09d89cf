"""Encode once: the point encoder runs over a whole map and its descriptors stay in the map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ep2ploc_core.landmarks.gather import gather_landmarks
from ep2ploc_core.map.appearance import add_appearances, images_of_map
from ep2ploc_core.map.point_map import MapPoints, PointMap
from ep2ploc_core.map.unit import NetworkFrame
from ep2ploc_core.model.ep2ploc import EP2PLoc
from ep2ploc_core.model.voxels import voxelize

# In units of `map.unit`. Blocks are encoded one after the other, each with a border wider than a point's descriptor
# looks (under 8), so the descriptors are those of the map encoded in one piece: voxels are counted from a corner that
# is a whole number of voxels of the coarsest level away.
BLOCK = 96.0
BORDER = 16.0


def encode_map(
    point_map: PointMap, network: EP2PLoc, progress: Callable[[str, int, int], None] = lambda stage, done, total: None
) -> None:
    """Stores the descriptors of every point, and the network's fingerprint, in the map; where its recording has images
    also landmarks, unless it has them, and what the images show of the points, if the network aligns features.

    Block by block, so that the map need not fit into memory; what was stopped goes on where it was. progress: is told
    the stage, how much of it is done and how much there is.
    """
    frame = NetworkFrame.of_map(point_map.info.voxel_size, point_map.info.up)
    size, block, reach = point_map.info.tile_size, BLOCK * frame.unit, BORDER * frame.unit
    blocks: dict[tuple[int, int], list[str]] = {}
    for name in point_map.info.tiles:
        x, y = (int(np.floor(int(part) * size / block)) for part in name.split("_"))
        blocks.setdefault((x, y), []).append(name)
    for done, names in enumerate(blocks.values()):
        if not all(point_map.has_tile_descriptors(name, network.fingerprint) for name in names):
            corners = np.array([name.split("_") for name in names], np.float64) * size
            low, high = corners.min(0) - reach, corners.max(0) + size + reach
            own = [point_map.tile(name) for name in names]
            border = [point_map.tile(name) for name in point_map.tiles_within(low, high) if name not in names]
            border = [tile.select(((tile.xyz[:, :2] > low) & (tile.xyz[:, :2] < high)).all(1)) for tile in border]
            descriptors = _encode_block(frame.points(MapPoints.concatenate([*own, *border])), network)
            ends = np.cumsum([len(tile) for tile in own])
            for name, part in zip(names, np.split(descriptors, ends)[:-1], strict=True):
                point_map.store_tile_descriptors(name, part, network.fingerprint)
        progress("encoding points", done + 1, len(blocks))
    images = images_of_map(point_map)
    if images and point_map.landmark_store is None:
        gather_landmarks(point_map, images, partial(progress, "landmarks"))
    if images and network.alignment_head is not None:
        encoded = PointMap(point_map.path, replace(point_map.info, checkpoint=network.fingerprint))
        add_appearances(encoded, network, images, partial(progress, "what images show"))
    point_map.use_descriptors(network.fingerprint)


def encode_points(
    points: MapPoints, network: EP2PLoc, codes: Tensor | None = None, code_voxel: np.ndarray | None = None
) -> np.ndarray:
    """Descriptors `(N, D)` int8 (unit vectors times 127) of points in memory, given in the network's frame.

    codes `(V, D)` and code_voxel `(N,)`, the row of each point, are what adaptation learned of the site, if it did.
    """
    out = np.zeros((len(points), network.config.descriptor_width), np.int8)
    block = np.floor(points.xyz[:, :2] / BLOCK).astype(np.int64)
    for corner in np.unique(block, axis=0):
        low, high = corner * BLOCK - BORDER, (corner + 1) * BLOCK + BORDER
        near = np.flatnonzero(((points.xyz[:, :2] > low) & (points.xyz[:, :2] < high)).all(1))
        own = (block[near] == corner).all(1)
        of_near = None if code_voxel is None else code_voxel[near]
        out[near[own]] = _encode_block(points.select(near), network, codes, of_near)[own]
    return out


@torch.inference_mode()
def _encode_block(
    points: MapPoints, network: EP2PLoc, codes: Tensor | None = None, code_voxel: np.ndarray | None = None
) -> np.ndarray:
    device = next(network.parameters()).device
    corner = np.floor(points.xyz.min(0) / BLOCK) * BLOCK
    corner[2] = 0
    xyz = torch.from_numpy(points.xyz - corner.astype(np.float32)).to(device)
    batch = torch.zeros(len(points), dtype=torch.long, device=device)
    voxel_codes = None
    if codes is not None and code_voxel is not None:
        voxels = voxelize(xyz, batch, network.config.point_voxel)
        row = torch.zeros(len(voxels), dtype=torch.long, device=device)
        row[voxels.parent] = torch.from_numpy(code_voxel).to(device)
        voxel_codes = codes.to(device)[row]
    descriptors = network.encode_points(xyz, torch.from_numpy(points.attributes).to(device), batch, voxel_codes)
    encoded: np.ndarray = (descriptors * 127).round().to(torch.int8).cpu().numpy()
    return encoded
