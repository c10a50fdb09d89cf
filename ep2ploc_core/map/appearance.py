"""What the mapping run's images show of each map point: features for the refinement by alignment, kept in the map.

Each point keeps the mean of what the images that see it show there. How long the mean of the unit vectors is says how
well they agree, and so how much it is worth: what looks the same from everywhere can be aligned to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from ep2ploc_core import se3
from ep2ploc_core.datasets.kitti import read_image
from ep2ploc_core.datasets.posed_image import PosedImage
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.point_map import MapPoints, PointMap
from ep2ploc_core.map.sources import mapping_images, reopen_source
from ep2ploc_core.map.unit import UNIT_VOXEL, scaled_pose, unit_of
from ep2ploc_core.model.ep2ploc import EP2PLoc
from ep2ploc_core.model.image_input import prepare_image
from ep2ploc_core.visibility import VisibilitySettings, remove_invisible

# Lengths in units of `map.unit`.
REACH = 60.0  # from the camera
NEAR = 4.0  # an image twice as far away counts half as much, down to this
VISIBILITY = VisibilitySettings(margin=0.0)


def images_of_map(point_map: PointMap) -> list[PosedImage]:
    """The images of the recording that a map was made of; none where it brings none, or is gone."""
    try:
        return mapping_images(reopen_source(point_map.info.source))
    except InputError:
        return []


def add_appearances(
    point_map: PointMap,
    network: EP2PLoc,
    images: list[PosedImage],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Adds appearances `(N, A)` int8 (times 127) to the descriptors of each tile by this network; zero where no image
    shows a point. `point_map`: as it is with these descriptors, which may not be in use yet."""
    with tempfile.TemporaryDirectory(dir=point_map.path, prefix=".appearance.") as place:
        # Sums are gathered on the disk: a large map need not fit into memory.
        sums: dict[str, np.ndarray] = {}
        bare = PointMap(point_map.path, replace(point_map.info, checkpoint=""))
        for number, image in enumerate(images):
            _observe_image(bare, network, image, Path(place), sums)
            progress(number + 1, len(images))
        for name in point_map.info.tiles:
            stored = point_map.unpack(name).descriptors
            assert stored is not None and network.alignment_head is not None
            appearance = np.zeros((len(stored), network.alignment_head.appearance_width), np.int8)
            if name in sums:
                levels = torch.from_numpy(np.array(sums[name])).unflatten(-1, (len(network.alignment_head.strides), -1))
                appearance = _quantized(levels).flatten(1).numpy()
            # Of a run that was stopped some may have been added already.
            own = stored[:, : network.config.descriptor_width]
            point_map.store_tile_descriptors(name, np.concatenate([own, appearance], 1), network.fingerprint)


def _quantized(sums: Tensor) -> Tensor:
    """Of sums `(N, L, D + 1)` of weighted unit vectors, and of the weights: unit vectors and their worth, int8."""
    total, weight = sums[..., :-1], sums[..., -1:]
    agreement = (total.norm(dim=-1, keepdim=True) / weight.clamp(min=1e-9)) ** 2
    worth = torch.where(weight > 0, agreement.clamp(1 / 127, 1), 0)
    return (torch.cat([functional.normalize(total, dim=-1), worth], -1) * 127).round().to(torch.int8)


@torch.inference_mode()
def _observe_image(
    point_map: PointMap, network: EP2PLoc, image: PosedImage, place: Path, sums: dict[str, np.ndarray]
) -> None:
    """Adds what one image shows to the sums `(N, L * (D + 1))` of the tiles around it."""
    head, device = network.alignment_head, next(network.parameters()).device
    assert head is not None
    unit = unit_of(point_map.voxel_size)
    local = np.array(image.map_from_camera)
    local[:3, 3] -= point_map.origin
    names = point_map.tiles_within(local[:2, 3] - REACH * unit, local[:2, 3] + REACH * unit)
    tiles = [point_map.tile(name) for name in names]
    points = MapPoints.concatenate(tiles)
    if not len(points):
        return
    centre = local[:3, 3].copy()
    local[:3, 3] = 0
    xyz = torch.from_numpy((points.xyz - centre.astype(np.float32)) / np.float32(unit)).to(device)
    shown = prepare_image(read_image(image.path), image.camera, network.config.image_width, device)
    camera_from_map = se3.inverse(torch.from_numpy(scaled_pose(local, 1 / unit))).float().to(device)
    size = (shown.camera.width, shown.camera.height)
    visible = remove_invisible(xyz, camera_from_map, shown.intrinsics[0], size, UNIT_VOXEL, VISIBILITY)
    near = visible.index[visible.depths < REACH]
    dense = network.dense_features(network.encode_image(shown.tensor, shown.intrinsics))
    first = torch.zeros(1, dtype=torch.long, device=device)
    seen = head.observe(dense, first, shown.intrinsics, camera_from_map[None], xyz[near][None])[0]
    levels = seen.unflatten(-1, (len(head.strides), -1))
    depth = se3.apply(camera_from_map, xyz[near])[:, 2].clamp(min=NEAR)
    weight = levels[..., -1:] * (NEAR / depth)[:, None, None]
    added = torch.cat([levels[..., :-1] * weight, weight], -1).flatten(1).cpu().numpy()
    ends = np.cumsum([len(tile) for tile in tiles])
    index = near.cpu().numpy()
    tile_of = np.searchsorted(ends, index, side="right")
    for number in np.unique(tile_of):
        name, mine = names[number], tile_of == number
        if name not in sums:
            shape = (len(tiles[number]), head.appearance_width)
            sums[name] = np.lib.format.open_memmap(place / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
        sums[name][index[mine] - (ends[number] - len(tiles[number]))] += added[mine]
