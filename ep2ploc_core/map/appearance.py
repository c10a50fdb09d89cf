"""What the mapping run's images show of each map point: features for the refinement by alignment, kept in the map.

Each point keeps the mean of what the images that see it show there. How long the mean of the unit vectors is says how
well they agree: what looks the same from everywhere can be aligned to. That, times the confidence that the images had
there, is what it is worth.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from ep2ploc_core import se3
from ep2ploc_core.datasets.posed_image import PosedImage
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.array_file import save_array
from ep2ploc_core.map.point_map import MapPoints, PointMap
from ep2ploc_core.map.sources import mapping_images, reopen_source
from ep2ploc_core.map.unit import UNIT_VOXEL, scaled_pose, unit_of
from ep2ploc_core.model.ep2ploc import EP2PLoc
from ep2ploc_core.model.image_input import prepare_image
from ep2ploc_core.progress import console
from ep2ploc_core.visibility import VisibilitySettings, remove_invisible

# Lengths in units of `map.unit`.
REACH = 60.0  # from the camera
NEAR = 4.0  # an image twice as far away counts half as much, down to this
VISIBILITY = VisibilitySettings(margin=0.0)
POINTS_IN_MEMORY = 1_000_000  # whose sums are held; they take about 150 bytes each
_SCRATCH = ".appearance."


def images_of_map(point_map: PointMap) -> list[PosedImage]:
    """The images of the recording that a map was made of; none, and told why, where it brings none, or is gone."""
    try:
        return mapping_images(reopen_source(point_map.info.source))
    except InputError as error:
        console.print(f"There is nothing to adapt a network with: {error}")
        return []


def add_appearances(
    point_map: PointMap,
    network: EP2PLoc,
    images: list[PosedImage],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Adds appearances `(N, A)` int8 (times 127) to the descriptors of each tile by this network; zero where no image
    shows a point. `point_map`: as it is with these descriptors, which may not be in use yet. Images that cannot be
    read are left out, and told."""
    for left_over in point_map.path.glob(f"{_SCRATCH}*"):  # by a run that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    assert network.alignment_head is not None
    with tempfile.TemporaryDirectory(dir=point_map.path, prefix=_SCRATCH) as place:
        sums = _Sums(Path(place), len(network.alignment_head.strides), network.alignment_head.width)
        bare = PointMap(point_map.path, replace(point_map.info, checkpoint=""))
        unreadable = []
        for number, image in enumerate(images):
            try:
                _observe_image(bare, network, image, sums)
            except InputError as error:
                unreadable.append(error)
            progress(number + 1, len(images))
        if unreadable:
            console.print(f"{len(unreadable)} of {len(images)} images show nothing: {unreadable[0]}")
        for name in point_map.info.tiles:
            stored = point_map.unpack(name).descriptors
            assert stored is not None
            appearance = _quantized(torch.from_numpy(sums.of(name, len(stored)))).flatten(1).numpy()
            # Of a run that was stopped some may have been added already.
            own = stored[:, : network.config.descriptor_width]
            point_map.store_tile_descriptors(name, np.concatenate([own, appearance], 1), network.fingerprint)


class _Sums:
    """What was gathered for the points of each tile, `(N, L, D + 2)` float32: features times weights; weights, which
    are confidence times nearness; nearness. Those used last are in memory, the others on the disk: a map may be large.
    """

    def __init__(self, place: Path, levels: int, width: int) -> None:
        self._place, self._shape = place, (levels, width + 2)
        self._held: OrderedDict[str, np.ndarray] = OrderedDict()

    def of(self, name: str, count: int) -> np.ndarray:
        """Those of a tile with `count` points, to be read and added to until others are asked for."""
        if name not in self._held:
            file = self._file(name)
            self._held[name] = np.load(file) if file.exists() else np.zeros((count, *self._shape), np.float32)
        self._held.move_to_end(name)
        while sum(map(len, self._held.values())) > POINTS_IN_MEMORY and len(self._held) > 1:
            other, sums = self._held.popitem(last=False)
            save_array(self._file(other), sums)
        return self._held[name]

    def _file(self, name: str) -> Path:
        return self._place / f"{name}.npy"


def _quantized(sums: Tensor) -> Tensor:
    """Of sums `(N, L, D + 2)`: unit vectors and their worth, `(N, L, D + 1)` int8."""
    total, weight, nearness = sums.split([sums.shape[-1] - 2, 1, 1], -1)
    agreement = (total.norm(dim=-1, keepdim=True) / weight.clamp(min=1e-9)) ** 2
    worth = agreement * weight / nearness.clamp(min=1e-9)
    worth = torch.where(weight > 0, worth.clamp(1 / 127, 1), 0)
    return (torch.cat([functional.normalize(total, dim=-1), worth], -1) * 127).round().to(torch.int8)


@torch.inference_mode()
def _observe_image(point_map: PointMap, network: EP2PLoc, image: PosedImage, sums: _Sums) -> None:
    """Adds what one image shows to the sums of the tiles around it."""
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
    shown = prepare_image(image.read(), image.camera, network.config.image_width, device)
    camera_from_map = se3.inverse(torch.from_numpy(scaled_pose(local, 1 / unit))).float().to(device)
    size = (shown.camera.width, shown.camera.height)
    visible = remove_invisible(xyz, camera_from_map, shown.intrinsics[0], size, UNIT_VOXEL, VISIBILITY)
    near = visible.index[visible.depths < REACH]
    dense = network.dense_features(network.encode_image(shown.tensor, shown.intrinsics))
    first = torch.zeros(1, dtype=torch.long, device=device)
    seen = head.observe(dense, first, shown.intrinsics, camera_from_map[None], xyz[near][None])[0]
    levels = seen.unflatten(-1, (len(head.strides), -1))
    nearness = NEAR / se3.apply(camera_from_map, xyz[near])[:, 2].clamp(min=NEAR)
    nearness = nearness[:, None, None] * (levels[..., -1:] > 0)
    weight = levels[..., -1:] * nearness
    added = torch.cat([levels[..., :-1] * weight, weight, nearness], -1).cpu().numpy()
    ends = np.cumsum([len(tile) for tile in tiles])
    index = near.cpu().numpy()
    tile_of = np.searchsorted(ends, index, side="right")
    for number in np.unique(tile_of):
        mine, count = tile_of == number, len(tiles[number])
        sums.of(names[number], count)[index[mine] - (ends[number] - count)] += added[mine]
