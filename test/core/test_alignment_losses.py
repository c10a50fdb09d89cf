"""The losses of the refinement by alignment: what they measure, and that a network learns from each."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ep2ploc_core.datasets.sampling import Batch, Sampler, SamplingSettings
from ep2ploc_core.datasets.synthetic import write_synthetic_drive
from ep2ploc_core.map.sources import KittiSource
from ep2ploc_core.model.ep2ploc import EP2PLoc, NetworkConfig
from ep2ploc_core.pose.feature_alignment import FeatureLevel
from ep2ploc_core.training.alignment_losses import AlignmentWeights, _contrastive_loss, _gauss_newton_loss, _place_loss
from ep2ploc_core.training.losses import LossWeights, compute_losses
from ep2ploc_core.training.scenes import drive_scene

TINY = NetworkConfig(
    image_width=256, descriptor_width=32, image_feature_width=48, point_width=16, classifier_width=64, clusters=4,
    alignment_width=8,
)  # fmt: skip
OFF = AlignmentWeights(reprojection=0, gauss_newton=0, contrastive=0, place=0)
LOSSES = ("reprojection", "gauss_newton", "contrastive", "place")


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    scene = drive_scene(KittiSource(write_synthetic_drive(tmp_path_factory.mktemp("drive"), frames=12, seed=5)))
    settings = SamplingSettings(images=2, group=2, starts=2, points=256, world=False)
    return Sampler([scene], TINY.image_width, settings, seed=0).batch(0, 1.0)


def plane(gradient: float, count: int = 40) -> tuple[FeatureLevel, Tensor]:
    """Features that are the place itself, times `gradient`; points that expect what is at their pixels."""
    rows, columns = np.mgrid[:20, :40].astype(np.float32)
    features = torch.from_numpy(np.stack([columns, rows], -1) * gradient)[None]
    pixels = torch.from_numpy(np.random.default_rng(0).uniform([24, 24], [130, 50], (1, count, 2)).astype(np.float32))
    cells = (pixels + 0.5) / 4 - 0.5
    ones = torch.ones(1, count)
    one = torch.tensor(1.0)
    first = torch.zeros(1, dtype=torch.long)
    return FeatureLevel(features, features[..., 0], first, cells * gradient, ones, 4, torch.ones(6), one, one), pixels


@pytest.mark.parametrize("gradient", [0.5, 3.0])
def test_a_gauss_newton_step_on_a_plane_leads_home(gradient: float) -> None:
    """Then the loss is that of a Gaussian at its own mean, whose variance is one over the squared gradient."""
    level, pixels = plane(gradient)
    seen = torch.ones(1, pixels.shape[1], dtype=torch.bool)
    loss = _gauss_newton_loss(level, pixels, seen, OFF, torch.Generator().manual_seed(0))
    assert float(loss) == pytest.approx(math.log(2 * math.pi) - 2 * math.log(gradient), abs=0.01)
    # Points that expect what is a cell to the right are off by that cell, in units of that Gaussian.
    aside = replace(level, expected=level.expected + torch.tensor([gradient, 0.0]))
    more = _gauss_newton_loss(aside, pixels, seen, OFF, torch.Generator().manual_seed(0)) - loss
    assert float(more) == pytest.approx(0.5 * gradient**2, rel=0.01)


def test_the_margins_are_where_they_should_be() -> None:
    """A steep plane: right at the true place, unlike everywhere else; turned round it is the other way."""
    level, pixels = plane(1.0)
    seen = torch.ones(1, pixels.shape[1], dtype=torch.bool)
    generator = torch.Generator()
    assert float(_contrastive_loss(level, pixels, seen, OFF, generator.manual_seed(0))) == 0
    weights = replace(OFF, margin_unlike=100.0, cells_apart=(3.0, 3.0))
    assert float(_contrastive_loss(level, pixels, seen, weights, generator)) == pytest.approx(97.0**2, rel=1e-3)
    aside = replace(level, expected=level.expected + torch.tensor([5.0, 0.0]))
    assert float(_contrastive_loss(aside, pixels, seen, OFF, generator.manual_seed(0))) > (5 - 0.2) ** 2 - 1e-3


def test_the_place_costs_nothing_where_the_likelihood_is_the_target() -> None:
    """exp(-precision x |difference|^2 / 2) on the plane is a Gaussian over the cells: as wide as the target, with a
    precision of one over its variance."""
    level, pixels = plane(1.0)
    # The loss takes unit vectors: on a sphere so large that it is flat, the dot product falls as on the plane.
    radius = 1e3
    lifted = torch.cat([level.features / radius, torch.ones_like(level.features[..., :1])], -1)
    expected = torch.cat([level.expected / radius, torch.ones_like(level.expected[..., :1])], -1)
    variance = (OFF.blur / 4) ** 2 + 0.35**2
    seen = torch.ones(1, pixels.shape[1], dtype=torch.bool)

    def loss(precision: float) -> float:
        unit = torch.nn.functional.normalize
        there = replace(
            level, features=unit(lifted.double(), dim=-1), expected=unit(expected.double(), dim=-1),
            precision=torch.tensor(precision * radius**2, dtype=torch.float64),
        )  # fmt: skip
        return float(_place_loss(there, pixels.double(), seen, OFF, torch.Generator().manual_seed(0)))

    assert loss(1 / variance) == pytest.approx(0, abs=2e-3)
    assert loss(0.1 / variance) > 0.1 and loss(10 / variance) > 0.1


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_alone_is_learned(batch: Batch, name: str) -> None:
    torch.manual_seed(0)
    network = EP2PLoc(TINY)
    alone = replace(OFF, **{name: 1.0})
    weights = LossWeights(patch=0, pixel=0, pose=0, place=0, geometry=0, alignment=alone)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        found = compute_losses(network, batch, weights, torch.Generator().manual_seed(0))
        assert {key for key in found.log if key.startswith("align_")} - {"align_share"} == {f"align_{name}"}
        optimizer.zero_grad()
        found.total.backward()
        optimizer.step()
        losses.append(float(found.log[f"align_{name}"]))
    assert losses[-1] < losses[0] - 0.1 * abs(losses[0])


def test_all_losses_off_leave_the_total_alone(batch: Batch) -> None:
    torch.manual_seed(0)
    network = EP2PLoc(TINY)
    with torch.no_grad():
        on, off = (
            compute_losses(network, batch, LossWeights(alignment=alignment), torch.Generator().manual_seed(0))
            for alignment in (AlignmentWeights(), OFF)
        )
        network.alignment_head = None
        without = compute_losses(network, batch, LossWeights(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(off.total, without.total)
    assert not torch.isclose(on.total, off.total)


def test_an_older_network_gets_the_features_and_keeps_the_rest() -> None:
    old = EP2PLoc(replace(TINY, alignment_width=0))
    new = old.with_alignment(8)
    assert new.alignment_head is not None and new.config.alignment_width == 8
    kept = new.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in old.state_dict().items())


def test_losses_are_measured_at_true_projections(batch: Batch) -> None:
    """The share that lies within a pixel is that of starts that are right when none of them is wrong."""
    network = EP2PLoc(TINY)
    right = replace(OFF, reprojection=1.0, nearest=1e-6, farthest=2e-6, iterations=1)
    with torch.no_grad():
        network.alignment_head.log_damping.fill_(30.0)
        found = compute_losses(network, batch, LossWeights(alignment=right), torch.Generator().manual_seed(0))
    assert float(found.log["align_share"]) == 1.0 and float(found.log["align_reprojection"]) < 1e-3
