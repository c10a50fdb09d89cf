"""Last stage of the adaptation to a site: images learn which view of the map they look like.

Everything but the two NetVLAD heads stays as it is, so patch and point descriptors are computed once. The heads learn
that the likeness of an image and a view falls with the distance between their poses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from scipy.spatial import cKDTree
from torch import Tensor

from ep2ploc_core.datasets.sampling import START_RANGE, Sampler
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_core.map.unit import NetworkFrame
from ep2ploc_core.map.views import choose_views, look
from ep2ploc_core.model.ep2ploc import EP2PLoc

SHARPNESS = 20.0  # of the softmax over likenesses


@dataclass(frozen=True)
class PlaceSchedule:
    """`pictures` are taken from the mapping run's images and beside them; each of `steps` steps weighs `images` of them
    against `views` views."""

    pictures: int = 192
    steps: int = 250
    images: int = 24
    views: int = 128
    learning_rate: float = 2e-3
    seed: int = 0


def learn_places(
    network: EP2PLoc,
    point_map: PointMap,
    sampler: Sampler,
    schedule: PlaceSchedule = PlaceSchedule(),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> float:
    """Trains the heads of `network` in place, for an encoded map; `sampler` has the site as its only scene. Returns the
    mean loss of the last tenth of the steps; NaN, and nothing learned, when there are no views near the images."""
    device = next(network.parameters()).device
    patches, poses = _photograph(network, sampler, schedule, device)
    views = choose_views(point_map)
    local = views.copy()
    local[:, :3, 3] -= point_map.origin
    local = NetworkFrame.of_map(point_map.voxel_size, point_map.info.up).poses(local)
    # Where no picture was taken nobody knows what images look like: such places must not be pushed away from them all.
    known = cKDTree(poses[:, :3, 3]).query(local[:, :3, 3])[0] < 2 * START_RANGE[0] if len(local) else np.zeros(0, bool)
    views, local = views[known], local[known]
    if not len(views):
        return float("nan")
    seen = list(look(point_map, views, network.config.descriptor_width, device))
    descriptors, valid = torch.cat([part.descriptors for part in seen]), torch.cat([part.valid for part in seen])
    del seen
    shares = _nearness(poses, local)
    wanted = torch.from_numpy(shares).float().to(device)

    heads = [network.image_vlad, network.point_vlad]
    parameters = [parameter for head in heads for parameter in head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, schedule.learning_rate, schedule.steps)
    rng = np.random.default_rng(schedule.seed)
    losses = []
    for step in range(schedule.steps):
        chosen = rng.integers(len(patches), size=schedule.images)
        near = np.array([rng.choice(len(views), p=row) for row in shares[chosen]])
        shown = np.unique(np.concatenate([near, rng.integers(len(views), size=schedule.views)]))
        shown_patches = patches[chosen].float().to(device)
        of_images = network.image_vlad(shown_patches.flatten(2).transpose(1, 2))
        of_views = network.point_vlad(descriptors[shown].float() / 127, valid[shown].float())
        target = wanted[chosen][:, shown]
        target = target / target.sum(1, keepdim=True)
        loss = functional.cross_entropy(SHARPNESS * of_images @ of_views.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        losses.append(float(loss.detach()))
        progress(step + 1, schedule.steps)
    return float(np.mean(losses[-max(1, schedule.steps // 10) :]))


@torch.no_grad()
def _photograph(
    network: EP2PLoc, sampler: Sampler, schedule: PlaceSchedule, device: torch.device
) -> tuple[Tensor, np.ndarray]:
    """Patch descriptors `(P, D, R, C)` half precision of pictures at random, and the poses `(P, 4, 4)` of their cameras
    in the network's frame."""
    patches, poses = [], []
    for number in range(schedule.pictures):
        shot = sampler.shoot(number)
        image = torch.from_numpy(shot.picture).permute(2, 0, 1)[None].float().to(device) / 255
        intrinsics = shot.camera.intrinsics_tensor()[None].to(device)
        features = network.encode_image(image.contiguous(memory_format=torch.channels_last), intrinsics)
        patches.append(features.patches[0].half().cpu())
        poses.append(np.linalg.inv(shot.camera_from_map))
    return torch.stack(patches), np.stack(poses)


def _nearness(poses: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Which views `(V, 4, 4)` a picture should look like, `(P, V)`, rows summing to one: those from which it could be
    localized, the nearer the better. All in the network's frame."""
    away = np.linalg.norm(poses[:, None, :3, 3] - views[None, :, :3, 3], axis=2) / START_RANGE[0]
    cosine = (np.einsum("pij,vij->pv", poses[:, :3, :3], views[:, :3, :3]) - 1) / 2
    turned = np.arccos(cosine.clip(-1, 1)) / START_RANGE[4]
    weight = -2 * (away**2 + turned**2)
    weight = np.exp(weight - weight.max(1, keepdims=True))
    shares: np.ndarray = weight / weight.sum(1, keepdims=True)
    return shares
