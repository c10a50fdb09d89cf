"""How much a pose owes to single parts of the image: it is found once more without each of them.

Score maps of points that lie close together err together, and whatever is wrong with a calibration or a map is wrong in
one part of the image more than in another. The posterior takes points as independent and knows nothing of that. The
delete-one-group jackknife (Quenouille 1956, Tukey 1958) does: the groups are the cells of a coarse grid over the image.

The poses without a part are the posterior's samples weighed anew, so that nothing has to be searched for again. What
such a pose says of the part that it has not seen is evidence that the search cannot have made up: an image of another
place gains little there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

COLUMNS, ROWS = 4, 2
LEAST_SHARE = 0.02  # parts with less of the points' weight are not left out on their own
WIDE_SAMPLES = 192


@dataclass
class PartValues:
    """Log likelihoods `(B, K)` that B parts of the image give to K poses, and the weight `(B,)` of their points."""

    value: Tensor
    weight: Tensor


@dataclass
class Jackknife:
    """covariance `(6, 6)` of the pose's offset, for the parts of the image being as they are by chance. gain: how much
    better than a pose out of the prior, in nats per point, the poses found without a part explain that part."""

    covariance: Tensor
    gain: float


def part_of_points(place: Tensor) -> Tensor:
    """One row of weights per part, `(B, N)` 0 or 1: in which cell of the image points lie, given their places `(N, 2)`,
    -1 at the left and upper edges and 1 at the right and lower ones. Points beyond count with the cell nearest by."""
    column = ((place[:, 0] + 1) / 2 * COLUMNS).floor().clamp(0, COLUMNS - 1)
    row = ((place[:, 1] + 1) / 2 * ROWS).floor().clamp(0, ROWS - 1)
    return one_hot((row * COLUMNS + column).long(), ROWS * COLUMNS).T.to(place.dtype)


def poses_without_parts(offsets: Tensor, log_weights: Tensor, parts: PartValues) -> tuple[Tensor, Tensor]:
    """The mean offsets `(G, 6)` without each part that matters, and which parts `(G,)` these are.

    offsets `(K, 6)` with log importance weights `(K,)` of the whole posterior. The other parts count a little more
    each, so that all of the evidence stays as strong as it is.
    """
    left = torch.nonzero(parts.weight > LEAST_SHARE * parts.weight.sum()).squeeze(1)
    total, own = parts.weight.sum(), parts.weight[left, None]
    others = parts.value.sum(0) - parts.value[left]
    scaled = log_weights + others * (own / (total - own).clamp(min=1e-6)) - parts.value[left]
    return scaled.softmax(1) @ offsets, left


def delete_one_covariance(poses: Tensor) -> Tensor:
    """`(6, 6)`: (G - 1) / G times the sum of outer products of the deviations of the G poses `(G, 6)`."""
    away = poses - poses.mean(0)
    return (away.T @ away) * ((len(poses) - 1) / len(poses))
