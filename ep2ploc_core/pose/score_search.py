"""The search for the most probable pose under the score maps, and how sure it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ep2ploc_core.pose.jackknife import Jackknife, delete_one_covariance, parts_to_leave_out, poses_without_parts
from ep2ploc_core.pose.pose_posterior import PosePosterior, Slope, rotation_and_jacobian


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
    scout_steps: int = 6
    finalists: int = 6
    finalists_apart: float = 0.1
    steps: int = 5
    hops: int = 2
    hop_samples: int = 16
    widths: tuple[float, ...] = (2.0, 0.7, 0.25)
    rounds: int = 3
    samples: int = 128
    wide_samples: int = 256
    seed: int = 0


@dataclass
class SearchResult:
    """The pose `map_from_camera` `(4, 4)`: the mean of all that are probable around the most probable one, which is
    steadier and nearer the truth than that one itself, since score maps are bumpy.

    covariance `(6, 6)` of `se3.perturb`'s tangent (metres and radians, map axes): how far off all poses that are
    probable within the prior lie in the mean square, those around other peaks included. jackknife: the same, for what
    the points of a part of the image have in common (see there); where it was asked for.
    """

    map_from_camera: Tensor
    covariance: Tensor
    jackknife: Jackknife | None = None


def search_pose(
    posterior: PosePosterior, settings: SearchSettings = SearchSettings(), by_parts: bool = False
) -> SearchResult:
    """The pose of one image. The same input gives the same pose. by_parts: with a jackknife.

    Samples are weighed against the mixture they were drawn from (adaptive multiple importance sampling, as EPro-PnP
    does for its loss), which gives mean and covariance. A prior that comes from the same image (its guess is where an
    earlier pass ended) is taken out of the covariances again, down to what the box allows.
    """
    device = posterior.sigma.device
    generator = torch.Generator().manual_seed(settings.seed)
    coarse = posterior.every(settings.stride)
    prior = _Gaussians(torch.zeros(1, 6, device=device), torch.diag(1.2 * posterior.sigma)[None])

    first = prior.draw(settings.first_samples, generator)
    first[0] = 0
    scouts = first[_apart(first / posterior.sigma, coarse.value(first), settings.modes, settings.modes_apart)]
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
    left_jacobian = rotation_and_jacobian(-mean[None, 3:])[1][0]  # it is the right one of the inverse
    turned = posterior.guess[:3, :3] @ left_jacobian
    to_map = torch.block_diag(posterior.guess[:3, :3], turned)
    relaxed = _without_prior(spread, posterior.sigma, posterior.box.half_widths / math.sqrt(3))
    jackknife = None
    if by_parts:
        jackknife = _jackknife(posterior, near, mean, generator)
        # What moves a pose by so much against the prior moves it by more without.
        freed = to_map @ (relaxed @ torch.linalg.pinv(spread.double(), hermitian=True)).to(spread)
        jackknife = replace(jackknife, covariance=(freed @ jackknife.covariance @ freed.T).cpu())
    return SearchResult(posterior.poses(mean[None])[0], (to_map @ relaxed.to(spread) @ to_map.T).cpu(), jackknife)


def _without_prior(covariance: Tensor, sigma: Tensor, wide: Tensor) -> Tensor:
    """The covariance `(6, 6)` of a posterior if its prior had standard deviations `wide` `(6,)` instead of `sigma`, in
    double precision."""
    covariance, sigma, wide = covariance.double(), sigma.double(), wide.double()
    values, axes = torch.linalg.eigh(covariance / sigma / sigma[:, None])
    told = (axes * (1 / values.clamp(min=1e-9) - 1).clamp(min=0)) @ axes.T  # what the image says
    return torch.linalg.inv(told + torch.diag((sigma / wide) ** 2)) * sigma * sigma[:, None]


def _jackknife(posterior: PosePosterior, near: _Samples, mean: Tensor, generator: torch.Generator) -> Jackknife:
    """From the samples around the pose, their mean `(6,)`; the covariance is that of the offset."""
    offsets, log_weights = near.weighted()
    parts = posterior.part_values(offsets)
    left_out = parts_to_leave_out(parts.weight)
    if len(left_out) < 2:
        return Jackknife(torch.zeros(6, 6).to(offsets), 0.0, len(left_out))
    poses = poses_without_parts(offsets, log_weights, parts, left_out)
    unseen, anywhere = posterior.part_values(poses).value, posterior.part_values_anywhere(generator)
    gain = unseen[left_out, torch.arange(len(left_out), device=left_out.device)] - anywhere[left_out]
    covariance = delete_one_covariance(mean, poses, parts.weight[left_out] / parts.weight.sum())
    return Jackknife(covariance, float(gain.sum() / parts.weight[left_out].sum()), len(left_out))


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

    def weighted(self) -> tuple[Tensor, Tensor]:
        """All offsets `(K, 6)` and the logarithms of their weights against the mixture that they were drawn from."""
        offsets = torch.cat(self.offsets)
        return offsets, self._log_weights(offsets)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean `(6,)` and covariance `(6, 6)` of the weighted samples."""
        offsets, log_weights = self.weighted()
        weights = log_weights.softmax(0)
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
