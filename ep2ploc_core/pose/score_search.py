"""The likelihood of a camera pose under the patch scores of many points, and the search for its maximum.

With weak matches the best patch of each point says little, but the sum over all points of the whole score maps still
peaks near the true pose; so poses are compared by where they send every point, before any match is decided.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """Cross-entropy search: `samples` poses in each of `iterations` rounds, the best `elite` shape the next round.

    `bound_penalty`: nats lost by leaving the box around the prior by its own size.
    """

    samples: int = 256
    iterations: int = 7
    elite: int = 32
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
    about the camera's axes, metres and radians; intrinsics `(1, 4)`. The same input gives the same pose. All samples of
    all rounds, weighed against the mixture they were drawn from, give the covariance (adaptive multiple importance
    sampling, as EPro-PnP does for its loss).
    """
    generator = torch.Generator().manual_seed(settings.seed)
    prior = sigma.cpu()
    mean, spread = torch.zeros(6), torch.diag(1.5 * prior)
    drawn, probabilities, proposals = [], [], []
    best = torch.zeros(6)
    for _ in range(settings.iterations):
        proposals.append(MultivariateNormal(mean, scale_tril=spread))
        tangents = mean + torch.randn(settings.samples, 6, generator=generator) @ spread.T
        tangents[0] = best
        poses = map_from_camera @ se3.exp(tangents.to(map_from_camera.device))
        values = pose_log_likelihood(scores, xyz, valid, se3.inverse(poses)[None], intrinsics, patch)[0].cpu()
        values = temperature * values - 0.5 * ((tangents / prior) ** 2).sum(1)
        values = values - settings.bound_penalty * box.excess(poses).cpu()
        drawn.append(tangents)
        probabilities.append(values)
        top = values.topk(settings.elite)
        best = tangents[top.indices[0]]
        chosen = tangents[top.indices]
        mean = chosen.mean(0)
        spread = torch.linalg.cholesky(torch.cov(chosen.T) + torch.diag((0.01 * prior) ** 2))
    tangents, values = torch.cat(drawn), torch.cat(probabilities)
    mixture = torch.stack([proposal.log_prob(tangents) for proposal in proposals]).logsumexp(0)
    covariance = torch.cov(tangents.T, aweights=(values - mixture).softmax(0), correction=0)
    rotation = torch.block_diag(*[map_from_camera[:3, :3].cpu()] * 2)
    return SearchResult(
        map_from_camera=map_from_camera @ se3.exp(best.to(map_from_camera.device)),
        covariance=rotation @ covariance @ rotation.T,
        log_probability=float(values.max()),
        start_log_probability=float(values[0]),
    )
