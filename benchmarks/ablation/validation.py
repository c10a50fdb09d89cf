"""Losses of weights on what no weights were trained on: pairs kept for validation, and a synthetic street.

    EP2PLOC_DATA=... .venv/bin/python benchmarks/ablation/validation.py [WEIGHTS ...] [--batches 45]

The pose loss is against 255 wrong poses: guessing gives log(256) = 5.55. In brackets its standard error over batches.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from ep2ploc_core.datasets.sampling import Sampler, SamplingSettings, Scene
from ep2ploc_core.datasets.synthetic import write_synthetic_drive
from ep2ploc_core.map.sources import KittiSource
from ep2ploc_core.model.checkpoint import load_network
from ep2ploc_core.training.losses import LossWeights, compute_losses
from ep2ploc_core.training.scenes import drive_scene, pair_names, pair_scene

KEPT_PAIRS = {"s": [110, 100_000], "o": [25, 100_000]}
SHOWN = ("pose", "patch", "near_patch", "geometry")


def losses(checkpoint: str, scenes: list[Scene], batches: int) -> dict[str, list[float]]:
    """Each measure of each batch, unaugmented, starts of the whole range."""
    network = load_network(checkpoint)
    plain = SamplingSettings(world=False, color=0.0, rotate_degrees=0.0, zoom=0.0)
    sampler = Sampler(scenes, network.config.image_width, plain, seed=99)
    measured: dict[str, list[float]] = {name: [] for name in SHOWN}
    for number in range(batches):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            log = compute_losses(network, sampler.batch(number, 1.0), LossWeights(hypotheses=256), generator).log
        for name in SHOWN:
            measured[name].append(float(log[name]))
    return measured


def main() -> None:
    """Measures, prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="*", default=["edge"])
    parser.add_argument("--batches", type=int, default=45)
    arguments = parser.parse_args()
    pairs = Path(os.environ["EP2PLOC_DATA"]) / "kitti_pairs"
    with tempfile.TemporaryDirectory() as folder:
        street = drive_scene(KittiSource(write_synthetic_drive(Path(folder), frames=40, seed=0)))
    kept = [pair_scene(pairs, name) for name in pair_names(pairs, KEPT_PAIRS)]
    for title, scenes in ((f"{len(kept)} pairs", kept), ("street", [street])):
        for checkpoint in arguments.weights:
            measured = losses(checkpoint, scenes, arguments.batches)
            error = np.std(measured["pose"]) / np.sqrt(arguments.batches)
            values = "  ".join(f"{name} {np.mean(measured[name]):.2f}" for name in SHOWN)
            print(f"{title}, {checkpoint}: {values}  (pose +-{error:.2f})")


if __name__ == "__main__":
    main()
