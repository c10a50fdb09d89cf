"""The jackknife over parts of the image: against its closed form, and against the scatter of true errors."""

from dataclasses import replace

import numpy as np
import torch

from ep2ploc_core import se3
from ep2ploc_core.evaluation.calibration import tangent_error
from ep2ploc_core.localizer_settings import LocalizerSettings
from ep2ploc_core.model.patch_classifier import PatchScores
from ep2ploc_core.pose.belief import AlignmentEvidence, BeliefWeights, Evidence, belief
from ep2ploc_core.pose.jackknife import (
    Jackknife,
    PartValues,
    delete_one_covariance,
    part_of_points,
    parts_to_leave_out,
    poses_without_parts,
)
from ep2ploc_core.pose.pose_posterior import Box, PosePosterior
from ep2ploc_core.pose.score_search import SearchResult, _without_prior, search_pose

INTRINSICS = torch.tensor([[300.0, 300, 256, 80]])
SIGMA = torch.tensor([1.2, 0.3, 1.2, 0.03, 0.1, 0.03])
COUNT = 400
UNMOVED = np.eye(4)


def test_delete_one_of_a_mean_is_the_variance_of_the_mean() -> None:
    """A classical identity: for the mean of G values the jackknife's variance is their variance over G, exactly."""
    values = torch.randn(7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    without = (values.sum(0) - values) / 6
    share = torch.full((7,), 1 / 7, dtype=torch.float64)
    torch.testing.assert_close(delete_one_covariance(values.mean(0), without, share), torch.cov(values.T) / 7)


def test_delete_one_of_unlike_groups_is_the_variance_of_the_mean_on_the_average() -> None:
    """Groups of a few to many values: against the scatter of the means of many draws."""
    sizes = torch.tensor([40, 20, 20, 10, 5, 5])
    share = sizes / sizes.sum()
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(3000, 100, generator=generator, dtype=torch.float64)
    sums = torch.stack([part.sum(1) for part in values.split(sizes.tolist(), 1)])
    without = (sums.sum(0) - sums) / (100 - sizes)[:, None]
    mean = values.mean(1)
    found = [
        delete_one_covariance(mean[i].expand(6), without[:, i, None].expand(6, 6), share.double())[0, 0]
        for i in range(3000)
    ]
    assert abs(torch.stack(found).mean() * 100 - 1) < 0.1


def test_poses_without_a_part_are_those_of_the_other_parts() -> None:
    """Quadratic log likelihoods: what is left without one is quadratic too, and its mean is known."""
    generator = torch.Generator().manual_seed(1)
    centres = 0.3 * torch.randn(5, 6, generator=generator, dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 1.5, 1.0, 0.001], dtype=torch.float64)
    offsets = torch.randn(400_000, 6, generator=generator, dtype=torch.float64)
    value = -0.5 * weight[:, None] * ((offsets - centres[:, None]) ** 2).sum(-1)
    density = -0.5 * (offsets**2).sum(-1)  # they were drawn from it
    left_out = parts_to_leave_out(weight)
    assert left_out.tolist() == [0, 1, 2, 3]  # the last one hardly counts
    poses = poses_without_parts(offsets, value.sum(0) - density, PartValues(value, weight), left_out)
    for number in range(4):
        others = [part for part in range(5) if part != number]
        expected = (weight[others, None] * centres[others]).sum(0) / weight[others].sum()
        torch.testing.assert_close(poses[number], expected, rtol=0, atol=0.02)


def test_every_point_is_in_one_part() -> None:
    place = torch.tensor([[-0.9, -0.5], [0.9, 0.5], [-5.0, 9.0], [0.1, -0.1]])
    parts = part_of_points(place)
    assert parts.sum(0).tolist() == [1, 1, 1, 1]
    assert parts.argmax(0).tolist() == [0, 7, 4, 2]


def test_few_parts_are_told() -> None:
    assert parts_to_leave_out(torch.tensor([0.0, 9.5, 0.5, 0.0])).tolist() == [2]
    assert parts_to_leave_out(torch.zeros(8)).tolist() == []


def jackknife(found: SearchResult) -> Jackknife:
    assert found.jackknife is not None
    return found.jackknife


def searched(
    seed: int,
    shift: float,
    flat: bool = False,
    turn: np.ndarray = UNMOVED,
    corner: bool = False,
    temperature: float = 0.15,
) -> tuple[SearchResult, np.ndarray]:
    """A search on score maps that peak where the truth puts the points, but for an error that all points of an eighth
    of the image share: `shift` pixels in the root mean square. And its error, as covariances are of it. `flat`: score
    maps of noise. `turn` `(4, 4)`: the whole world is moved so. `corner`: all points lie in one corner of the image."""
    rng = np.random.default_rng(seed)
    pixels = np.column_stack([rng.uniform(0, 512, COUNT), rng.uniform(0, 160, COUNT)])
    if corner:
        pixels = pixels / [5, 3]
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
    start = turn @ start
    points = points @ turn[:3, :3].T + turn[:3, 3]
    guess = torch.from_numpy(start).float()
    box = Box(guess, 3 * SIGMA)
    valid = torch.ones(1, COUNT, dtype=torch.bool)
    xyz = torch.from_numpy(points).float()[None]
    found = search_pose(PosePosterior(scores, xyz, valid, guess, SIGMA, INTRINSICS, 8, temperature, box), by_parts=True)
    return found, tangent_error(found.map_from_camera.double().numpy(), turn)


def test_errors_that_parts_of_the_image_share_are_in_the_covariance() -> None:
    """Over many searches squared errors are as large as posterior and jackknife say together, within a factor of two;
    the posterior alone, which takes points as independent, promises far less."""
    together, alone = [], []
    for seed in range(40):
        found, error = searched(seed, shift=6.0)
        for kept, covariance in ((together, found.covariance + jackknife(found).covariance), (alone, found.covariance)):
            kept.append(error @ np.linalg.solve(covariance.double().numpy(), error) / 6)
    assert 0.5 < np.mean(together) < 2.0
    assert np.mean(alone) > 2 * np.mean(together)


def test_parts_gain_from_the_others_only_where_the_image_says_something() -> None:
    told = [jackknife(searched(seed, shift=2.0)[0]).gain for seed in range(4)]
    silent = [jackknife(searched(seed, shift=0.0, flat=True)[0]).gain for seed in range(4)]
    assert min(told) > 4 * max(map(abs, silent))


def test_covariances_turn_with_the_world() -> None:
    """The same scene, turned about all axes and far away: the same covariances in its new axes."""
    turn = np.eye(4)
    turn[:3, :3] = se3.exp(torch.tensor([0, 0, 0, 0.7, -0.4, 1.9])).numpy()[:3, :3]
    turn[:3, 3] = [30.0, -20.0, 4.0]
    axes = np.kron(np.eye(2), turn[:3, :3])
    here, there = searched(3, shift=4.0)[0], searched(3, shift=4.0, turn=turn)[0]
    for one, other in ((here.covariance, there.covariance), (jackknife(here).covariance, jackknife(there).covariance)):
        expected = axes @ one.double().numpy() @ axes.T
        np.testing.assert_allclose(other.numpy(), expected, rtol=0.05, atol=0.02 * np.abs(expected).max())


def test_points_in_one_corner_leave_no_parts_to_compare() -> None:
    assert jackknife(searched(0, shift=2.0, corner=True)[0]).parts < LocalizerSettings().least_parts


def test_a_posterior_that_is_sure_beyond_reason_is_no_error() -> None:
    """All of the weight falls on one sample: its covariance has no inverse."""
    found = searched(1, shift=2.0, temperature=1e6)[0]
    assert np.isfinite(found.covariance.numpy()).all() and np.isfinite(jackknife(found).covariance.numpy()).all()


def test_a_prior_is_taken_out_of_a_posterior() -> None:
    """Of Gaussians: what a likelihood makes of a narrow prior tells what it would make of a wide one."""
    generator = torch.Generator().manual_seed(2)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    information = root @ root.T
    narrow, wide = torch.full((6,), 0.3).double(), torch.linspace(1, 2, 6).double()
    posterior = torch.linalg.inv(information + torch.diag(1 / narrow**2))
    relaxed = _without_prior(posterior, narrow, wide)
    expected = torch.linalg.inv(information + torch.diag(1 / wide**2))
    torch.testing.assert_close(relaxed, expected)
    nothing = _without_prior(torch.diag(1.1 * narrow**2), narrow, wide)  # the image said nothing at all
    torch.testing.assert_close(nothing, torch.diag(wide**2))


def test_belief_is_a_probability_that_grows_with_the_evidence() -> None:
    weak = Evidence(score=-0.2, gain=0.2, inlier_ratio=0.1, spread=2.0, sigma=1.0, parts=8)
    strong = Evidence(score=0.3, gain=1.2, inlier_ratio=0.5, spread=0.2, sigma=0.1, parts=8)
    assert belief(replace(strong, gain=float("nan"))) == 0
    assert 0 <= belief(weak) < 0.05 and 0.95 < belief(strong) <= 1
    odds = BeliefWeights((2.0, 0, 0, 0, 0), odds=0)
    assert belief(Evidence(0.5, 0, 0, 1, 1, 8), odds) == 1 / (1 + np.exp(-1.0))


def test_what_looks_more_alike_is_believed_more() -> None:
    numbers = {"score": 0.05, "gain": 0.4, "inlier_ratio": 0.35, "spread": 0.4, "sigma": 0.2, "parts": 8}
    some = Evidence(**numbers, likeness=0.05, least_likeness=0.0)
    for evidence in (some, replace(some, margin=0.1)):
        assert belief(evidence) < belief(replace(evidence, likeness=0.25))
        assert belief(evidence) < belief(replace(evidence, least_likeness=0.2))
        assert belief(replace(evidence, likeness=float("nan"))) == 0
    # The more a place stands out from all others, the likelier it is the right one.
    assert belief(replace(some, margin=0.0)) < belief(replace(some, margin=0.3))


def test_a_pose_that_alignment_alone_found_is_believed_where_all_is_alike_and_it_was_near() -> None:
    some = AlignmentEvidence(likeness=0.2, least=0.1, sigma=0.1, way=0.2, parts=8)
    assert 0 < belief(some) < 1
    for better in ({"likeness": 0.4}, {"least": 0.2}, {"sigma": 0.03}, {"way": 0.05}):
        assert belief(some) < belief(replace(some, **better))
    assert belief(replace(some, sigma=float("inf"))) == 0
