"""The likelihood of a camera pose under the patch scores of many points, and the search for its maximum.

With weak matches the best patch of each point says little, but the sum over all points of the whole score maps still
peaks near the true pose; so poses are compared by where they send every point, before any match is decided.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ep2ploc_core import se3
from ep2ploc_core.camera import project_pinhole
from ep2ploc_core.model.patch_classifier import PatchScores


def pose_log_likelihood(
    scores: PatchScores, xyz: Tensor, valid: Tensor, camera_from_map: Tensor, intrinsics: Tensor, patch: int
) -> Tensor:
    """Sum over points of confidence x log likelihood at the pixel where each pose puts the point, `(B, K)`.

    xyz `(B, N, 3)`, valid `(B, N)`, camera_from_map `(B, K, 4, 4)`, intrinsics `(B, 4)`. Between patch centres the log
    likelihood is interpolated bilinearly; a point that leaves the image counts with its likelihood of being in none.
    """
    batch, count, rows, columns = scores.log_likelihood.shape
    hypotheses = camera_from_map.shape[1]
    points = se3.apply(camera_from_map, xyz[:, None].expand(-1, hypotheses, -1, -1))
    pixels, depth = project_pinhole(intrinsics[:, None], points)
    column = (pixels[..., 0] + 0.5) / patch - 0.5
    row = (pixels[..., 1] + 0.5) / patch - 0.5
    inside = (depth > 0.5) & (column > -0.5) & (column < columns - 0.5) & (row > -0.5) & (row < rows - 0.5)
    column, row = column.clamp(0, columns - 1.001), row.clamp(0, rows - 1.001)
    left, top = column.floor(), row.floor()
    right_share, bottom_share = column - left, row - top
    corner = (top * columns + left).long()
    base = torch.arange(batch * count, device=xyz.device).view(batch, 1, count) * (rows * columns)
    flat = scores.log_likelihood.reshape(-1)
    start = (base + corner).flatten()

    def at(step: int) -> Tensor:
        return flat.index_select(0, start + step).view(batch, hypotheses, count)

    value = (1 - bottom_share) * ((1 - right_share) * at(0) + right_share * at(1)) + bottom_share * (
        (1 - right_share) * at(columns) + right_share * at(columns + 1)
    )
    value = torch.where(inside, value, scores.log_likelihood_none[:, None])
    weight = scores.confidence * valid
    return (value * weight[:, None]).sum(-1)


@dataclass(frozen=True)
class SearchSettings:
    """How a pose is searched for. `first_samples` poses all over the prior are tried; around each of the best `modes`
    of them that lie apart a cross-entropy search of `rounds` rounds follows, of `samples` poses each, of which the best
    `elite` shape the next. Both look at every `stride`-th point only. Around the best `finalists` the same goes on, for
    `last_rounds` rounds and on all points; it also tries `wide_samples` poses all over the prior, for the covariance.

    `apart`: least distance of modes and `width` of the searches around them, in standard deviations of the prior.
    `bound_penalty`: nats lost by leaving the box around the prior by its own size.
    """

    first_samples: int = 3072
    stride: int = 3
    modes: int = 12
    samples: int = 96
    rounds: int = 4
    elite: int = 24
    finalists: int = 2
    last_rounds: int = 8
    wide_samples: int = 256
    apart: float = 0.5
    width: float = 0.35
    bound_penalty: float = 1e5
    seed: int = 0


@dataclass
class Box:
    """Poses that a prior allows: within `half_widths` `(6,)` (metres, radians) of `map_from_camera` `(4, 4)`, along and
    about its camera's axes."""

    map_from_camera: Tensor
    half_widths: Tensor

    def excess(self, poses: Tensor) -> Tensor:
        """By how many half widths poses `(K, 4, 4)` lie outside, squared and summed over the axes, `(K,)`."""
        relative = se3.inverse(self.map_from_camera) @ poses
        rotation = relative[:, :3, :3]
        turn = 0.5 * (rotation - rotation.transpose(1, 2))  # sine of the angle x axis: exact enough for a fence
        tangent = torch.cat([relative[:, :3, 3], torch.stack([turn[:, 2, 1], turn[:, 0, 2], turn[:, 1, 0]], 1)], 1)
        return ((tangent.abs() / self.half_widths - 1).clamp(min=0) ** 2).sum(1)


@dataclass
class SearchResult:
    """The best pose `map_from_camera` `(4, 4)`, its log probability (up to a constant) and that of the start.

    covariance `(6, 6)` of `se3.perturb`'s tangent (metres and radians, map axes): the spread of all poses that are
    probable within the prior, several separate ones included.
    """

    map_from_camera: Tensor
    covariance: Tensor
    log_probability: float
    start_log_probability: float


def search_pose(
    scores: PatchScores,
    xyz: Tensor,
    valid: Tensor,
    map_from_camera: Tensor,
    sigma: Tensor,
    intrinsics: Tensor,
    patch: int,
    temperature: float,
    box: Box,
    settings: SearchSettings = SearchSettings(),
) -> SearchResult:
    """Searches for the most probable pose of one image around a start: temperature x log likelihood + the log density
    of the start's error, a Gaussian, inside a box.

    scores and xyz with batch size 1; map_from_camera `(4, 4)`; sigma `(6,)` standard deviations of the start along and
    about the camera's axes, metres and radians; intrinsics `(1, 4)`. The same input gives the same pose. The samples of
    the last rounds, weighed against the mixture they were drawn from, give the covariance (adaptive multiple importance
    sampling, as EPro-PnP does for its loss).
    """
    generator = torch.Generator().manual_seed(settings.seed)
    prior = sigma.cpu()

    def evaluate(tangents: Tensor, stride: int = 1) -> Tensor:
        poses = map_from_camera @ se3.exp(tangents.to(map_from_camera.device))
        some = scores.every(stride)
        camera_from_map = se3.inverse(poses)[None]
        values = pose_log_likelihood(some, xyz[:, ::stride], valid[:, ::stride], camera_from_map, intrinsics, patch)[0]
        values = stride * temperature * values - settings.bound_penalty * box.excess(poses)
        return values.cpu() - 0.5 * ((tangents / prior) ** 2).sum(1)

    first = 1.2 * prior * torch.randn(settings.first_samples, 6, generator=generator)
    first[0] = 0
    chosen = _apart(first / prior, evaluate(first, settings.stride), settings.modes, settings.apart)
    spread = torch.diag(settings.width * prior).expand(len(chosen), 6, 6)
    floor = torch.diag((0.01 * prior) ** 2)
    scout = _CrossEntropy(generator, floor, settings.elite, settings.samples)
    centres, spreads = scout.run(partial(evaluate, stride=settings.stride), first[chosen], spread, settings.rounds)
    final = evaluate(centres).topk(min(settings.finalists, len(centres))).indices
    judge = _CrossEntropy(generator, floor, settings.elite, settings.samples)
    judge.run(evaluate, centres[final], spreads[final], settings.last_rounds)
    judge.look(evaluate, torch.zeros(1, 6), torch.diag(1.2 * prior)[None], settings.wide_samples)
    covariance = judge.covariance()
    rotation = torch.block_diag(*[map_from_camera[:3, :3].cpu()] * 2)
    return SearchResult(
        map_from_camera=map_from_camera @ se3.exp(judge.best.to(map_from_camera.device)),
        covariance=rotation @ covariance @ rotation.T,
        log_probability=judge.best_value,
        start_log_probability=float(evaluate(torch.zeros(1, 6))),
    )


class _CrossEntropy:
    """Draws around several centres at once, moves each towards its best draws, and remembers all draws."""

    def __init__(self, generator: torch.Generator, floor: Tensor, elite: int, samples: int) -> None:
        self.generator, self.floor, self.elite, self.samples = generator, floor, elite, samples
        self.best, self.best_value = torch.zeros(6), -math.inf
        self._drawn: list[Tensor] = []
        self._values: list[Tensor] = []
        self._proposals: list[tuple[int, MultivariateNormal]] = []

    def run(
        self, evaluate: Callable[[Tensor], Tensor], centres: Tensor, spreads: Tensor, rounds: int
    ) -> tuple[Tensor, Tensor]:
        """Where centres `(M, 6)` with spreads `(M, 6, 6)` (lower triangular roots of covariances) have moved to."""
        for _ in range(rounds):
            tangents, values = self.look(evaluate, centres, spreads, self.samples)
            top = values.topk(self.elite).indices
            chosen = tangents.gather(1, top[..., None].expand(-1, -1, 6))
            centres = chosen.mean(1)
            spreads = torch.linalg.cholesky(torch.stack([torch.cov(elite.T) for elite in chosen]) + self.floor)
        return centres, spreads

    def look(
        self, evaluate: Callable[[Tensor], Tensor], centres: Tensor, spreads: Tensor, samples: int
    ) -> tuple[Tensor, Tensor]:
        """Tangents `(M, samples, 6)` drawn around the centres, the centres first, and their values `(M, samples)`."""
        noise = torch.randn(len(centres), samples, 6, generator=self.generator)
        tangents = centres[:, None] + noise @ spreads.transpose(1, 2)
        tangents[:, 0] = centres
        values = evaluate(tangents.flatten(0, 1))
        self._drawn.append(tangents.flatten(0, 1))
        self._values.append(values)
        self._proposals += [
            (samples, MultivariateNormal(centre, scale_tril=spread))
            for centre, spread in zip(centres, spreads, strict=True)
        ]
        if float(values.max()) > self.best_value:
            self.best_value, self.best = float(values.max()), self._drawn[-1][values.argmax()]
        return tangents, values.view(len(centres), samples)

    def covariance(self) -> Tensor:
        """Of all draws `(6, 6)`, weighed against the mixture of all that they were drawn from."""
        tangents, values = torch.cat(self._drawn), torch.cat(self._values)
        densities = [proposal.log_prob(tangents) + math.log(count) for count, proposal in self._proposals]
        weights = (values - torch.stack(densities).logsumexp(0)).softmax(0)
        return torch.cov(tangents.T, aweights=weights, correction=0)


def _apart(places: Tensor, values: Tensor, count: int, distance: float) -> list[int]:
    """Indices of the best of the places `(K, 6)`, each at least `distance` from all better ones chosen."""
    chosen: list[int] = []
    for index in values.argsort(descending=True)[: 40 * count].tolist():
        if all(float((places[index] - places[other]).norm()) >= distance for other in chosen):
            chosen.append(index)
            if len(chosen) == count:
                break
    return chosen
