"""The jackknife over parts of the image: against its closed form, and against the scatter of true errors."""

import numpy as np
import torch

from ep2ploc_core import se3
from ep2ploc_core.model.patch_classifier import PatchScores
from ep2ploc_core.pose.belief import BeliefWeights, Evidence, belief
from ep2ploc_core.pose.jackknife import PartValues, delete_one_covariance, part_of_points, poses_without_parts
from ep2ploc_core.pose.score_search import Box, PosePosterior, SearchResult, search_pose

INTRINSICS = torch.tensor([[300.0, 300, 256, 80]])
SIGMA = torch.tensor([1.2, 0.3, 1.2, 0.03, 0.1, 0.03])
COUNT = 400


def test_delete_one_of_a_mean_is_the_variance_of_the_mean() -> None:
    """A classical identity: for the mean of G values the jackknife's variance is their variance over G, exactly."""
    values = torch.randn(7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    without = (values.sum(0) - values) / 6
    torch.testing.assert_close(delete_one_covariance(without), torch.cov(values.T) / 7)


def test_poses_without_a_part_are_those_of_the_other_parts() -> None:
    """Quadratic log likelihoods: what is left without one is quadratic too, and its mean is known."""
    generator = torch.Generator().manual_seed(1)
    centres = 0.3 * torch.randn(5, 6, generator=generator, dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 1.5, 1.0, 0.001], dtype=torch.float64)
    offsets = torch.randn(400_000, 6, generator=generator, dtype=torch.float64)
    value = -0.5 * weight[:, None] * ((offsets - centres[:, None]) ** 2).sum(-1)
    density = -0.5 * (offsets**2).sum(-1)  # they were drawn from it
    poses, left = poses_without_parts(offsets, value.sum(0) - density, PartValues(value, weight))
    assert left.tolist() == [0, 1, 2, 3]  # the last one hardly counts
    for number in range(4):
        others = [part for part in range(5) if part != number]
        expected = (weight[others, None] * centres[others]).sum(0) / weight[others].sum()
        torch.testing.assert_close(poses[number], expected, rtol=0, atol=0.02)


def test_every_point_is_in_one_part() -> None:
    place = torch.tensor([[-0.9, -0.5], [0.9, 0.5], [-5.0, 9.0], [0.1, -0.1]])
    parts = part_of_points(place)
    assert parts.sum(0).tolist() == [1, 1, 1, 1]
    assert parts.argmax(0).tolist() == [0, 7, 4, 2]


def searched(seed: int, shift: float, flat: bool = False) -> tuple[SearchResult, np.ndarray]:
    """A search on score maps that peak where the truth puts the points, but for an error that all points of an eighth
    of the image share: `shift` pixels in the root mean square. `flat`: score maps of noise. And the true offset."""
    rng = np.random.default_rng(seed)
    pixels = np.column_stack([rng.uniform(0, 512, COUNT), rng.uniform(0, 160, COUNT)])
    depth = rng.uniform(5, 30, COUNT)
    points = np.column_stack([(pixels - [256, 80]) / 300 * depth[:, None], depth])
    part = (pixels[:, 0] // 128 + 4 * (pixels[:, 1] // 80)).astype(int)
    peak = torch.from_numpy(pixels + shift * rng.standard_normal((8, 2))[part]).float()
    x, y = torch.arange(64) * 8 + 3.5, torch.arange(20) * 8 + 3.5
    square = (y[:, None] - peak[:, 1, None, None]) ** 2 + (x - peak[:, 0, None, None]) ** 2
    maps = (-0.5 * square / 8**2).clamp(min=-6)[None]
    if flat:
        noise = torch.randn(1, COUNT, 20, 64, generator=torch.Generator().manual_seed(seed))
        maps = torch.nn.functional.avg_pool2d(noise, 5, 1, 2) * 5 - 3
    none = torch.full((1, COUNT), -4.0)
    posterior = torch.cat([maps.flatten(2), none[..., None]], -1)
    scores = PatchScores(maps, none, posterior, torch.ones(1, COUNT), torch.zeros(1, COUNT, 1))
    start = se3.exp(torch.from_numpy(rng.uniform(-1, 1, 6) * SIGMA.numpy())).numpy()
    guess = torch.from_numpy(start).float()
    box = Box(guess, 3 * SIGMA)
    valid = torch.ones(1, COUNT, dtype=torch.bool)
    xyz = torch.from_numpy(points).float()[None]
    found = search_pose(PosePosterior(scores, xyz, valid, guess, SIGMA, INTRINSICS, 8, 0.15, box))
    pose = found.map_from_camera.double().numpy()
    return found, np.concatenate([pose[:3, 3], se3.so3_log(torch.from_numpy(pose[:3, :3])).numpy()])


def test_errors_that_parts_of_the_image_share_are_in_the_covariance() -> None:
    """Over many searches squared errors are as large as posterior and jackknife say together, within a factor of two;
    the posterior alone, which takes points as independent, promises far less."""
    together, alone = [], []
    for seed in range(40):
        found, error = searched(seed, shift=6.0)
        for kept, covariance in ((together, found.covariance + found.jackknife.covariance), (alone, found.covariance)):
            kept.append(error @ np.linalg.solve(covariance.double().numpy(), error) / 6)
    assert 0.5 < np.mean(together) < 2.0
    assert np.mean(alone) > 2 * np.mean(together)


def test_parts_gain_from_the_others_only_where_the_image_says_something() -> None:
    told = [searched(seed, shift=2.0)[0].jackknife.gain for seed in range(4)]
    silent = [searched(seed, shift=0.0, flat=True)[0].jackknife.gain for seed in range(4)]
    assert min(told) > 5 * max(map(abs, silent))


def test_belief_is_a_probability_that_grows_with_the_evidence() -> None:
    weak = Evidence(score=-0.2, gain=0.2, inlier_ratio=0.1, spread=2.0, sigma=1.0)
    strong = Evidence(score=0.3, gain=1.2, inlier_ratio=0.5, spread=0.2, sigma=0.1)
    assert 0 <= belief(weak) < 0.05 and 0.95 < belief(strong) <= 1
    odds = BeliefWeights(score=2.0, gain=0, inlier_ratio=0, log_spread=0, log_sigma=0, odds=0)
    assert belief(Evidence(0.5, 0, 0, 1, 1), odds) == 1 / (1 + np.exp(-1.0))
