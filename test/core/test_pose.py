"""Poses from matches and from score maps, against known answers."""

import numpy as np
import torch

from ep2ploc_core import se3
from ep2ploc_core.model.patch_classifier import PatchScores, patch_prior
from ep2ploc_core.pose.pnp import _residuals, refine, solve_ransac
from ep2ploc_core.pose.pose_posterior import Box, PosePosterior, pose_log_likelihood
from ep2ploc_core.pose.score_search import SearchSettings, search_pose

MATRIX = np.array([[300.0, 0, 256], [0, 300, 80], [0, 0, 1]])


def scene(seed: int, count: int = 400, far: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """map_from_camera, points in the map, their pixels."""
    rng = np.random.default_rng(seed)
    pose = se3.exp(torch.from_numpy(rng.uniform(-1, 1, 6) * [5, 5, 2, 0.3, 0.3, 0.3])).numpy()
    pose[:3, 3] += far
    camera = np.c_[rng.uniform(-8, 8, count), rng.uniform(-2, 2, count), rng.uniform(4, 40, count)]
    pixels = camera @ MATRIX.T
    return pose, camera @ pose[:3, :3].T + pose[:3, 3], pixels[:, :2] / pixels[:, 2:]


def test_perfect_matches_give_the_exact_pose_also_at_utm_coordinates() -> None:
    for seed, far in ((0, 0.0), (1, 5e6)):
        pose, points, pixels = scene(seed, far=far)
        found = solve_ransac(points, pixels, MATRIX, 4.0)
        assert found is not None
        result = refine(found, points, pixels, np.ones(len(points)), MATRIX, 2.0)
        metres, radians = se3.pose_error(result.map_from_camera, pose)
        assert metres < 1e-5 and radians < 1e-6
        assert result.inliers.all()


def test_two_thirds_of_outliers_do_not_move_the_pose() -> None:
    pose, points, pixels = scene(2, 600)
    rng = np.random.default_rng(3)
    wrong = rng.random(600) < 0.67
    pixels = pixels + rng.normal(0, 0.5, pixels.shape)
    pixels[wrong] = rng.uniform([0, 0], [512, 160], (wrong.sum(), 2))
    found = solve_ransac(points, pixels, MATRIX, 4.0)
    assert found is not None
    result = refine(found, points, pixels, np.ones(600), MATRIX, 2.0)
    metres, radians = se3.pose_error(result.map_from_camera, pose)
    assert metres < 0.1 and radians < 0.01
    assert abs(result.inliers[~wrong].mean() - 1) < 0.05


def test_jacobian_agrees_with_finite_differences() -> None:
    pose, points, pixels = scene(4, 20)
    _, jacobian, _ = _residuals(pose, points, pixels, MATRIX)
    for axis in range(6):
        step = np.zeros(6)
        step[axis] = 1e-6
        moved = [
            _residuals(
                se3.perturb(torch.from_numpy(pose), torch.from_numpy(sign * step)).numpy(), points, pixels, MATRIX
            )[0]
            for sign in (1, -1)
        ]
        np.testing.assert_allclose(jacobian[:, :, axis], (moved[0] - moved[1]) / 2e-6, rtol=1e-4, atol=1e-3)


def test_covariance_is_as_large_as_the_scatter_of_poses() -> None:
    pose, points, pixels = scene(5, 300)
    rng = np.random.default_rng(6)
    errors, predicted = [], []
    for _ in range(150):
        noisy = pixels + rng.normal(0, 1.0, pixels.shape)
        result = refine(pose, points, noisy, np.ones(300), MATRIX, 5.0)
        errors.append((np.linalg.inv(pose) @ result.map_from_camera)[:3, 3])
        predicted.append(np.trace(result.covariance[:3, :3]))
    ratio = np.mean(np.sum(np.square(errors), 1)) / np.mean(predicted)
    assert 0.7 < ratio < 1.4


def test_too_few_or_degenerate_matches_give_no_pose_and_no_exception() -> None:
    assert solve_ransac(np.zeros((3, 3)), np.zeros((3, 2)), MATRIX, 4.0) is None
    same = np.ones((50, 3))
    result = solve_ransac(same, np.full((50, 2), 7.0), MATRIX, 4.0)
    assert result is None or np.isfinite(result).all()


def score_maps(seed: int, patch: int = 8) -> tuple[np.ndarray, torch.Tensor, PatchScores]:
    """Score maps that peak where the true pose puts each point."""
    pose, points, pixels = scene(seed, 500)
    grid_x = torch.arange(64) * patch + (patch - 1) / 2
    grid_y = torch.arange(20) * patch + (patch - 1) / 2
    true = torch.from_numpy(pixels).float()
    square = (grid_y[:, None] - true[:, 1, None, None]) ** 2 + (grid_x - true[:, 0, None, None]) ** 2
    likelihood = (-0.5 * square / patch**2).clamp(min=-8)[None]
    posterior = torch.cat([likelihood.flatten(2), torch.full((1, 500, 1), -4.0)], -1)
    scores = PatchScores(likelihood, posterior[..., -1], posterior, torch.ones(1, 500), torch.zeros(1, 500, 1))
    return pose, torch.from_numpy(points).float()[None], scores


def box_around(pose: np.ndarray) -> Box:
    return Box(torch.from_numpy(pose).float(), torch.tensor([3.0, 3, 3, 0.5, 0.5, 0.5]))


def test_search_finds_the_pose_that_score_maps_speak_of() -> None:
    """A pose as probable as the true one, and near it: the maps know places to a fraction of a patch."""
    valid = torch.ones(1, 500, dtype=torch.bool)
    intrinsics = torch.tensor([[300.0, 300, 256, 80]])
    sigma = torch.tensor([1.2, 0.3, 1.2, 0.03, 0.1, 0.03])
    for seed in range(6):
        pose, points, scores = score_maps(seed)
        rng = np.random.default_rng(seed)
        start = pose @ se3.exp(torch.from_numpy(rng.uniform(-1.5, 1.5, 6) * sigma.numpy())).numpy()
        found = search_pose(
            PosePosterior(
                scores, points, valid, torch.from_numpy(start).float(), sigma, intrinsics, 8, 0.15, box_around(start)
            )
        )
        both = torch.stack([found.map_from_camera, torch.from_numpy(pose).float()])
        values = pose_log_likelihood(scores, points, valid, se3.inverse(both)[None], intrinsics, 8)[0]
        assert values[0] > values[1] - 0.02 * values[1].abs()
        metres, radians = se3.pose_error(found.map_from_camera.double().numpy(), pose)
        assert metres < 0.25 and radians < np.radians(1)


def test_pose_log_likelihood_interpolates_between_patch_centres_and_is_neutral_outside() -> None:
    pose, points, scores = score_maps(9)
    valid = torch.ones(1, 500, dtype=torch.bool)
    intrinsics = torch.tensor([[300.0, 300, 256, 80]])
    away = pose.copy()
    away[:3, :3] = pose[:3, :3] @ se3.exp(torch.tensor([0, 0, 0, 0, 3.1, 0.0])).numpy()[:3, :3]  # looks back
    poses = torch.from_numpy(np.stack([np.linalg.inv(pose), np.linalg.inv(away)])).float()[None]
    right, none = pose_log_likelihood(scores, points, valid, poses, intrinsics, 8)[0].tolist()
    assert none == -4.0 * 500
    assert right > -0.5 * 500


def test_prior_density_is_the_projected_covariance() -> None:
    """Against the scatter of the projections of poses drawn from the prior."""
    generator = torch.Generator().manual_seed(0)
    sigma = torch.tensor([[0.4, 0.1, 0.3, 0.01, 0.03, 0.02]])
    point = torch.tensor([[[3.0, 1.0, 14.0]]])
    intrinsics = torch.tensor([[300.0, 300, 256, 80]])
    prior = patch_prior(point, intrinsics, sigma, 20, 64, 8)
    assert abs(prior.log_patch.exp().sum() + prior.log_none.exp() - 1) < 0.03
    share = prior.log_patch[0, 0].exp() / prior.log_patch[0, 0].exp().sum()
    moved = se3.apply(se3.exp(torch.randn(4000, 6, generator=generator) * sigma), point.expand(4000, 1, 3))[:, 0]
    pixels = moved[:, :2] / moved[:, 2:] * 300 + torch.tensor([256.0, 80])
    y, x = torch.meshgrid(torch.arange(20) * 8 + 3.5, torch.arange(64) * 8 + 3.5, indexing="ij")
    for grid, column in ((x, 0), (y, 1)):
        mean = (share * grid).sum()
        variance = (share * (grid - mean) ** 2).sum() - 64  # the one patch that is added on purpose
        assert abs(mean - pixels[:, column].mean()) < 3
        assert abs(variance.sqrt() / pixels[:, column].std() - 1) < 0.2


def test_search_covariance_is_that_of_the_posterior() -> None:
    """Against a fine grid over the two directions that matter, sideways and ahead."""
    pose, points, scores = score_maps(10)
    valid = torch.ones(1, 500, dtype=torch.bool)
    intrinsics = torch.tensor([[300.0, 300, 256, 80]])
    sigma = torch.tensor([1.0, 0.001, 1.0, 1e-4, 1e-4, 1e-4])
    start = torch.from_numpy(pose).float()
    box = Box(start, sigma * 3**0.5)  # no wider than the prior, which else counts as one that the image itself gave
    found = search_pose(PosePosterior(scores, points, valid, start, sigma, intrinsics, 8, 0.02, box))
    steps = torch.linspace(-1, 1, 81)
    side, ahead = torch.meshgrid(steps, steps, indexing="ij")
    tangents = torch.zeros(81 * 81, 6)
    tangents[:, 0], tangents[:, 2] = side.flatten(), ahead.flatten()
    poses = se3.inverse(start @ se3.exp(tangents))
    values = torch.cat([
        pose_log_likelihood(scores, points, valid, part[None], intrinsics, 8)[0] for part in poses.split(729)
    ])  # fmt: skip
    share = (0.02 * values - 0.5 * ((tangents / sigma) ** 2).sum(1)).softmax(0)
    expected = torch.cov(tangents.T, aweights=share, correction=0)[[0, 2]][:, [0, 2]]
    rotation = start[:3, :3]
    in_camera = (rotation.T @ found.covariance[:3, :3] @ rotation)[[0, 2]][:, [0, 2]]
    torch.testing.assert_close(in_camera, expected, rtol=0.3, atol=0.1 * float(expected.diagonal().max()))


def test_slope_of_the_posterior_agrees_with_finite_differences_and_its_value_with_the_training_likelihood() -> None:
    """In double precision, at poses where points leave the image too: those count as constants."""
    pose, points, scores = score_maps(12)
    generator = torch.Generator().manual_seed(0)
    rough = scores.log_likelihood.double() + torch.randn(scores.log_likelihood.shape, generator=generator)
    scores = PatchScores(
        rough, scores.log_likelihood_none.double(), scores.log_posterior, torch.rand(1, 500).double(), scores.query
    )
    valid = torch.rand(1, 500, generator=generator) > 0.2
    intrinsics = torch.tensor([[300.0, 300, 256, 80]]).double()
    sigma = torch.tensor([1.2, 0.3, 1.2, 0.03, 0.1, 0.03]).double()
    start = torch.from_numpy(pose)
    box = Box(start, torch.full((6,), 9.0).double())
    posterior = PosePosterior(scores, points.double(), valid, start, sigma, intrinsics, 8, 0.15, box)
    offsets = sigma * torch.randn(20, 6, generator=generator)
    slope = posterior.slope(offsets)
    torch.testing.assert_close(slope.value, posterior.value(offsets))
    likelihood = pose_log_likelihood(
        scores, points.double(), valid, se3.inverse(start @ se3.exp(offsets))[None], intrinsics, 8
    )[0]
    torch.testing.assert_close(slope.value, 0.15 * likelihood - 0.5 * ((offsets / sigma) ** 2).sum(1))
    for axis in range(6):
        step = torch.zeros(6).double()
        step[axis] = 1e-7
        difference = (posterior.value(offsets + step) - posterior.value(offsets - step)) / 2e-7
        torch.testing.assert_close(slope.gradient[:, axis], difference, rtol=0.02, atol=0.02 * float(1 / sigma[axis]))


def test_search_with_other_samples_ends_at_the_same_pose() -> None:
    """Within a fraction of its own standard deviation, a decimetre here."""
    pose, points, scores = score_maps(13)
    valid = torch.ones(1, 500, dtype=torch.bool)
    intrinsics = torch.tensor([[300.0, 300, 256, 80]])
    sigma = torch.tensor([1.2, 0.3, 1.2, 0.03, 0.1, 0.03])
    start = torch.from_numpy(pose).float()
    start[:3, 3] += 0.8
    posterior = PosePosterior(scores, points, valid, start, sigma, intrinsics, 8, 0.15, box_around(pose))
    first, second = (search_pose(posterior, SearchSettings(seed=seed)).map_from_camera.double() for seed in (0, 1))
    metres, radians = se3.pose_error(first.numpy(), second.numpy())
    assert metres < 0.05 and radians < np.radians(0.2)


def test_search_stays_in_the_box_that_the_prior_allows() -> None:
    pose, points, scores = score_maps(11)
    valid = torch.ones(1, 500, dtype=torch.bool)
    intrinsics = torch.tensor([[300.0, 300, 256, 80]])
    start = torch.from_numpy(pose).float()
    start[:3, 3] += 2.0 * start[:3, 0]
    sigma = torch.tensor([1.2, 0.3, 1.2, 0.03, 0.1, 0.03])
    half = torch.tensor([1.0, 0.5, 1.0, 0.05, 0.1, 0.05])
    found = search_pose(PosePosterior(scores, points, valid, start, sigma, intrinsics, 8, 1.0, Box(start, half)))
    moved = se3.log((se3.inverse(start) @ found.map_from_camera).double()).numpy()
    assert (np.abs(moved) < 1.1 * half.numpy()).all() and moved[0] < -0.8
