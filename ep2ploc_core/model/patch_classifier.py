"""Patch classification: for each visible map point, in which patch of the image it lies, or in none."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ep2ploc_core.camera import project_pinhole
from ep2ploc_core.model.pair_score import PairScore

# A point may always be hidden or missing in the image, however surely it should project into it.
LEAST_OUTSIDE = 0.02


@dataclass
class PatchScores:
    """Scores of N points against R x C patches.

    log_posterior `(B, N, R*C + 1)`: log probability of each patch, and last of no patch, prior included.
    log_likelihood `(B, N, R, C)` and log_likelihood_none `(B, N)`: the same with the prior divided out, so that the
    pose search counts the prior once and not once per point. Where the image says nothing of a point all of them are
    equal: a pose gains nothing by moving points out of the image.
    confidence `(B, N)`: 0..1, the weight of the point in the pose. query `(B, N, D)`: the point as seen from the prior.
    """

    log_likelihood: Tensor
    log_likelihood_none: Tensor
    log_posterior: Tensor
    confidence: Tensor
    query: Tensor

    def tempered(self, power: float) -> PatchScores:
        """The likelihoods raised to a power below 1 and weighed against the prior anew: those of a network that trusts
        itself less. On images unlike those it has learned from it trusts itself too much."""
        # The likelihood to the power of p times the prior is the posterior over the likelihood to the power of 1 - p.
        likelihood, none = self.log_likelihood.flatten(2), self.log_likelihood_none
        inside = torch.add(self.log_posterior[..., :-1], likelihood, alpha=power - 1).logsumexp(-1)
        total = torch.logaddexp(inside, self.log_posterior[..., -1] + (power - 1) * none)
        log_likelihood = torch.add(-total[..., None, None], self.log_likelihood, alpha=power)
        return replace(self, log_likelihood=log_likelihood, log_likelihood_none=power * none - total)


class PatchClassifier(nn.Module):
    """Scores by dot product between a point, as it should look from the prior pose, and the patch descriptors, or by
    the paper's MLP on both (`score_width` > 0: its hidden layer).

    The prior pose and its uncertainty enter twice: as the point's depth, height and normal in the view, and as a
    Gaussian over the patches, the prior's covariance carried through the projection.
    """

    VIEW_ATTRIBUTES = 10

    def __init__(self, width: int, hidden: int, score_width: int = 0) -> None:
        super().__init__()
        self.pair_score = PairScore(width, score_width) if score_width else None
        self.trunk = nn.Sequential(
            nn.Linear(width + self.VIEW_ATTRIBUTES, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()
        )
        self.query = nn.Linear(hidden, width)
        self.none = nn.Linear(hidden, 1)
        self.confidence = nn.Linear(hidden, 1)
        self.log_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, descriptors: Tensor, view: Tensor, patches: Tensor, prior: PatchPrior) -> PatchScores:
        """descriptors `(B, N, D)`, view `(B, N, 10)` of `view_attributes`, patches `(B, D, R, C)`."""
        trunk = self.trunk(torch.cat([descriptors, view], -1))
        query = functional.normalize(self.query(trunk), dim=-1) + descriptors
        flat = functional.normalize(patches, dim=1).flatten(2)
        with torch.autocast(query.device.type, enabled=False):  # differences between patches decide, not the scores
            scale = 2 * self.log_scale.exp()
            if self.pair_score is None:
                score = (query.float() * scale) @ flat.float()
            else:
                score = self.pair_score(query.float(), flat.float()) * scale
        none = self.none(trunk)
        logits = torch.cat([score + prior.log_patch.flatten(2), none + prior.log_none[..., None]], -1)
        total = logits.logsumexp(-1, keepdim=True)
        return PatchScores(
            log_likelihood=(score - total).view(*score.shape[:2], *patches.shape[-2:]),
            log_likelihood_none=(none - total).squeeze(-1),
            log_posterior=logits - total,
            confidence=torch.sigmoid(self.confidence(trunk)).squeeze(-1),
            query=query,
        )


def view_attributes(points_camera: Tensor, normals_camera: Tensor, attributes: Tensor) -> Tensor:
    """What a point looks like from a pose: `(B, N, 10)` out of its place `(B, N, 3)` and normal `(B, N, 3)` in the
    optical frame and its map attributes `(B, N, 6)`: log depth, direction (2), normal (3), how squarely it is seen,
    intensity, planarity, height above ground."""
    depth = points_camera[..., 2:].clamp(min=0.5)
    direction = (points_camera[..., :2] / depth).clamp(-3, 3)
    squarely = -(functional.normalize(points_camera, dim=-1) * normals_camera).sum(-1, keepdim=True)
    intensity, planarity = attributes[..., 0:1], attributes[..., 4:5]
    height = (attributes[..., 5:6] / 4).clamp(-2, 2)
    return torch.cat([depth.log() - 2.5, direction, normals_camera, squarely, intensity, planarity, height], -1)


@dataclass
class PatchPrior:
    """What the prior pose alone says: log probability of each patch `(B, N, R, C)` and of no patch `(B, N)`."""

    log_patch: Tensor
    log_none: Tensor


def patch_prior(
    points_camera: Tensor, intrinsics: Tensor, sigma: Tensor, rows: int, columns: int, patch: int
) -> PatchPrior:
    """Where points may project when the prior pose is wrong: a Gaussian over the patches, its rest outside the image.

    points_camera `(B, N, 3)` from the prior pose, intrinsics `(B, 4)`, sigma `(B, 6)`: standard deviations of the
    prior along and about the camera's axes (metres, radians). First order: S = J diag(sigma^2) J^T + one patch.
    """
    pixels, depth = project_pinhole(intrinsics, points_camera)
    x, y, z = points_camera[..., 0], points_camera[..., 1], depth.clamp(min=1.0)
    fx, fy = intrinsics[:, None, 0], intrinsics[:, None, 1]
    zero = torch.zeros_like(z)
    # Columns: moves along x, y, z, turns about x, y, z (de dp/d(turn w) = w x p for small w).
    jacobian_u = torch.stack(
        [fx / z, zero, -fx * x / z**2, -fx * x * y / z**2, fx * (1 + x**2 / z**2), -fx * y / z], -1
    )
    jacobian_v = torch.stack([zero, fy / z, -fy * y / z**2, -fy * (1 + y**2 / z**2), fy * x * y / z**2, fy * x / z], -1)
    variance = sigma[:, None] ** 2
    s_uu = (jacobian_u**2 * variance).sum(-1) + patch**2
    s_vv = (jacobian_v**2 * variance).sum(-1) + patch**2
    s_uv = (jacobian_u * jacobian_v * variance).sum(-1)
    determinant = s_uu * s_vv - s_uv**2
    du = ((torch.arange(columns, device=z.device) + 0.5) * patch - 0.5) - pixels[..., 0:1]
    dv = ((torch.arange(rows, device=z.device) + 0.5) * patch - 0.5) - pixels[..., 1:2]
    a, b, c = (s_vv / determinant, s_uv / determinant, s_uu / determinant)
    scale = (patch**2 / (2 * math.pi * determinant.sqrt())).log()[..., None]
    one = torch.ones_like(z)[..., None]
    by_row = torch.stack([b[..., None] * dv, one.expand_as(dv), scale - 0.5 * c[..., None] * dv**2], -1)
    by_column = torch.stack([du, -0.5 * a[..., None] * du**2, one.expand_as(du)], -2)
    with torch.autocast(z.device.type, enabled=False):
        log_patch = by_row @ by_column  # (B, N, R, 3) with (B, N, 3, C): the exponent is a sum of three such products
    outside = 1 - log_patch.exp().sum((-1, -2))
    return PatchPrior(log_patch, outside.clamp(min=LEAST_OUTSIDE).log())
