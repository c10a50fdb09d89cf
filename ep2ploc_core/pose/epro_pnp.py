"""EPro-PnP (Chen et al., CVPR 2022): the posterior of a camera pose under weighted 2D-3D matches, as a training loss.

p(y) ~ exp(-cost(y)), cost(y) = sum_i huber(|w_i (pi(R x_i + t) - u_i)|), with no prior. Its loss for a true pose is the
Kullback-Leibler divergence from a peak there: cost(true) + log of the integral of exp(-cost). The integral is over
position and rotation, metres^3 x radians^3: dt for the position (that of the camera in the map and that of the map in
the camera have the same volume) times the Haar measure of the rotation, scaled to the volume of small rotation vectors,
8 pi^2 in all. Far away the cost tends to a constant, so strictly the integral diverges; as in the paper it is that over
where the samples get to: for matches that hold a pose, around that.

It is estimated by adaptive multiple importance sampling (Cornuet et al. 2012) around a Levenberg-Marquardt solution:
each proposal is an angular central Gaussian (Tyler 1987) for the rotation, as a unit quaternion, and given that a
Student t of three degrees of freedom for the position, each fitted to the weighted samples so far. Other than in the
paper the position's centre moves with the rotation, since a camera that turns and one that moves aside see much the
same; and a point behind the camera costs the more the farther behind it lies, so that no pose gains by passing the
points. The estimate is a little low in the mean, since a round learns from samples that it also weighs: by how little
at the most, test_epro_pnp.py says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ep2ploc_core import se3

NEAREST = 0.1  # metres; a point nearer than that, or behind, projects as if it lay there and pays for the difference
RELATIVE_THRESHOLD = 0.1  # of the spread of the pixels, times the mean weight: where Huber's cost turns linear
STEPS = 15  # of Levenberg-Marquardt
ROUNDS, SAMPLES = 4, 128  # of adaptive importance sampling, and of each round
PSEUDO_SAMPLES = 12.0  # by which the proposal before counts when a new one is fitted


@dataclass
class PoseMatches:
    """N weighted matches of each of B images: points `(B, N, 3)` in metres, map axes; pixels `(B, N, 2)`; weights
    `(B, N, 2)` >= 0, one over pixels, for columns and rows, 0 for what is no match; intrinsics `(B, 4)`."""

    points: Tensor
    pixels: Tensor
    weights: Tensor
    intrinsics: Tensor

    def threshold(self) -> Tensor:
        """The weighted residual `(B,)` at which the cost turns from square to linear: relative to the spread of the
        pixels and to the mean weight (EPro-PnP, supplement), so that scaling the weights scales it too."""
        matched = (self.weights.sum(-1) > 0).to(self.weights)
        count = matched.sum(1).clamp(min=1)
        centre = (self.pixels * matched[..., None]).sum(1) / count[:, None]
        variance = ((self.pixels - centre[:, None]) ** 2 * matched[..., None]).sum((1, 2)) / count
        spread = variance.clamp(min=1.0).sqrt()
        return RELATIVE_THRESHOLD * spread * self.weights.mean(-1).sum(1) / count

    def detached(self) -> PoseMatches:
        """The same without gradients."""
        return PoseMatches(self.points.detach(), self.pixels.detach(), self.weights.detach(), self.intrinsics.detach())


@dataclass
class PoseSolution:
    """The pose `camera_from_map` `(B, 4, 4)` with the least cost found, that `cost` `(B,)`, and the information
    `(B, 6, 6)`, J^T W J, of moves of the matches' weighted middle in the camera (metres) and turns about it (radians),
    both along the camera's axes. What the matches do not hold is held weakly, to a radian and the middle's distance."""

    camera_from_map: Tensor
    cost: Tensor
    information: Tensor


@dataclass
class PoseSamples:
    """Poses camera_from_map `(B, K, 4, 4)` and the log of the density `(B, K)` they were drawn with, per metre^3 and
    radian^3."""

    camera_from_map: Tensor
    log_density: Tensor


def monte_carlo_pose_loss(
    matches: PoseMatches, true_camera_from_map: Tensor, starts: Tensor, generator: torch.Generator
) -> Tensor:
    """EPro-PnP's loss `(B,)` in nats: cost of the true poses `(B, 4, 4)` + log of the integral over all poses.

    Its gradient by weights and pixels is that of the cost at the truth less the mean of that at poses drawn from the
    posterior; nothing flows through the solution and the samples. starts `(B, S, 4, 4)`: where Levenberg-Marquardt
    begins, on its own from each. generator: on the CPU.
    """
    samples = sample_poses(matches, solve_pose(matches, starts), generator)
    return pose_cost(matches, true_camera_from_map[:, None])[:, 0] + log_integral(matches, samples)


def pose_cost(matches: PoseMatches, camera_from_map: Tensor) -> Tensor:
    """Costs `(B, K)` of poses `(B, K, 4, 4)`; differentiable in weights and pixels."""
    _, columns, rows, behind = _residuals(matches, camera_from_map)
    squared = columns**2 + rows**2 + behind**2
    threshold = matches.threshold()[:, None, None]
    beyond = squared > threshold**2
    distance = torch.where(beyond, squared, torch.ones_like(squared)).sqrt()
    return torch.where(beyond, threshold * (distance - 0.5 * threshold), 0.5 * squared).sum(-1)


def log_integral(matches: PoseMatches, samples: PoseSamples) -> Tensor:
    """Estimate `(B,)` of log of the integral of exp(-cost) over all poses; differentiable in weights and pixels."""
    ratio = -pose_cost(matches, samples.camera_from_map) - samples.log_density
    return ratio.logsumexp(1) - math.log(ratio.shape[1])


@torch.no_grad()
@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def solve_pose(matches: PoseMatches, starts: Tensor) -> PoseSolution:
    """The pose of least cost that Levenberg-Marquardt finds from starts `(B, S, 4, 4)`, camera_from_map."""
    batch, count = starts.shape[:2]
    each = PoseMatches(*(value.detach().repeat_interleave(count, 0) for value in vars(matches).values()))
    middle = _middle(each)
    slope = _Slope.at(each, middle, starts.detach().flatten(0, 1))
    damping = torch.full_like(slope.cost, 1e-3)
    for _ in range(STEPS):
        scaled = damping[:, None] * slope.information.diagonal(dim1=1, dim2=2)
        step = -torch.linalg.solve((slope.information + torch.diag_embed(scaled)).double(), slope.gradient.double())
        there = _Slope.at(each, middle, _moved(slope.camera_from_map, middle, step.to(middle)))
        down = there.cost < slope.cost
        slope = there.where(down, slope)
        damping = torch.where(down, 0.3 * damping, 5 * damping).clamp(1e-7, 1e7)
    best = slope.cost.view(batch, count).argmin(1) + count * torch.arange(batch, device=starts.device)
    return PoseSolution(slope.camera_from_map[best], slope.cost[best], slope.information[best])


@torch.no_grad()
@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def sample_poses(
    matches: PoseMatches,
    solution: PoseSolution,
    generator: torch.Generator,
    rounds: int = ROUNDS,
    samples: int = SAMPLES,
) -> PoseSamples:
    """`rounds` x `samples` poses from where the posterior is large, first after the solution's information, then after
    all samples so far; each counts as drawn from the mixture of all proposals. generator: on the CPU."""
    matches, middle = matches.detached(), _middle(matches.detached())
    place = se3.apply(solution.camera_from_map, middle[:, None])[:, 0]
    covariance = torch.linalg.inv(solution.information.double()).to(place)
    still = torch.zeros_like(place)
    identity = torch.cat([torch.ones_like(place[:, :1]), still], 1)
    proposals = [_Proposal.of(identity, still, place, covariance)]
    turns, places, costs = [], [], []
    while True:
        turn, place = proposals[-1].draw(samples, generator)
        turns.append(turn)
        places.append(place)
        poses = _poses(solution, middle, turn, place)
        costs.append(pose_cost(matches, poses))
        turn, place = torch.cat(turns, 1), torch.cat(places, 1)
        densities = torch.stack([proposal.log_density(turn, place) for proposal in proposals])
        log_density = densities.logsumexp(0) - math.log(len(proposals))
        if len(proposals) == rounds:
            return PoseSamples(_poses(solution, middle, turn, place), log_density)
        weights = (-torch.cat(costs, 1) - log_density).softmax(1)
        proposals.append(proposals[-1].fitted(turn, place, weights))


def _residuals(matches: PoseMatches, camera_from_map: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points in each camera `(B, K, 3, N)` and weighted residuals `(B, K, N)`: columns, rows, how far behind."""
    rotation, translation = camera_from_map[..., :3, :3], camera_from_map[..., :3, 3:]
    with torch.autocast(rotation.device.type, enabled=False):  # metres and pixels need more digits than half precision
        camera = rotation @ matches.points[:, None].transpose(2, 3) + translation
    x, y, z = camera.unbind(2)
    fx, fy, cx, cy = matches.intrinsics[:, None, None].unbind(-1)
    u, v = matches.pixels[:, None].unbind(-1)
    of_columns, of_rows = matches.weights[:, None].unbind(-1)
    ahead = z.clamp(min=NEAREST)
    behind = (ahead - z) * (0.25 * (fx + fy) / NEAREST * (of_columns + of_rows))
    return camera, (x / ahead * fx + (cx - u)) * of_columns, (y / ahead * fy + (cy - v)) * of_rows, behind


def _middle(matches: PoseMatches) -> Tensor:
    """The weighted mean `(B, 3)` of the points, about which turns and moves of the camera hang together least."""
    weights = matches.weights.mean(-1, keepdim=True) + 1e-12
    return (matches.points * weights).sum(1) / weights.sum(1)


def _moved(camera_from_map: Tensor, middle: Tensor, step: Tensor) -> Tensor:
    """Poses `(B, 4, 4)` that turn the map about its point `middle` `(B, 3)` and move it in the camera, `(B, 6)`."""
    place = se3.apply(camera_from_map, middle[:, None])[:, 0] + step[:, :3]
    rotation = se3.so3_exp(step[:, 3:]) @ camera_from_map[:, :3, :3]
    return _placed(rotation, place, middle)


def _placed(rotation: Tensor, place: Tensor, middle: Tensor) -> Tensor:
    """Poses of rotations `(..., 3, 3)` that put `middle` `(..., 3)` of the map at `place` `(..., 3)` of the camera."""
    return se3.from_rotation_translation(rotation, place - (rotation @ middle[..., None])[..., 0])


@dataclass
class _Slope:
    """Poses `(B, 4, 4)`, their cost `(B,)`, its gradient `(B, 6)` and J^T W J `(B, 6, 6)` by the step of `_moved`."""

    camera_from_map: Tensor
    cost: Tensor
    gradient: Tensor
    information: Tensor

    @classmethod
    def at(cls, matches: PoseMatches, middle: Tensor, pose: Tensor) -> _Slope:
        cameras, *parts = _residuals(matches, pose[:, None])
        camera = cameras[:, 0].transpose(1, 2)
        place = se3.apply(pose, middle[:, None])
        residual = torch.stack([part[:, 0] for part in parts], -1)
        x, y, z = camera.unbind(-1)
        ahead, front = z.clamp(min=NEAREST), (z > NEAREST).to(z)
        zero = torch.zeros_like(z)
        fx, fy = matches.intrinsics[:, 0:1], matches.intrinsics[:, 1:2]
        wu, wv = matches.weights.unbind(-1)
        columns = torch.stack([wu * fx / ahead, zero, -wu * fx * x / ahead**2 * front], -1)
        rows = torch.stack([zero, wv * fy / ahead, -wv * fy * y / ahead**2 * front], -1)
        behind = torch.stack([zero, zero, -(wu + wv) * (fx + fy) / (4 * NEAREST) * (1 - front)], -1)
        by_point = torch.stack([columns, rows, behind], 2)  # (B, N, 3 residuals, 3)
        # a . (w x r) = w . (r x a): a row a of the Jacobian by the point becomes r x a by the turn.
        arm = (camera - place)[:, :, None].expand_as(by_point)
        jacobian = torch.cat([by_point, torch.linalg.cross(arm, by_point, dim=-1)], -1)
        threshold = matches.threshold()[:, None]
        length = (residual**2).sum(-1).sqrt()
        trust = torch.where(length > threshold, threshold / length.clamp(min=1e-12), torch.ones_like(length))
        weighted = (jacobian * trust[..., None, None]).flatten(1, 2)
        span = place[:, 0].norm(dim=-1, keepdim=True).clamp(min=1.0)
        weak = torch.cat([span.expand(-1, 3) ** -2, torch.ones_like(span).expand(-1, 3)], 1)
        return cls(
            pose,
            pose_cost(matches, pose[:, None])[:, 0],
            (weighted.transpose(1, 2) @ residual.flatten(1)[..., None])[..., 0],
            weighted.transpose(1, 2) @ jacobian.flatten(1, 2) + torch.diag_embed(weak),
        )

    def where(self, chosen: Tensor, other: _Slope) -> _Slope:
        """This one where `chosen` `(B,)`, else the other."""
        return _Slope(*(
            torch.where(chosen.view(-1, *[1] * (mine.dim() - 1)), mine, theirs)
            for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)
        ))  # fmt: skip


@dataclass
class _Proposal:
    """A distribution of B x turns, unit quaternions (w, x, y, z) from the solution's rotation, and places `(B, 3)`.

    The turn is that of `turn` `(B, 4)` after an angular central Gaussian about no turn whose rotation vectors have the
    scale `turn_root` `(B, 3, 3)`; the place is `place` + `lever` `(B, 3, 3)` @ that turn + a Student t of three degrees
    of freedom with the scale `place_root`. Roots are lower triangular.
    """

    turn: Tensor
    turn_root: Tensor
    place: Tensor
    lever: Tensor
    place_root: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, turn: Tensor, mean_turn: Tensor, mean_place: Tensor, covariance: Tensor) -> _Proposal:
        """After a covariance `(B, 6, 6)` of place and turn. It is taken as the scale of both distributions: of all
        scales that leaves the least greatest ratio of a Gaussian of that covariance to either of them."""
        wide = covariance.double()
        of_place, across, of_turn = wide[:, :3, :3], wide[:, :3, 3:], wide[:, 3:, 3:]
        lever = torch.linalg.solve(of_turn, across.transpose(1, 2)).transpose(1, 2)
        rest = of_place - lever @ across.transpose(1, 2)
        floor = 1e-9 * of_place.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(3).to(wide)
        place = mean_place - (lever.to(mean_turn) @ mean_turn[..., None])[..., 0]
        roots = torch.linalg.cholesky(of_turn), torch.linalg.cholesky(0.5 * (rest + rest.transpose(1, 2)) + floor)
        return cls(turn, roots[0].to(place), place, lever.to(place), roots[1].to(place), covariance)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Turns `(B, count, 4)` and places `(B, count, 3)`."""
        noise = torch.randn(len(self.turn), count, 10, generator=generator, dtype=self.place.dtype).to(self.place)
        about = noise[..., 1:4] @ self.turn_root.transpose(1, 2) / 2
        small = torch.nn.functional.normalize(torch.cat([noise[..., :1], about], -1), dim=-1)
        vector = _vector(small)
        heavy = (3 / (noise[..., 7:] ** 2).sum(-1, keepdim=True).clamp(min=1e-6)).sqrt()
        away = (noise[..., 4:7] @ self.place_root.transpose(1, 2)) * heavy
        place = self.place[:, None] + vector @ self.lever.transpose(1, 2) + away
        return _product(small, self.turn[:, None]), place

    def log_density(self, turn: Tensor, place: Tensor) -> Tensor:
        """Log density `(B, K)` per radian^3 and metre^3 at turns `(B, K, 4)` and places `(B, K, 3)`."""
        small = _product(turn, _conjugate(self.turn)[:, None])
        vector = _vector(small)
        square = small[..., 0] ** 2 + (_whitened(self.turn_root, vector) ** 2).sum(-1)
        # On the sphere of quaternions |S|^-1/2 (q^T S^-1 q)^-2 / (2 pi^2), S = diag(1, root root^T / 4); two of them
        # are one rotation, and a small turn is eight times as large in radians^3.
        of_turn = -2 * square.log() - math.log(math.pi**2) - _log_volume(self.turn_root)
        away = place - self.place[:, None] - vector @ self.lever.transpose(1, 2)
        distance = (_whitened(self.place_root, away) ** 2).sum(-1)
        constant = math.lgamma(3) - math.lgamma(1.5) - 1.5 * math.log(3 * math.pi)
        return of_turn + constant - _log_volume(self.place_root) - 3 * torch.log1p(distance / 3)

    def fitted(self, turn: Tensor, place: Tensor, weights: Tensor) -> _Proposal:
        """A proposal after weighted samples `(B, K)`; this one's covariance counts as a few samples more."""
        # The mean of rotations is the greatest eigenvector of the mean of q q^T (Markley et al. 2007).
        mean = torch.linalg.eigh(torch.einsum("bk,bki,bkj->bij", weights, turn, turn).double())[1][..., -1].to(turn)
        vector = _vector(_product(turn, _conjugate(mean)[:, None]))
        both = torch.cat([place, vector], -1)
        centre = (weights[..., None] * both).sum(1)
        away = both - centre[:, None]
        scatter = torch.einsum("bk,bki,bkj->bij", weights, away, away)
        count = 1 / (weights**2).sum(1)[:, None, None]
        covariance = (count * scatter + PSEUDO_SAMPLES * self.covariance) / (count + PSEUDO_SAMPLES)
        return _Proposal.of(mean, centre[:, 3:], centre[:, :3], covariance)


def _poses(solution: PoseSolution, middle: Tensor, turn: Tensor, place: Tensor) -> Tensor:
    """camera_from_map `(B, K, 4, 4)` of turns after the solution's rotation and of places of `middle`."""
    skew = se3.hat(turn[..., 1:])
    rotation = torch.eye(3).to(turn) + 2 * turn[..., :1, None] * skew + 2 * skew @ skew
    return _placed(rotation @ solution.camera_from_map[:, None, :3, :3], place, middle[:, None])


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The quaternions `(..., 4)` of the turn `right` and then `left`."""
    a, b = left[..., 1:], right[..., 1:]
    real = left[..., :1] * right[..., :1] - (a * b).sum(-1, keepdim=True)
    a, b = torch.broadcast_tensors(a, b)
    return torch.cat([real, left[..., :1] * b + right[..., :1] * a + torch.linalg.cross(a, b, dim=-1)], -1)


def _conjugate(turn: Tensor) -> Tensor:
    return torch.cat([turn[..., :1], -turn[..., 1:]], -1)


def _vector(turn: Tensor) -> Tensor:
    """Twice the vector part `(..., 3)` of quaternions with a real part made positive: small rotation vectors."""
    return 2 * torch.where(turn[..., :1] < 0, -turn[..., 1:], turn[..., 1:])


def _whitened(root: Tensor, vectors: Tensor) -> Tensor:
    """root^-1 `(B, 3, 3)` @ each of `(B, K, 3)`."""
    return torch.linalg.solve_triangular(root, vectors.transpose(1, 2), upper=False).transpose(1, 2)


def _log_volume(root: Tensor) -> Tensor:
    return root.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True)
