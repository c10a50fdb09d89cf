"""Feature alignment on scenes whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from ep2ploc_core import se3
from ep2ploc_core.camera import project_pinhole
from ep2ploc_core.pose.feature_alignment import (
    AlignmentSettings,
    FeatureLevel,
    _Problem,
    align_features,
    sample_with_slope,
)

INTRINSICS = torch.tensor([300.0, 300.0, 256.0, 80.0])
HEIGHT, WIDTH, DEPTHS = 160, 512, (5.0, 35.0)
BOX = torch.tensor([1.2, 0.3, 1.2, 0.03, 0.1, 0.03])
SMALL = torch.tensor([0.15, 0.05, 0.2, 0.005, 0.01, 0.005])

BE_STILL = AlignmentSettings(iterations=0)


def picture(generator: torch.Generator, stride: int, width: int = 16, blur: int = 4) -> Tensor:
    """Smooth features `(1, H, W, D)` in which every place looks unlike the others."""
    rows, columns = HEIGHT // stride, WIDTH // stride
    noise = torch.randn(1, width, rows // blur, columns // blur, generator=generator, dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(noise, size=(rows, columns), mode="bicubic", align_corners=False)
    return torch.nn.functional.normalize(smooth, dim=1).permute(0, 2, 3, 1).contiguous()


def level(features: Tensor, pixels: Tensor, stride: int, damping: float = 0.01) -> FeatureLevel:
    """A level whose points `(B, N, 2)`, in pixels, expect exactly what is there."""
    image = torch.zeros(len(pixels), dtype=torch.long)
    expected, _ = sample_with_slope(features, image, (pixels + 0.5) / stride - 0.5)
    return FeatureLevel(
        features=features,
        confidence=torch.ones(features.shape[:3], dtype=features.dtype),
        image=image,
        expected=expected,
        weight=torch.ones(pixels.shape[:2], dtype=features.dtype),
        stride=stride,
        damping=torch.full((6,), damping, dtype=features.dtype),
        scale=torch.tensor(0.5, dtype=features.dtype),
        precision=torch.tensor(1.0, dtype=features.dtype),
    )


class Scene:
    """Points in front of cameras at known poses, and what they expect to see, in double precision."""

    def __init__(self, seed: int, views: int = 1, points: int = 400, strides: tuple[int, ...] = (8, 4)) -> None:
        generator = torch.Generator().manual_seed(seed)
        random = torch.rand(views, points, 3, generator=generator, dtype=torch.float64)
        self.pixels = random[..., :2] * torch.tensor([WIDTH - 40.0, HEIGHT - 40.0]) + 20
        depth = DEPTHS[0] + random[..., 2:] * (DEPTHS[1] - DEPTHS[0])
        self.intrinsics = INTRINSICS.double().expand(views, 4)
        rays = (self.pixels - self.intrinsics[:, None, 2:]) / self.intrinsics[:, None, :2]
        in_camera = torch.cat([rays, torch.ones_like(depth)], -1) * depth
        poses = torch.randn(views, 6, generator=generator, dtype=torch.float64) * torch.tensor([20, 20, 2, 0.1, 1, 0.1])
        self.truth = se3.exp(poses)
        self.xyz = se3.apply(self.truth, in_camera)
        self.levels = [level(picture(generator, stride), self.pixels, stride) for stride in strides]
        self.generator = generator

    def start(self, size: float) -> Tensor:
        """Poses off by up to `size` times SMALL."""
        error = 2 * torch.rand(len(self.truth), 6, generator=self.generator, dtype=torch.float64) - 1
        return self.truth @ se3.exp(size * error * SMALL)


def off(estimate: Tensor, truth: Tensor) -> tuple[float, float]:
    """The greatest errors, metres and radians."""
    error = se3.log(se3.inverse(truth) @ estimate)
    return float(error[:, :3].norm(dim=1).max()), float(error[:, 3:].norm(dim=1).max())


def test_interpolation_is_exact_for_parabolas_and_so_are_its_slopes() -> None:
    rows, columns = np.mgrid[:12, :20].astype(float)

    def parabola(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.stack([0.3 * x * x - y + 2, x * y - 0.1 * y * y], -1)

    place = np.random.default_rng(0).uniform([1, 1], [17, 9], (50, 2))
    x, y = place.T
    images = torch.from_numpy(parabola(columns, rows))[None]
    value, slope = sample_with_slope(images, torch.zeros(1, dtype=torch.long), torch.from_numpy(place)[None])
    np.testing.assert_allclose(value[0], parabola(x, y), atol=1e-9)
    np.testing.assert_allclose(slope[0, :, 0], np.stack([0.6 * x, y], -1), atol=1e-9)
    np.testing.assert_allclose(slope[0, :, 1], np.stack([-np.ones_like(x), x - 0.2 * y], -1), atol=1e-9)


def test_gradient_and_hessian_are_those_of_autograd() -> None:
    scene = Scene(1, views=2)
    start = scene.start(1.0)
    problem = _Problem.at(scene.levels[-1], scene.xyz, start, scene.intrinsics)
    offset = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    problem.slope(start @ se3.exp(offset)).cost.sum().backward()
    slope = problem.slope(start)
    assert offset.grad is not None
    torch.testing.assert_close(offset.grad / 2, slope.gradient, rtol=1e-6, atol=1e-6)

    # Of a cost that is a sum of squares, half the Hessian at a perfect fit, where gradients are zero in whatever axes,
    # is that of Gauss and Newton.
    truth = scene.truth[:1]
    perfect = _Problem.at(scene.levels[-1].of(slice(0, 1)), scene.xyz[:1], truth, scene.intrinsics[:1])

    def gradient(moved: Tensor) -> Tensor:
        return perfect.slope(truth @ se3.exp(moved[None])).gradient[0]

    exact = torch.autograd.functional.jacobian(gradient, torch.full((6,), 1e-7, dtype=torch.float64))
    torch.testing.assert_close(exact, perfect.slope(truth).hessian[0], rtol=2e-3, atol=0.5)


@pytest.mark.parametrize("seed", range(4))
def test_it_finds_the_pose_from_beside_it(seed: int) -> None:
    scene = Scene(seed, views=3)
    start = scene.start(1.0)
    found = align_features(scene.levels, scene.xyz, start, scene.intrinsics)
    metres, radians = off(found.map_from_camera, scene.truth)
    assert metres < 2e-3 < 0.02 < off(start, scene.truth)[0] and radians < 2e-4
    assert (found.cost_after < 1e-3 * found.cost_before).all()


def test_likeness_tells_a_found_pose_from_one_that_means_nothing() -> None:
    scene = Scene(4, points=500)
    right = align_features(scene.levels, scene.xyz, scene.truth, scene.intrinsics)
    assert float(right.likeness_after.whole) > 0.99
    elsewhere = [replace(one, expected=one.expected.roll(137, 1)) for one in scene.levels]
    assert abs(float(align_features(elsewhere, scene.xyz, scene.truth, scene.intrinsics).likeness_after.whole)) < 0.1
    half = [replace(one, expected=one.expected.clone()) for one in scene.levels]
    for one in half:
        one.expected[:, ::2] = one.expected[:, ::2].roll(137, 1)
    assert 0.35 < float(align_features(half, scene.xyz, scene.truth, scene.intrinsics).likeness_after.whole) < 0.65
    # Nothing but chance in one part of the image, the upper left one, is told.
    in_part = (scene.pixels[..., :1] < WIDTH / 4) & (scene.pixels[..., 1:] < HEIGHT / 2)
    partly = [replace(one, expected=one.expected.roll(137, 1).where(in_part, one.expected)) for one in scene.levels]
    likeness = align_features(partly, scene.xyz, scene.truth, scene.intrinsics, BE_STILL).likeness_after
    assert float(likeness.whole) > 0.7 and abs(float(likeness.least)) < 0.25 and int(likeness.parts) == 8
    assert likeness.more[~in_part[..., 0]].all() and likeness.more[in_part[..., 0]].float().mean() < 0.7
    torch.testing.assert_close(likeness.pixels, scene.pixels, rtol=0, atol=1e-6)


def test_views_of_a_batch_are_aligned_each_on_its_own() -> None:
    scene = Scene(5, views=3)
    start, settings = scene.start(1.0), AlignmentSettings(iterations=6, least_metres=0, least_radians=0)
    together = align_features(scene.levels, scene.xyz, start, scene.intrinsics, settings, BOX)
    assert together.covariance is not None
    for number in range(3):
        one = slice(number, number + 1)
        levels = [each.of(one) for each in scene.levels]
        alone = align_features(levels, scene.xyz[one], start[one], scene.intrinsics[one], settings, BOX)
        torch.testing.assert_close(alone.map_from_camera, together.map_from_camera[one])
        torch.testing.assert_close(alone.covariance, together.covariance[one])


def test_no_step_leads_uphill_and_it_stops_where_it_is_right() -> None:
    scene = Scene(6, strides=(4,))
    start = scene.start(3.0)
    found = align_features(scene.levels, scene.xyz, start, scene.intrinsics)
    problem = _Problem.at(scene.levels[0], scene.xyz, start, scene.intrinsics)
    costs = [float(problem.slope(pose).cost) for pose in found.track]
    assert all(after <= before for before, after in pairwise(costs))
    at_truth = align_features(scene.levels, scene.xyz, scene.truth, scene.intrinsics)
    assert at_truth.iterations == 1 < found.iterations


def test_what_is_damped_stays() -> None:
    scene = Scene(7, strides=(4,))
    damped = [replace(scene.levels[0], damping=torch.tensor([1e9, 0.01, 0.01, 0.01, 1e9, 0.01]))]
    start = scene.start(1.0)
    once = AlignmentSettings(iterations=1)
    moved = se3.log(
        se3.inverse(start) @ align_features(damped, scene.xyz, start, scene.intrinsics, once).map_from_camera
    )
    assert moved[0, [0, 4]].abs().max() < 1e-8 and moved[0, [1, 2, 3, 5]].abs().min() > 1e-5


def test_unlike_points_are_outvoted() -> None:
    """A third of the points expect what is nowhere near them."""
    scene = Scene(8)
    for one in scene.levels:
        one.expected[:, ::3] = one.expected[:, ::3].flip(1)
    found = align_features(scene.levels, scene.xyz, scene.start(1.0), scene.intrinsics)
    metres, radians = off(found.map_from_camera, scene.truth)
    assert metres < 0.02 and radians < 1e-3


def test_nothing_is_gained_by_moving_points_out_of_the_image() -> None:
    """Where points expect nothing that the image shows, a camera that looks away is no better than one that looks."""
    scene = Scene(9, strides=(4,))
    nowhere = replace(scene.levels[0], expected=-scene.levels[0].expected)
    problem = _Problem.at(nowhere, scene.xyz, scene.truth, scene.intrinsics)
    away = scene.truth @ se3.exp(torch.tensor([[0, 0, 0, 0, 0.8, 0]], dtype=torch.float64))
    (there, seen), (elsewhere, kept) = problem.cost(scene.truth), problem.cost(away)
    assert kept < 0.5 * seen
    assert elsewhere > 0.9 * there


STRIPES = {
    "wall": (lambda x, y: x, [1], "a wall with upright stripes: up and down is free"),
    "tunnel": (lambda x, y: np.arctan2(y - 80, x - 256) * 60, [2], "stripes along a tunnel: ahead is free"),
}


@pytest.mark.parametrize("name", STRIPES)
def test_what_the_image_does_not_tell_is_not_claimed(name: str) -> None:
    """The free direction keeps the prior's spread and is not moved along; across it the pose is found and sure."""
    place, free, _ = STRIPES[name]
    generator = torch.Generator().manual_seed(3)
    rows, columns = np.mgrid[:HEIGHT:4, :WIDTH:4] + 1.5
    phase = place(columns, rows)[..., None] / np.array([97.0, 53.0, 29.0])
    features = torch.from_numpy(np.concatenate([np.sin(phase), np.cos(phase)], -1) / np.sqrt(3))[None]
    pixels = torch.rand(1, 600, 2, generator=generator, dtype=torch.float64) * torch.tensor([470.0, 118.0]) + 20
    if name == "tunnel":
        pixels = pixels[:, (pixels[0] - torch.tensor([256.0, 80.0])).norm(dim=1) > 45]
    rays = (pixels - INTRINSICS[2:]) / INTRINSICS[:2]
    # All points of the wall are 10 m away, those of the tunnel 3 m from its axis.
    depth = 10.0 if name == "wall" else 3.0 / rays.norm(dim=-1, keepdim=True)
    xyz = torch.cat([rays, torch.ones_like(rays[..., :1])], -1) * depth
    truth = torch.eye(4, dtype=torch.float64)[None]
    error = torch.tensor([[0.06, 0.0, 0.0, 0.0, 0.0, 0.01]], dtype=torch.float64)
    noisy = level(features, pixels, 4)
    noisy.expected = noisy.expected + 0.05 * torch.randn(noisy.expected.shape, generator=generator, dtype=torch.float64)
    found = align_features([noisy], xyz, truth @ se3.exp(error), INTRINSICS.double()[None], box=BOX)
    assert found.covariance is not None
    sigma = found.covariance[0].diagonal().sqrt()
    left = se3.log(found.map_from_camera)[0]
    assert sigma[free] > 0.5 * BOX.double()[free]
    assert left[free].abs() < 0.2 * sigma[free]
    held = [0] if name == "wall" else [0, 1]
    assert (sigma[held] < 0.1).all()


def test_errors_are_as_large_as_the_covariance_says() -> None:
    """Features with noise that whole patches have in common: 90 % of the poses in their 90 % ellipsoid, or more."""
    squared = []
    for seed in range(60):
        scene = Scene(100 + seed, strides=(4,))
        one = scene.levels[0]
        rough = torch.randn(1, 16, 10, 32, generator=scene.generator, dtype=torch.float64)
        noise = torch.nn.functional.interpolate(rough, size=one.size, mode="bicubic", align_corners=False)
        noisy = replace(one, features=one.features + 0.25 * noise.permute(0, 2, 3, 1))
        found = align_features([noisy], scene.xyz, scene.truth, scene.intrinsics, box=BOX)
        assert found.covariance is not None
        moved = found.map_from_camera[0] @ torch.linalg.inv(scene.truth[0])
        error = torch.cat([
            found.map_from_camera[0, :3, 3] - scene.truth[0, :3, 3], se3.so3_log(moved[:3, :3]),
        ])  # fmt: skip
        squared.append(float(error @ torch.linalg.solve(found.covariance[0], error)))
    held = np.mean(np.array(squared) < chi2.ppf(0.9, 6))
    assert held >= 0.8
    assert np.median(squared) > 0.15 * chi2.ppf(0.5, 6)  # nor are they claimed many times as large


def test_points_behind_the_camera_and_images_of_nothing_move_nothing() -> None:
    scene = Scene(10, strides=(4,))
    behind = scene.truth @ se3.exp(torch.tensor([[0, 0, 0, 0, np.pi, 0]], dtype=torch.float64))
    found = align_features(scene.levels, scene.xyz, behind, scene.intrinsics, box=BOX)
    torch.testing.assert_close(found.map_from_camera, behind)
    assert found.covariance is not None
    torch.testing.assert_close(
        found.covariance[0].diagonal()[:3].sqrt().sum(), BOX.double()[:3].sum(), rtol=0.2, atol=0
    )
    flat = replace(scene.levels[0], features=torch.zeros_like(scene.levels[0].features))
    still = align_features([flat], scene.xyz, scene.truth, scene.intrinsics)
    torch.testing.assert_close(still.map_from_camera, scene.truth)


def test_projection_is_the_localizers_own() -> None:
    """Where the points lie is what `project_pinhole` says, in cells whose first is centred half a stride in."""
    scene = Scene(11, strides=(4,))
    place, inside, _ = _Problem.at(scene.levels[0], scene.xyz, scene.truth, scene.intrinsics)._look(scene.truth)
    pixels, _ = project_pinhole(scene.intrinsics, se3.apply(se3.inverse(scene.truth), scene.xyz))
    torch.testing.assert_close(place, (pixels - 1.5) / 4)
    assert inside.all()
