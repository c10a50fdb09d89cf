"""How much a pose owes to single parts of the image: what it would be without each of them.

Score maps of points that lie close together err together, and whatever is wrong with a calibration or a map is wrong in
one part of the image more than in another. The posterior takes points as independent and knows nothing of that. The
delete-one-group jackknife (Quenouille 1956, Tukey 1958) does: the groups are the cells of a coarse grid over the image.

The poses without a part come from the posterior's samples, weighed anew: nothing is searched for again, but where a
part pulls by more than the samples reach, its pull is told too small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

COLUMNS, ROWS = 4, 2
LEAST_SHARE, GREATEST_SHARE = 0.02, 0.9  # parts with less or more of the points' weight are not left out on their own
WIDE_SAMPLES = 192


@dataclass
class PartValues:
    """Log likelihoods `(B, K)` that B parts of the image give to K poses, and the weight `(B,)` of their points."""

    value: Tensor
    weight: Tensor


@dataclass
class Jackknife:
    """covariance `(6, 6)` of the pose, for the parts of the image being as they are by chance. gain: how much better
    than a pose anywhere in the prior, in nats per point, the poses without a part explain that part. parts: how many
    could be left out; of less than two nothing is known, and the covariance is zero."""

    covariance: Tensor
    gain: float
    parts: int


def part_of_points(place: Tensor) -> Tensor:
    """One row of weights per part, `(..., B, N)` 0 or 1: in which cell of the image points lie, given their places
    `(..., N, 2)`, -1 at the left and upper edges and 1 at the right and lower ones. Points beyond count with the cell
    nearest by."""
    column = ((place[..., 0] + 1) / 2 * COLUMNS).floor().clamp(0, COLUMNS - 1)
    row = ((place[..., 1] + 1) / 2 * ROWS).floor().clamp(0, ROWS - 1)
    return one_hot((row * COLUMNS + column).long(), ROWS * COLUMNS).transpose(-1, -2).to(place.dtype)


def parts_to_leave_out(weight: Tensor) -> Tensor:
    """Which parts `(G,)` have a share of the weight `(B,)` that is neither next to nothing nor next to all of it."""
    share = weight / weight.sum()
    return torch.nonzero((share > LEAST_SHARE) & (share < GREATEST_SHARE)).squeeze(1)


def poses_without_parts(offsets: Tensor, log_weights: Tensor, parts: PartValues, left_out: Tensor) -> Tensor:
    """The mean offsets `(G, 6)` without each of the parts `left_out` `(G,)`.

    offsets `(K, 6)` with log importance weights `(K,)` of the whole posterior. The other parts count a little more
    each, so that all of the evidence stays as strong as it is.
    """
    total, own = parts.weight.sum(), parts.weight[left_out, None]
    others = parts.value.sum(0) - parts.value[left_out]
    scaled = log_weights + others * (own / (total - own)) - parts.value[left_out]
    return scaled.softmax(1) @ offsets


def delete_one_covariance(whole: Tensor, poses: Tensor, share: Tensor) -> Tensor:
    """`(6, 6)`, from the estimate `(6,)` and the G estimates `(G, 6)` without a group that has a share `(G,)` of all.

    For groups of unlike size (Busing, Meijer and van der Leeden 1999); for like ones it is the usual (G - 1) / G times
    the sum of outer products of the deviations from the mean.
    """
    times = (1 / share)[:, None]
    pseudo = times * whole - (times - 1) * poses
    centre = len(poses) * whole - ((1 - share)[:, None] * poses).sum(0)
    away = (pseudo - centre) / (times - 1).sqrt()
    return away.T @ away / len(poses)
