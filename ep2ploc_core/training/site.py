"""Adaptation to one site: a checkpoint learns from the images of the mapping run itself.

At the end the heads that describe whole images and views learn which places look like which images.

Besides the network's weights a code for every voxel of the map is learned and added to the descriptor that the point
encoder gives it: what the camera sees there need not follow from the geometry. The codes end up in the map's
descriptors, so that nothing is slower when localizing. In training a frame's own scan, and a random number of its
neighbours, are taken out of the map.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from ep2ploc_core.datasets.sampling import Sampler, SamplingSettings
from ep2ploc_core.landmarks.gather import gather_landmarks
from ep2ploc_core.map.appearance import add_appearances, images_of_map
from ep2ploc_core.map.encode import encode_points
from ep2ploc_core.map.place_index import encode_places
from ep2ploc_core.map.point_map import SITE_CHECKPOINT, PointMap
from ep2ploc_core.model.checkpoint import PLACES_NOTE, load_network, save_network
from ep2ploc_core.model.voxels import voxelize
from ep2ploc_core.progress import progress_bar
from ep2ploc_core.training.losses import LossWeights
from ep2ploc_core.training.places import learn_places
from ep2ploc_core.training.scenes import map_scene
from ep2ploc_core.training.trainer import Schedule, SiteCodes, Trainer

SITE_SAMPLING = SamplingSettings(world=False, group=3, color=0.2, novel=0.5)
SITE_SCHEDULE = Schedule(steps=700, learning_rate=1e-3, warmup=50, ema=0.99, noise_start=0.6, noise_ramp=0.3)

SITE_LOSSES = LossWeights(place=0.0, hypotheses=128)


def adapt_to_site(
    device: torch.device,
    map_path: Path,
    checkpoint: str,
    schedule: Schedule = SITE_SCHEDULE,
    weights: LossWeights = SITE_LOSSES,
    with_codes: bool = True,
) -> None:
    """Trains `checkpoint` on the images of the map's own source; writes MAP/checkpoint.safetensors and the map's new
    descriptors and places. Resumes from MAP.adaptation when it was broken off there. Without codes nothing is learned
    of the site but the network's weights. All processes train; the first one alone does what comes after."""
    point_map = PointMap.open(map_path)
    scene = map_scene(point_map)
    points = scene.points
    network = load_network(checkpoint)
    voxels = voxelize(
        torch.from_numpy(points.xyz), torch.zeros(len(points), dtype=torch.long), network.config.point_voxel
    )
    scene.code_voxel = voxels.parent.numpy()
    sampler = Sampler([scene], network.config.image_width, SITE_SAMPLING, schedule.seed + 1)
    codes = SiteCodes(len(voxels), network.config.descriptor_width)
    scratch = Path(f"{map_path}.adaptation")
    trainer = Trainer(network, sampler, schedule, weights, scratch, device, codes if with_codes else None)
    trainer.run()
    if trainer.rank > 0:
        return
    notes = {"adapted_from": checkpoint, "steps": str(trainer.step)}
    save_network(trainer.averaged_network(), scratch / SITE_CHECKPOINT, notes)
    stored = load_network(scratch / SITE_CHECKPOINT, device)  # as users will have it, in half precision
    learned = trainer.averaged_codes()
    if learned is None:
        learned = torch.zeros_like(codes.table)
    assert scene.code_voxel is not None
    descriptors = encode_points(points, stored, learned, scene.code_voxel)
    with progress_bar("learning places") as progress:
        learn_places(stored, point_map.lay_by(descriptors, stored.fingerprint), sampler, progress=progress)
    save_network(stored, scratch / SITE_CHECKPOINT, notes | {PLACES_NOTE: "learned"})
    stored = load_network(scratch / SITE_CHECKPOINT, device)
    # The map stays as it was until all of the new is there.
    encoded = point_map.lay_by(descriptors, stored.fingerprint)
    with progress_bar("encoding places") as progress:
        encode_places(encoded, stored, progress)
    images = images_of_map(point_map)
    if stored.alignment_head is not None:
        with progress_bar("what images show") as progress:
            add_appearances(encoded, stored, images, progress)
    if point_map.landmark_store is None:
        with progress_bar("landmarks") as progress:
            gather_landmarks(point_map, images, progress)
    aside = Path(map_path) / f"{SITE_CHECKPOINT}.tmp"
    shutil.copyfile(scratch / SITE_CHECKPOINT, aside)
    os.replace(aside, Path(map_path) / SITE_CHECKPOINT)
    point_map.use_descriptors(stored.fingerprint)
    shutil.rmtree(scratch)
