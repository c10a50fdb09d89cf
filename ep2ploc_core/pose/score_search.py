"""The likelihood of a camera pose under the patch scores of many points, and the search for its maximum.

With weak matches the best patch of each point says little, but the sum over all points of the whole score maps still
peaks near the true pose; so poses are compared by where they send every point, before any match is decided.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ep2ploc_core import se3
from ep2ploc_core.camera import project_pinhole
from ep2ploc_core.model.patch_classifier import PatchScores

NEAREST = 0.5  # metres; what is nearer, or behind, is not in the image
BOUND_PENALTY = 1e5  # nats lost by leaving the box around the prior by its own size
CPU_CHUNK = 90_000  # points looked up at a time, so that a CPU core works in its own cache


def pose_log_likelihood(
    scores: PatchScores, xyz: Tensor, valid: Tensor, camera_from_map: Tensor, intrinsics: Tensor, patch: int
) -> Tensor:
    """Sum over points of confidence x log likelihood at the pixel where each pose puts the point, `(B, K)`.

    xyz `(B, N, 3)`, valid `(B, N)`, camera_from_map `(B, K, 4, 4)`, intrinsics `(B, 4)`. Between patch centres the log
    likelihood is interpolated bilinearly; a point that leaves the image counts with its likelihood of being in none.
    Differentiable in the scores.
    """
    batch, count, rows, columns = scores.log_likelihood.shape
    hypotheses = camera_from_map.shape[1]
    points = se3.apply(camera_from_map, xyz[:, None].expand(-1, hypotheses, -1, -1))
    pixels, depth = project_pinhole(intrinsics[:, None], points)
    cell = _Cell.at((pixels[..., 0] + 0.5) / patch - 0.5, (pixels[..., 1] + 0.5) / patch - 0.5, depth, rows, columns)
    base = torch.arange(batch * count, device=xyz.device).view(batch, 1, count) * (rows * columns)
    value = cell.interpolate(cell.corners(scores.log_likelihood.reshape(-1), base))
    value = torch.where(cell.inside, value, scores.log_likelihood_none[:, None])
    weight = scores.confidence * valid
    return (value * weight[:, None]).sum(-1)


@dataclass
class _Cell:
    """The four patch centres around each of many places in the image; all tensors of one shape `(..., N)`."""

    column: Tensor  # in patches, 0 at the centre of the first one
    row: Tensor
    corner: Tensor  # index of the upper left centre
    across: Tensor  # 0..1 from the left to the right ones
    down: Tensor
    inside: Tensor
    rows: int
    columns: int

    @classmethod
    def at(cls, column: Tensor, row: Tensor, depth: Tensor, rows: int, columns: int) -> _Cell:
        """Half a patch beyond the outermost centres is inside too; values stay constant there."""
        inside = (depth > NEAREST) & (column > -0.5) & (column < columns - 0.5) & (row > -0.5) & (row < rows - 0.5)
        held_column, held_row = column.clamp(0, columns - 1.001), row.clamp(0, rows - 1.001)
        left, top = held_column.floor(), held_row.floor()
        corner = (top * columns + left).long()
        return cls(column, row, corner, held_column - left, held_row - top, inside, rows, columns)

    def corners(self, flat: Tensor, base: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values at the four centres; the maps lie in `flat`, the one of each point from `base` on."""
        start = (self.corner + base).flatten()
        shape = self.corner.shape
        upper_left, upper_right, lower_left, lower_right = (
            flat.index_select(0, start + step).view(shape) for step in (0, 1, self.columns, self.columns + 1)
        )
        return upper_left, upper_right, lower_left, lower_right

    def interpolate(self, corners: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        upper_left, upper_right, lower_left, lower_right = corners
        upper = torch.lerp(upper_left, upper_right, self.across)
        return torch.lerp(upper, torch.lerp(lower_left, lower_right, self.across), self.down)

    def slope(self, corners: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Derivatives of the interpolated value by column and by row, per patch; zero where it is constant."""
        upper_left, upper_right, lower_left, lower_right = corners
        by_column = torch.lerp(upper_right - upper_left, lower_right - lower_left, self.down)
        by_row = torch.lerp(lower_left - upper_left, lower_right - upper_right, self.across)
        between_columns = self.inside & (self.column > 0) & (self.column < self.columns - 1)
        between_rows = self.inside & (self.row > 0) & (self.row < self.rows - 1)
        return by_column * between_columns, by_row * between_rows


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
class Slope:
    """log probability `(K,)` at K offsets, its gradient `(K, 6)`, and the information `(K, 6, 6)`: the sum over points
    of the outer products of their own gradients, which stands for the negative Hessian (Berndt, Hall, Hall and Hausman
    1974) and unlike it is never indefinite."""

    value: Tensor
    gradient: Tensor
    information: Tensor


class PosePosterior:
    """Log probability of the poses of one image: temperature x log likelihood + a Gaussian around a guess, in a box.

    A pose is given as its offset from the guess `(6,)`: the camera's place along the guess's axes (metres), and the
    rotation vector of its turn about them. The functions take K offsets `(K, 6)`.
    """

    def __init__(
        self,
        scores: PatchScores,
        xyz: Tensor,
        valid: Tensor,
        guess_map_from_camera: Tensor,
        sigma: Tensor,
        intrinsics: Tensor,
        patch: int,
        temperature: float,
        box: Box,
    ) -> None:
        """scores, xyz, valid, intrinsics as in `pose_log_likelihood`, batch size 1; guess `(4, 4)`; sigma `(6,)`."""
        self.maps = scores.log_likelihood[0].contiguous()
        self.none = scores.log_likelihood_none[0]
        self.weight = scores.confidence[0] * valid[0] * temperature
        self.points = se3.apply(se3.inverse(guess_map_from_camera), xyz[0])  # (N, 3) in the guess's optical frame
        self.guess, self.sigma, self.box = guess_map_from_camera, sigma, box
        fx, fy, cx, cy = intrinsics[0].tolist()
        self.column_scale, self.row_scale = fx / patch, fy / patch
        self.to_patches = torch.tensor(
            [[fx / patch, 0, (cx + 0.5) / patch - 0.5], [0, fy / patch, (cy + 0.5) / patch - 0.5], [0, 0, 1]],
            device=xyz.device, dtype=xyz.dtype,
        )  # fmt: skip

    def every(self, stride: int) -> PosePosterior:
        """The same from every `stride`-th point, each counted `stride` times."""
        some = copy(self)
        some.maps, some.none = self.maps[::stride].contiguous(), self.none[::stride]
        some.weight, some.points = self.weight[::stride] * stride, self.points[::stride]
        return some

    def poses(self, offsets: Tensor) -> Tensor:
        """map_from_camera `(K, 4, 4)`."""
        return self.guess @ se3.exp(offsets)

    def offsets(self, poses: np.ndarray) -> Tensor:
        """The inverse: `(K, 6)` of map_from_camera `(K, 4, 4)`."""
        relative = se3.inverse(self.guess.double().cpu()) @ torch.from_numpy(poses).double()
        return se3.log(relative).to(self.sigma)

    def value(self, offsets: Tensor) -> Tensor:
        """Log probabilities `(K,)`, up to a constant."""
        chunk = max(1, CPU_CHUNK // len(self.points)) if offsets.device.type == "cpu" else len(offsets)
        parts = []
        for some in offsets.split(chunk):
            _, _, cell, base = self._look(some)
            value = cell.interpolate(cell.corners(self.maps.view(-1), base))
            parts.append(torch.where(cell.inside, value, self.none) @ self.weight)
        return torch.cat(parts) + self._prior(offsets)

    def slope(self, offsets: Tensor) -> Slope:
        """Value, gradient and information."""
        camera, rotation, cell, base = self._look(offsets)
        corners = cell.corners(self.maps.view(-1), base)
        value = torch.where(cell.inside, cell.interpolate(corners), self.none)
        by_column, by_row = cell.slope(corners)
        x, y, z = camera.unbind(1)
        by_x, by_y = by_column * self.column_scale / z, by_row * self.row_scale / z
        by_point = torch.stack([by_x, by_y, -(by_x * x + by_y * y) / z], 1)
        by_point = torch.where(cell.inside[:, None], by_point, 0)  # nothing that is divided by a depth of 0
        # The camera moves by R^T d and turns by J_r d: a point in its frame moves by -R^T d and by point x (J_r d).
        along = -rotation @ by_point
        about = _right_jacobian(offsets[:, 3:]).transpose(1, 2) @ torch.linalg.cross(by_point, camera, dim=1)
        gradients = torch.cat([along, about], 1)
        weighted = gradients * self.weight
        return Slope(
            value @ self.weight + self._prior(offsets),
            weighted.sum(-1) - offsets / self.sigma**2,
            weighted @ gradients.transpose(1, 2) + torch.diag(1 / self.sigma**2),
        )

    def _look(self, offsets: Tensor) -> tuple[Tensor, Tensor, _Cell, Tensor]:
        """Points in each camera `(K, 3, N)`, guess_from_camera rotations `(K, 3, 3)`, their cells, each point's map."""
        rotation = se3.so3_exp(offsets[:, 3:])
        camera = rotation.transpose(1, 2) @ (self.points.T - offsets[:, :3, None])
        seen = self.to_patches @ camera
        depth = seen[:, 2]
        ahead = depth.clamp(min=NEAREST)
        count, rows, columns = self.maps.shape
        cell = _Cell.at(seen[:, 0] / ahead, seen[:, 1] / ahead, depth, rows, columns)
        return camera, rotation, cell, torch.arange(count, device=offsets.device) * (rows * columns)

    def _prior(self, offsets: Tensor) -> Tensor:
        fence = BOUND_PENALTY * self.box.excess(self.poses(offsets))
        return -0.5 * ((offsets / self.sigma) ** 2).sum(1) - fence


def _right_jacobian(rotation_vector: Tensor) -> Tensor:
    """J_r `(K, 3, 3)` with exp(w + d) = exp(w) exp(J_r d) for small d, at w `(K, 3)` of up to a radian (by series)."""
    hat, square = se3.hat(rotation_vector), (rotation_vector**2).sum(-1)[:, None, None]
    return torch.eye(3).to(hat) - (1 / 2 - square / 24) * hat + (1 / 6 - square / 120) * hat @ hat


@dataclass(frozen=True)
class SearchSettings:
    """How a pose is searched for. `first_samples` poses all over the prior are tried on every `stride`-th point; the
    best `modes` of them that lie apart climb `scout_steps` steps. The best `finalists` climb on all points, `steps`
    steps, and then `hops` times try poses around them, `hop_samples` of each of the `widths`, and climb on from the
    best of those: score maps are bumpy. Around the best of all, `rounds` rounds of `samples` poses give the mean; all
    samples, and `wide_samples` from all over the prior, give the covariance.

    `modes_apart` and `finalists_apart` in standard deviations of the prior; `widths` in standard deviations of a pose
    as its information has them, which is too little where the maps are rough and too much where they are perfect.
    """

    first_samples: int = 3072
    stride: int = 3
    modes: int = 48
    modes_apart: float = 0.4
    scout_steps: int = 8
    finalists: int = 8
    finalists_apart: float = 0.1
    steps: int = 8
    hops: int = 2
    hop_samples: int = 16
    widths: tuple[float, ...] = (2.0, 0.7, 0.25)
    rounds: int = 3
    samples: int = 192
    wide_samples: int = 256
    seed: int = 0


@dataclass
class SearchResult:
    """The pose `map_from_camera` `(4, 4)`: the mean of all that are probable around the most probable one, which is
    steadier and nearer the truth than that one itself, since score maps are bumpy.

    covariance `(6, 6)` of `se3.perturb`'s tangent (metres and radians, map axes): how far off all poses that are
    probable within the prior lie in the mean square, those around other peaks included.
    """

    map_from_camera: Tensor
    covariance: Tensor


def search_pose(
    posterior: PosePosterior, settings: SearchSettings = SearchSettings(), candidates: Tensor | None = None
) -> SearchResult:
    """The pose of one image. The same input gives the same pose. `candidates` `(K, 6)`: more offsets to begin from.

    Samples are weighed against the mixture they were drawn from (adaptive multiple importance sampling, as EPro-PnP
    does for its loss), which gives mean and covariance.
    """
    device = posterior.sigma.device
    generator = torch.Generator().manual_seed(settings.seed)
    coarse = posterior.every(settings.stride)
    prior = _Gaussians(torch.zeros(1, 6, device=device), torch.diag(1.2 * posterior.sigma)[None])

    first = prior.draw(settings.first_samples, generator)
    first[0] = 0
    scouts = first[_apart(first / posterior.sigma, coarse.value(first), settings.modes, settings.modes_apart)]
    if candidates is not None:
        scouts = torch.cat([scouts, candidates])
    scouts, _ = _climb(coarse, scouts, settings.scout_steps)
    chosen = _apart(scouts / posterior.sigma, posterior.value(scouts), settings.finalists, settings.finalists_apart)
    finalists, slope = _climb(posterior, scouts[chosen], settings.steps)

    everything = _Samples(posterior, generator)
    everything.draw(prior, settings.wide_samples)
    for _ in range(settings.hops):
        around = _Gaussians.around(finalists, slope.information, settings.widths)
        tries, values = everything.draw(around, settings.hop_samples)
        tries, values = tries.view(len(finalists), -1, 6), values.view(len(finalists), -1)
        best = values.argmax(1)
        better = values.gather(1, best[:, None])[:, 0] > slope.value
        hopped = torch.where(better[:, None], tries[torch.arange(len(tries), device=device), best], finalists)
        finalists, slope = _climb(posterior, hopped, settings.steps)
    # Once more without a climb after it: no peak may be left without samples, or the covariance would not know of it.
    everything.draw(_Gaussians.around(finalists, slope.information, settings.widths), settings.hop_samples)

    winner = slope.value.argmax()[None]
    near = _Samples(posterior, generator)
    around = _Gaussians.around(finalists[winner], slope.information[winner], settings.widths)
    near.draw(around, settings.samples // len(settings.widths))
    for _ in range(settings.rounds - 1):
        near.draw(near.gaussian(), settings.samples)
    mean, _ = near.moments()
    centre, spread = _Samples.joined(everything, near).moments()
    spread = spread + torch.outer(centre - mean, centre - mean)
    turned = (
        posterior.guess[:3, :3] @ _right_jacobian(-mean[None, 3:])[0]
    )  # a left Jacobian is a right one of the inverse
    to_map = torch.block_diag(posterior.guess[:3, :3], turned)
    return SearchResult(map_from_camera=posterior.poses(mean[None])[0], covariance=(to_map @ spread @ to_map.T).cpu())


@dataclass
class _Gaussians:
    """G Gaussians: centres `(G, 6)`, lower triangular roots of the covariances `(G, 6, 6)`."""

    centres: Tensor
    roots: Tensor

    @classmethod
    def around(cls, offsets: Tensor, information: Tensor, widths: tuple[float, ...]) -> _Gaussians:
        """Those of all widths around the first offset, then those around the second, ..."""
        roots = torch.linalg.cholesky(torch.linalg.inv(information.double())).to(offsets)
        scale = torch.tensor(widths, device=offsets.device)[:, None, None]
        return cls(offsets.repeat_interleave(len(widths), 0), (roots[:, None] * scale).flatten(0, 1))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` offsets from each, `(G x count, 6)`."""
        noise = torch.randn(len(self.centres), count, 6, generator=generator).to(self.centres)
        return (self.centres[:, None] + noise @ self.roots.transpose(1, 2)).flatten(0, 1)

    def log_density(self, offsets: Tensor) -> Tensor:
        """`(G, K)` at K offsets, up to a constant."""
        away = (offsets - self.centres[:, None]).transpose(1, 2)
        whitened = torch.linalg.solve_triangular(self.roots, away, upper=False)
        return -0.5 * (whitened**2).sum(1) - self.roots.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True)


class _Samples:
    """Offsets drawn from several Gaussians, with their log probabilities."""

    def __init__(self, posterior: PosePosterior, generator: torch.Generator) -> None:
        self.posterior, self.generator = posterior, generator
        self.offsets: list[Tensor] = []
        self.values: list[Tensor] = []
        self.proposals: list[tuple[int, _Gaussians]] = []

    @classmethod
    def joined(cls, one: _Samples, other: _Samples) -> _Samples:
        """The samples of both."""
        both = cls(one.posterior, one.generator)
        both.offsets, both.values = one.offsets + other.offsets, one.values + other.values
        both.proposals = one.proposals + other.proposals
        return both

    def draw(self, proposals: _Gaussians, count: int) -> tuple[Tensor, Tensor]:
        """`count` offsets from each Gaussian, in their order `(K, 6)`, and their log probabilities `(K,)`."""
        offsets = proposals.draw(count, self.generator)
        values = self.posterior.value(offsets)
        self.offsets.append(offsets)
        self.values.append(values)
        self.proposals.append((count, proposals))
        return offsets, values

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean `(6,)` and covariance `(6, 6)`, each sample weighed against the mixture that all were drawn from."""
        offsets = torch.cat(self.offsets)
        weights = self._log_weights(offsets).softmax(0)
        return weights @ offsets, torch.cov(offsets.T, aweights=weights, correction=0)

    def gaussian(self, least: float = 30.0, wider: float = 1.3) -> _Gaussians:
        """A proposal after the samples so far, flattened until at least so many of them count."""
        offsets = torch.cat(self.offsets)
        logs = self._log_weights(offsets)
        weights = logs.softmax(0)
        for _ in range(12):
            if 1 / float((weights**2).sum()) >= least:
                break
            logs = 0.7 * logs
            weights = logs.softmax(0)
        covariance = torch.cov(offsets.T, aweights=weights, correction=0) * wider**2
        floor = torch.diag((0.002 * self.posterior.sigma) ** 2)
        return _Gaussians((weights @ offsets)[None], torch.linalg.cholesky(covariance + floor)[None])

    def _log_weights(self, offsets: Tensor) -> Tensor:
        densities = [gaussians.log_density(offsets) + math.log(count) for count, gaussians in self.proposals]
        return torch.cat(self.values) - torch.cat(densities).logsumexp(0)


def _climb(posterior: PosePosterior, offsets: Tensor, steps: int) -> tuple[Tensor, Slope]:
    """Where offsets `(K, 6)` get to uphill by damped Newton steps with the information as Hessian, each on its own; a
    step that does not lead up is taken back and its damping raised."""
    slope = posterior.slope(offsets)
    damping = torch.ones(len(offsets), device=offsets.device)
    for _ in range(steps):
        damped = slope.information + torch.diag_embed(damping[:, None] * slope.information.diagonal(dim1=1, dim2=2))
        tried = offsets + torch.linalg.solve(damped, slope.gradient)
        there = posterior.slope(tried)
        up = there.value > slope.value
        offsets = torch.where(up[:, None], tried, offsets)
        slope = Slope(
            torch.where(up, there.value, slope.value),
            torch.where(up[:, None], there.gradient, slope.gradient),
            torch.where(up[:, None, None], there.information, slope.information),
        )
        damping = torch.where(up, 0.4 * damping, 4 * damping)
    return offsets, slope


def _apart(places: Tensor, values: Tensor, count: int, distance: float) -> list[int]:
    """Indices of the best of the places `(K, 6)`, each at least `distance` from all better ones chosen."""
    order = values.argsort(descending=True)[: 40 * count]
    near = torch.cdist(places[order], places[order]) < distance
    chosen: list[int] = []
    open_places = torch.ones(len(order), dtype=torch.bool)
    for index, hides in enumerate(near.cpu()):
        if open_places[index]:
            chosen.append(int(order[index]))
            open_places &= ~hides
            if len(chosen) == count:
                break
    return chosen
