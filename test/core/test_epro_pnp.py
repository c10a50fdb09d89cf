"""The Monte-Carlo pose loss: its integral against a grid over all six degrees of freedom, its gradients, its limits."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from ep2ploc_core import se3
from ep2ploc_core.pose.epro_pnp import (
    PoseMatches,
    log_integral,
    monte_carlo_pose_loss,
    pose_cost,
    sample_poses,
    solve_pose,
)

INTRINSICS = (300.0, 310.0, 255.5, 95.5)


def make_matches(
    batch: int, count: int, weight: float, noise: float, seed: int, outliers: int = 0
) -> tuple[PoseMatches, torch.Tensor]:
    """Matches in double precision, weights different for columns and rows, and the true camera_from_map."""
    rng = np.random.default_rng(seed)
    camera = rng.uniform([-4, -2, 5], [4, 2, 15], (batch, count, 3))
    pixels = camera[..., :2] / camera[..., 2:] * INTRINSICS[:2] + INTRINSICS[2:]
    pixels += rng.normal(0, noise, pixels.shape)
    pixels[:, :outliers] += 80.0
    pose = se3.exp(torch.from_numpy(rng.normal(0, 1, (batch, 6)) * [5, 5, 1, 0.5, 0.5, 2]))
    points = se3.apply(se3.inverse(pose), torch.from_numpy(camera))
    weights = torch.from_numpy(weight * rng.uniform(0.7, 1.3, (batch, count, 2)))
    intrinsics = torch.tensor([INTRINSICS], dtype=torch.float64).expand(batch, 4)
    return PoseMatches(points, torch.from_numpy(pixels), weights, intrinsics), pose


def huber_threshold(pixels: np.ndarray, weights: np.ndarray) -> float:
    return 0.1 * weights.mean() * math.sqrt(pixels.var(0).sum())


def numpy_cost(matches: PoseMatches, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Costs `(K,)` of the first image's matches at rotations `(K or 1, 3, 3)`, translations `(K, 3)`, all in front."""
    points, pixels, weights = (value[0].detach().numpy() for value in (matches.points, matches.pixels, matches.weights))
    threshold = huber_threshold(pixels, weights)
    total = np.zeros(len(translation))
    for point, pixel, weight in zip(points, pixels, weights, strict=True):
        camera = rotation @ point + translation
        off = (camera[:, :2] / camera[:, 2:] * INTRINSICS[:2] + INTRINSICS[2:] - pixel) * weight
        length = np.linalg.norm(off, axis=1)
        total += np.where(length < threshold, 0.5 * length**2, threshold * (length - 0.5 * threshold))
    return total


def opencv_jacobian(points: np.ndarray) -> np.ndarray:
    """Of the pixels `(2 N, 6)` by position and turn, at points `(N, 3)` in the camera's own frame."""
    matrix = np.array([[INTRINSICS[0], 0, INTRINSICS[2]], [0, INTRINSICS[1], INTRINSICS[3]], [0, 0, 1]])
    jacobian = cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix, None)[1]
    return np.concatenate([jacobian[:, 3:6], jacobian[:, :3]], 1)


def grid_log_integral(matches: PoseMatches, pose: torch.Tensor, reach: float, step: float) -> float:
    """Log of the integral of exp(-cost) over position and rotation by a sum over a six-dimensional grid around a pose
    `(4, 4)`, in units of the deviations of a Gaussian there. The Haar measure in rotation vectors of length a is
    (sin(a/2) / (a/2))^2."""
    rotation, translation = pose[:3, :3].numpy(), pose[:3, 3].numpy()
    points = matches.points[0].numpy()
    middle = points.mean(0)
    place = rotation @ middle + translation
    camera = points @ rotation.T + translation
    # Turns are about the middle: what turns about the camera, less the move that the middle makes then.
    jacobian = opencv_jacobian(camera)
    jacobian[:, 3:] -= jacobian[:, :3] @ np.cross(np.eye(3), place).T
    weighted = jacobian * matches.weights[0].numpy().reshape(-1, 1)
    order = [3, 4, 5, 0, 1, 2]  # turns first, so that they do not depend on the places in the triangular root
    root = np.linalg.cholesky(np.linalg.inv(weighted.T @ weighted)[np.ix_(order, order)])
    axis = np.arange(-reach, reach + step / 2, step)
    offsets = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    moves = offsets @ root[3:, 3:].T
    logs = []
    for offset in offsets:
        vector = root[:3, :3] @ offset
        turned = Rotation.from_rotvec(vector).as_matrix() @ rotation
        places = place + root[3:, :3] @ offset + moves
        costs = numpy_cost(matches, turned[None], places - turned @ middle)
        smallest = costs.min()
        half = np.linalg.norm(vector) / 2
        logs.append(np.log(np.exp(smallest - costs).sum()) - smallest + 2 * np.log(np.sinc(half / np.pi)))
    most = max(logs)
    return most + math.log(np.exp(np.array(logs) - most).sum()) + np.log(np.diag(root)).sum() + 6 * math.log(step)


def estimate(matches: PoseMatches, starts: torch.Tensor, samples: int, seed: int = 0) -> torch.Tensor:
    drawn = sample_poses(matches, solve_pose(matches, starts), torch.Generator().manual_seed(seed), samples=samples)
    return log_integral(matches, drawn)


def test_cost_is_hubers_of_opencvs_reprojection_errors() -> None:
    matches, pose = make_matches(1, 20, 0.1, 3.0, 0, outliers=3)
    poses = se3.exp(0.05 * torch.randn(7, 6, dtype=torch.float64)) @ pose
    rotation, translation = poses[:, :3, :3].numpy(), poses[:, :3, 3].numpy()
    expected = numpy_cost(matches, rotation, translation)
    np.testing.assert_allclose(pose_cost(matches, poses[None])[0].numpy(), expected, rtol=1e-10)


def test_from_a_start_far_off_the_solution_is_the_minimum_that_scipy_finds_from_the_truth() -> None:
    matches, pose = make_matches(1, 12, 0.2, 2.0, 1, outliers=1)
    start = se3.exp(torch.tensor([0.5, -0.2, 0.4, 0.03, 0.1, -0.05], dtype=torch.float64)) @ pose
    solved = solve_pose(matches, start[:, None])

    def cost(tangent: np.ndarray) -> float:
        moved = (se3.exp(torch.from_numpy(tangent)) @ pose)[0].numpy()
        return float(numpy_cost(matches, moved[None, :3, :3], moved[None, :3, 3])[0])

    best = minimize(cost, np.zeros(6), method="BFGS", options={"gtol": 1e-6}).fun
    assert float(solved.cost) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize(("weight", "outliers"), [(0.4, 0), (0.15, 1)])
def test_integral_is_that_of_a_grid(weight: float, outliers: int) -> None:
    matches, pose = make_matches(1, 9, weight, 4.0, 2, outliers)
    solved = solve_pose(matches, pose[:, None])
    expected = grid_log_integral(matches, solved.camera_from_map[0], 5.6 if outliers else 4.8, 1.6)
    assert float(estimate(matches, pose[:, None], 4096)) == pytest.approx(expected, abs=0.03)
    # As in training: the mean over runs is a little low, since a round learns from samples that it also weighs.
    few = torch.stack([estimate(matches, pose[:, None], 128, seed) for seed in range(20)])
    assert float(few.mean()) == pytest.approx(expected, abs=0.15) and float(few.std()) < 0.2


def test_slope_of_the_integral_is_that_of_a_grid() -> None:
    """By the scale of all weights: the gradient holds although nothing flows through the samples."""
    matches, pose = make_matches(1, 9, 0.4, 4.0, 3)
    scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    scaled = PoseMatches(matches.points, matches.pixels, matches.weights * scale.exp(), matches.intrinsics)
    (slope,) = torch.autograd.grad(estimate(scaled, pose[:, None], 4096).sum(), scale)
    mode = solve_pose(matches, pose[:, None]).camera_from_map[0]
    values = [
        grid_log_integral(
            PoseMatches(matches.points, matches.pixels, matches.weights * math.exp(off), matches.intrinsics),
            mode, 4.8, 1.6,
        )
        for off in (-0.05, 0.05)
    ]  # fmt: skip
    assert float(slope) == pytest.approx((values[1] - values[0]) / 0.1, abs=0.1)


def test_four_points_with_large_weights_reach_laplaces_limit() -> None:
    """(2 pi)^3 / sqrt(det J^T W^2 J), the Jacobian being OpenCV's."""
    matches, pose = make_matches(1, 4, 30.0, 0.0, 4)
    camera = se3.apply(pose, matches.points)[0].numpy()
    weighted = opencv_jacobian(camera) * matches.weights[0].numpy().reshape(-1, 1)
    expected = 3 * math.log(2 * math.pi) - 0.5 * np.linalg.slogdet(weighted.T @ weighted)[1]
    assert float(estimate(matches, pose[:, None], 4096)) == pytest.approx(expected, abs=0.02)
    loss = monte_carlo_pose_loss(matches, pose, pose[:, None], torch.Generator().manual_seed(0))
    assert float(loss) == pytest.approx(expected, abs=0.3)


def test_gradients_by_finite_differences() -> None:
    """With the same samples for all."""
    matches, pose = make_matches(2, 6, 0.1, 3.0, 5, outliers=1)
    drawn = sample_poses(matches, solve_pose(matches, pose[:, None]), torch.Generator().manual_seed(0), samples=16)

    def loss(weights: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        changed = PoseMatches(matches.points, pixels, weights, matches.intrinsics)
        return pose_cost(changed, pose[:, None])[:, 0] + log_integral(changed, drawn)

    inputs = (matches.weights.clone().requires_grad_(), matches.pixels.clone().requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-5, rtol=1e-4)


def test_a_batch_is_its_images_one_by_one() -> None:
    matches, pose = make_matches(3, 12, 0.1, 3.0, 6, outliers=2)
    matches.weights[1, 8:] = 0
    starts = torch.stack([se3.exp(torch.full((6,), 0.05, dtype=torch.float64)) @ pose, pose], 1)
    solved = solve_pose(matches, starts)
    drawn = sample_poses(matches, solved, torch.Generator().manual_seed(0))
    together = log_integral(matches, drawn)
    for image in range(3):
        kept = slice(0, 8 if image == 1 else 12)
        single = PoseMatches(
            matches.points[image : image + 1, kept], matches.pixels[image : image + 1, kept],
            matches.weights[image : image + 1, kept], matches.intrinsics[:1],
        )  # fmt: skip
        alone = solve_pose(single, starts[image : image + 1])
        torch.testing.assert_close(alone.camera_from_map[0], solved.camera_from_map[image])
        same = type(drawn)(drawn.camera_from_map[image : image + 1], drawn.log_density[image : image + 1])
        torch.testing.assert_close(log_integral(single, same)[0], together[image])
        assert float(estimate(single, starts[image : image + 1], 512)) == pytest.approx(float(together[image]), abs=0.4)


def test_no_pose_gains_by_passing_the_points() -> None:
    matches, pose = make_matches(1, 12, 0.1, 1.0, 7)
    on_axis = torch.tensor([[[0.0, 0.0, 8.0]]], dtype=torch.float64)  # projects to the same pixel from everywhere
    middle = torch.tensor(INTRINSICS[2:], dtype=torch.float64)
    matches.points = torch.cat([matches.points, se3.apply(se3.inverse(pose), on_axis)], 1)
    matches.pixels = torch.cat([matches.pixels, middle[None, None]], 1)
    matches.weights = torch.cat([matches.weights, torch.full((1, 1, 2), 0.1, dtype=torch.float64)], 1)
    passed = torch.zeros(4, 6, dtype=torch.float64)
    passed[:, 2] = torch.tensor([0.0, -16.0, -20.0, -30.0])
    costs = pose_cost(matches, (se3.exp(passed) @ pose)[None])[0]
    assert (costs.diff() > 0).all() and torch.isfinite(costs).all()
    start = se3.exp(passed[1:2]) @ pose
    matches.weights.requires_grad_()
    loss = monte_carlo_pose_loss(matches, pose, start[:, None], torch.Generator().manual_seed(0))
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(matches.weights.grad).all()


@pytest.mark.parametrize("kind", ["one place", "one point", "no weight", "a line", "far start"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_that_hold_no_pose_give_no_nan(kind: str, dtype: torch.dtype) -> None:
    matches, pose = make_matches(2, 10, 0.1, 2.0, 8)
    start = pose.clone()
    if kind == "one place":
        matches.points, matches.pixels = (
            matches.points[:, :1].expand(-1, 10, -1), matches.pixels[:, :1].expand(-1, 10, -1)
        )  # fmt: skip
    elif kind == "one point":
        matches.weights[:, 1:] = 0
    elif kind == "no weight":
        matches.weights[:] = 0
    elif kind == "a line":
        matches.points = matches.points[:, :1] + torch.arange(10)[:, None] * torch.tensor([0.1, 0.2, 0.0])
    else:
        start[:, :3, 3] += 1e4
    typed = PoseMatches(*(value.to(dtype) for value in vars(matches).values()))
    typed.weights.requires_grad_()
    typed.pixels.requires_grad_()
    loss = monte_carlo_pose_loss(typed, pose.to(dtype), start[:, None].to(dtype), torch.Generator().manual_seed(0))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert typed.weights.grad is not None and torch.isfinite(typed.weights.grad).all()
    assert typed.pixels.grad is not None and torch.isfinite(typed.pixels.grad).all()


def test_learning_weights_by_the_loss_finds_the_wrong_matches() -> None:
    matches, pose = make_matches(2, 24, 0.2, 1.0, 9, outliers=6)
    logit = torch.zeros(2, 24, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logit], lr=0.2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        weights = matches.weights * torch.sigmoid(logit)
        changed = PoseMatches(matches.points, matches.pixels, weights, matches.intrinsics)
        loss = monte_carlo_pose_loss(changed, pose, pose[:, None], generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    confidence = torch.sigmoid(logit[..., 0].detach())
    assert (confidence[:, :6].amax(1) < confidence[:, 6:].mean(1)).all()


def test_half_precision_around_it_changes_nothing() -> None:
    matches, pose = make_matches(1, 12, 0.1, 2.0, 10)
    plain = monte_carlo_pose_loss(matches, pose, pose[:, None], torch.Generator().manual_seed(0))
    single = PoseMatches(*(value.float() for value in vars(matches).values()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = monte_carlo_pose_loss(single, pose.float(), pose[:, None].float(), torch.Generator().manual_seed(0))
    exact = monte_carlo_pose_loss(single, pose.float(), pose[:, None].float(), torch.Generator().manual_seed(0))
    assert torch.equal(loss, exact)
    assert float(plain) == pytest.approx(float(exact), abs=0.5)
