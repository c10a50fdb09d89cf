"""Refinement of a pose: where the image's features are most like what the map's points expect to see.

Levenberg-Marquardt on SE(3) over the visible map points, coarse features to fine, with learned damping, as in PixLoc
(Sarlin et al., CVPR 2021). The reference features are the points' own, so no reference image is needed.

A pose is moved in its camera's axes: map_from_camera @ exp(offset), `(6,)` metres and radians.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ep2ploc_core import se3
from ep2ploc_core.camera import project_pinhole
from ep2ploc_core.pose.feature_sampling import sample, sample_with_slope
from ep2ploc_core.pose.jackknife import LEAST_SHARE, part_of_points

NEAREST = 0.5  # metres; what is nearer, or behind, is not in the image
LIKENESS_SHIFTS = 5  # points are compared with those a fifth, two fifths, ... of all points farther on
LEAST_NOISE = 1e-12  # variance of differences between unit vectors
EPSILON = 1e-6  # added to the diagonal, so that nothing moves where the image tells nothing


@dataclass(frozen=True)
class AlignmentSettings:
    """At most `iterations` steps on each level; a level ends when a step is shorter than `least_metres` and
    `least_radians`. Of the `lengths` times the step that Gauss and Newton's Hessian advises the best is taken: that
    Hessian takes whatever the image shows for information and advises short steps. One that does not lead downhill is
    taken back and the damping raised tenfold."""

    iterations: int = 6
    lengths: tuple[float, ...] = (1.0, 3.0, 9.0)
    least_metres: float = 0.003
    least_radians: float = 0.0003


@dataclass
class FeatureLevel:
    """One resolution of I images, and what N map points expect to see at it in B views of them.

    features `(I, H, W, D)` and expected `(B, N, D)`, unit vectors; confidence `(I, H, W)` and weight `(B, N)`, 0..1,
    the latter zero for points that do not count; image `(B,)`: which one each view is of; stride: pixels per cell;
    damping `(6,)`, as shares of the Hessian's diagonal; scale: the difference of features from which on it counts less
    and less (Cauchy's robust cost), no dimension; precision: of single differences, one over their variance, as learned
    by GN-Net's loss.
    """

    features: Tensor
    confidence: Tensor
    image: Tensor
    expected: Tensor
    weight: Tensor
    stride: int
    damping: Tensor
    scale: Tensor
    precision: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.confidence.shape[1], self.confidence.shape[2]

    def of(self, views: slice | Tensor) -> FeatureLevel:
        """The same for some of the views."""
        return replace(self, image=self.image[views], expected=self.expected[views], weight=self.weight[views])


@dataclass
class Likeness:
    """How much more alike the image and what N points expect to see are than by chance, from each of B poses on the
    finest level: 1 where all points find what they expect, 0 where they find no more of it than other points would at
    their places.

    whole `(B,)`: of all points; least `(B,)`: of those in that part of the image (`pose.jackknife`) where it is least,
    of the `parts` `(B,)` that hold enough of the points' weight. inside `(B, N)`: which points count and are in the
    image; more `(B, N)`: which of them find more of what they expect than others would; pixels `(B, N, 2)`: where.
    """

    whole: Tensor
    least: Tensor
    parts: Tensor
    inside: Tensor
    more: Tensor
    pixels: Tensor


@dataclass
class Alignment:
    """Poses `map_from_camera` `(B, 4, 4)` and how they were come by.

    cost_before, cost_after `(B,)`: mean robust cost of a point on the finest level, at the start and at the end, the
    points weighed alike. inside_before, inside_after `(B,)`: share of the points' weight that lies in the image.
    after_level: the poses after each level. track: all poses, step by step, the start first; level_of: for each of them
    the number of the level that led to it, the first for the start. likeness_before, likeness_after: at the start and
    at the end. covariance `(B, 6, 6)` of `se3.perturb`'s tangent (metres and radians, map axes); only where it was
    asked for.
    """

    map_from_camera: Tensor
    cost_before: Tensor
    cost_after: Tensor
    inside_before: Tensor
    inside_after: Tensor
    likeness_before: Likeness
    likeness_after: Likeness
    after_level: list[Tensor] = field(default_factory=list)
    track: list[Tensor] = field(default_factory=list)
    level_of: list[int] = field(default_factory=list)
    covariance: Tensor | None = None

    @property
    def iterations(self) -> int:
        """How many steps were tried."""
        return len(self.track) - 1


def align_features(
    levels: list[FeatureLevel],
    xyz: Tensor,
    map_from_camera: Tensor,
    intrinsics: Tensor,
    settings: AlignmentSettings = AlignmentSettings(),
    box: Tensor | None = None,
) -> Alignment:
    """Aligns B views, each of N points `xyz` `(B, N, 3)`, from the poses `(B, 4, 4)`; intrinsics `(B, 4)` in pixels.

    levels: coarse to fine. Differentiable in everything about the levels. box `(6,)` (metres, radians): standard
    deviations of a prior, which a covariance is then limited to; without it, or where costs are no numbers, none is
    computed.
    """
    finest = _Problem.at(levels[-1], xyz, map_from_camera, intrinsics)
    cost_before, inside_before = finest.cost(map_from_camera)
    pose, track, level_of, after_level = map_from_camera, [map_from_camera], [0], []
    for number, level in enumerate(levels):
        pose = pose.detach()  # in training each level learns from what it does itself
        pose = _descend(_Problem.at(level, xyz, pose, intrinsics), pose, settings, track)
        after_level.append(pose)
        level_of += [number] * (len(track) - len(level_of))
    cost_after, inside_after = finest.cost(pose)
    return Alignment(
        map_from_camera=pose,
        cost_before=cost_before / finest.total,
        cost_after=cost_after / finest.total,
        inside_before=inside_before / finest.total,
        inside_after=inside_after / finest.total,
        likeness_before=finest.likeness(map_from_camera),
        likeness_after=finest.likeness(pose),
        after_level=after_level,
        track=track,
        level_of=level_of,
        covariance=_covariances(finest, pose, box) if box is not None and cost_after.isfinite().all() else None,
    )


def _descend(problem: _Problem, pose: Tensor, settings: AlignmentSettings, track: list[Tensor]) -> Tensor:
    """The poses `(B, 4, 4)` that steps of one level lead to, each on its own."""
    slope = problem.slope(pose)
    more = torch.ones_like(slope.cost)
    views, tries = torch.arange(len(pose), device=pose.device), len(settings.lengths)
    every = problem.of(views.repeat_interleave(tries))
    lengths = torch.tensor(settings.lengths, device=pose.device, dtype=pose.dtype)[:, None]
    for _ in range(settings.iterations):
        diagonal = slope.hessian.diagonal(dim1=1, dim2=2)
        damped = slope.hessian + torch.diag_embed(more[:, None] * problem.level.damping * diagonal + EPSILON)
        steps = (lengths * -torch.linalg.solve(damped, slope.gradient)[:, None]).flatten(0, 1)
        there = pose.repeat_interleave(tries, 0) @ se3.exp(steps)
        best = views * tries
        if tries > 1:
            with torch.no_grad():
                best = best + every.cost(there)[0].view(-1, tries).argmin(1)
        step, there = steps[best], there[best]
        tried = problem.slope(there)
        down = tried.cost < slope.cost
        pose = torch.where(down[:, None, None], there, pose)
        slope = slope.or_where(down, tried)
        more = torch.where(down, (more / 10).clamp(min=1), more * 10)
        track.append(pose)
        if (step[:, :3].norm(dim=1) < settings.least_metres).all() and (
            step[:, 3:].norm(dim=1) < settings.least_radians
        ).all():
            break
    return pose


@dataclass
class Look:
    """What N points meet in the image from B poses, on one level: places `pixels` `(B, N, 2)`; which are `inside` the
    image `(B, N)`; how `unlike` `(B, N)` the image is to what they expect, 0..2, the length of the difference of unit
    vectors; and what each would weigh `(B, N)` if the level began there."""

    pixels: Tensor
    inside: Tensor
    unlike: Tensor
    weight: Tensor


def look(level: FeatureLevel, xyz: Tensor, map_from_camera: Tensor, intrinsics: Tensor) -> Look:
    """How the level sees the points from the poses; arguments as for `align_features`."""
    problem = _Problem.at(level, xyz, map_from_camera, intrinsics)
    place, inside, _ = problem._look(map_from_camera)
    value = sample(level.features, level.image, place)
    pixels = (place + 0.5) * level.stride - 0.5
    return Look(pixels, inside, (value - level.expected).norm(dim=-1), problem.weight)


@dataclass
class Slope:
    """At B poses: cost `(B,)`, half its gradient `(B, 6)` and Gauss-Newton's half Hessian `(B, 6, 6)` by offsets; each
    point's share of the gradient `(B, N, 6)`, its weight `(B, N)`, zero outside the image, and its place `(B, N, 2)`,
    -1 at the left and upper edges of the image and 1 at the others."""

    cost: Tensor
    gradient: Tensor
    hessian: Tensor
    by_point: Tensor
    weight: Tensor
    place: Tensor

    def or_where(self, condition: Tensor, other: Slope) -> Slope:
        """The other's values where the condition `(B,)` holds."""

        def choose(mine: Tensor, others: Tensor) -> Tensor:
            return torch.where(condition.view(-1, *[1] * (mine.ndim - 1)), others, mine)

        return Slope(**{name: choose(value, getattr(other, name)) for name, value in vars(self).items()})


@dataclass
class _Problem:
    """The cost of one level as a function of the pose: sum of weight x c^2 log(1 + |difference|^2 / c^2) over the
    points. What a point weighs is settled where the level begins, else poses would gain by moving points to where the
    image is unsure; and a point that leaves the image costs what points cost on the average there."""

    level: FeatureLevel
    xyz: Tensor
    intrinsics: Tensor
    weight: Tensor
    neutral: Tensor

    @classmethod
    def at(cls, level: FeatureLevel, xyz: Tensor, map_from_camera: Tensor, intrinsics: Tensor) -> _Problem:
        problem = cls(level, xyz, intrinsics, level.weight, torch.zeros_like(level.weight[:, 0]))
        place, inside, _ = problem._look(map_from_camera)
        confidence = sample(level.confidence[..., None], level.image, place)
        problem.weight = level.weight * torch.where(inside, confidence[..., 0].clamp(0, 1), 0)
        cost, _ = problem.cost(map_from_camera)
        problem.neutral = (cost / problem.total).detach()
        return problem

    def of(self, views: slice | Tensor) -> _Problem:
        """That of some of the views, or of one view several times."""
        parts = (self.xyz, self.intrinsics, self.weight, self.neutral)
        return _Problem(self.level.of(views), *(part[views] for part in parts))

    @property
    def total(self) -> Tensor:
        return self.weight.sum(1).clamp(min=1e-6)

    def cost(self, map_from_camera: Tensor) -> tuple[Tensor, Tensor]:
        """That of `slope` alone, and the weight of the points inside the image; `(B,)`."""
        place, inside, _ = self._look(map_from_camera)
        difference = sample(self.level.features, self.level.image, place) - self.level.expected
        cost = torch.where(inside, self._robust(difference), self.neutral[:, None])
        return (self.weight * cost).sum(1), (self.weight * inside).sum(1)

    def slope(self, map_from_camera: Tensor) -> Slope:
        place, inside, points = self._look(map_from_camera)
        place_by_offset = self._place_by_offset(points)
        value, by_place = sample_with_slope(self.level.features, self.level.image, place)
        difference = value - self.level.expected
        cost = torch.where(inside, self._robust(difference), self.neutral[:, None])
        weight = self.weight * inside
        steep = weight / (1 + (difference**2).sum(-1) / self.level.scale**2)
        # Per point: gradient and Hessian by its place in the image, then by the offset of the camera.
        by_cell = by_place @ difference[..., None]  # (B, N, 2, 1)
        gradient = (place_by_offset.transpose(2, 3) @ by_cell)[..., 0] * steep[..., None]
        square = (by_place @ by_place.transpose(2, 3)) * steep[..., None, None]
        hessian = place_by_offset.flatten(1, 2).transpose(1, 2) @ (square @ place_by_offset).flatten(1, 2)
        return Slope(
            cost=(self.weight * cost).sum(1),
            gradient=gradient.sum(1),
            hessian=hessian,
            by_point=gradient,
            weight=weight,
            place=self._relative(place),
        )

    def likeness(self, map_from_camera: Tensor) -> Likeness:
        place, inside, _ = self._look(map_from_camera)
        value = sample(self.level.features, self.level.image, place)
        weight, expected, count = self.weight * inside, self.level.expected, place.shape[1]
        own = self._robust(value - expected)
        shifts = [shift * count // LIKENESS_SHIFTS for shift in range(1, LIKENESS_SHIFTS)]
        chance = torch.stack([self._robust(value - expected.roll(shift, 1)) for shift in shifts]).mean(0)

        def alike(own: Tensor, chance: Tensor) -> Tensor:
            return torch.where(chance > 0, 1 - own / chance.clamp(min=1e-9), 0)

        of_parts = part_of_points(self._relative(place)).to(weight) * weight[:, None]  # (B, P, N)
        counted = of_parts.sum(2) > LEAST_SHARE * weight.sum(1, keepdim=True)
        by_part = alike((of_parts * own[:, None]).sum(2), (of_parts * chance[:, None]).sum(2))
        return Likeness(
            whole=alike((weight * own).sum(1), (weight * chance).sum(1)),
            least=torch.where(counted, by_part, torch.inf).amin(1).clamp(max=1),
            parts=counted.sum(1),
            inside=weight > 0,
            more=(weight > 0) & (own < chance),
            pixels=(place + 0.5) * self.level.stride - 0.5,
        )

    def _relative(self, place: Tensor) -> Tensor:
        """Places `(..., 2)` in cells, as -1 at the left and upper edges of the image and 1 at the others."""
        return (place + 0.5) / torch.tensor(self.level.size[::-1], device=place.device) * 2 - 1

    def _robust(self, difference: Tensor) -> Tensor:
        """What points cost `(B, N)` whose features differ by `(B, N, D)`."""
        limit = self.level.scale**2
        return limit * torch.log1p((difference**2).sum(-1) / limit)

    def _look(self, map_from_camera: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where the points lie in the image, in cells `(B, N, 2)`; which are inside; and they themselves in the
        camera's frame `(B, N, 3)`."""
        points = se3.apply(se3.inverse(map_from_camera), self.xyz)
        height, width = self.level.size
        pixels, depth = project_pinhole(self.intrinsics, points)
        place = (pixels + 0.5) / self.level.stride - 0.5
        inside = (depth > NEAREST) & (place > -0.5).all(-1)
        inside = inside & (place[..., 0] < width - 0.5) & (place[..., 1] < height - 0.5)
        return place, inside, points

    def _place_by_offset(self, points: Tensor) -> Tensor:
        """Derivatives `(B, N, 2, 6)` of the places of points `(B, N, 3)` by the camera's offset: a point in its frame
        moves by -(d + w x point) for a move d and a turn w."""
        z = points[..., 2].clamp(min=NEAREST)
        x, y = points[..., 0] / z, points[..., 1] / z
        focal = self.intrinsics / self.level.stride
        scale_x, scale_y = focal[:, :1] / z, focal[:, 1:2] / z
        zero = torch.zeros_like(z)
        by_x = torch.stack([-scale_x, zero, x * scale_x, x * y * z * scale_x, -(1 + x * x) * z * scale_x,
                            y * z * scale_x], -1)  # fmt: skip
        by_y = torch.stack([zero, -scale_y, y * scale_y, (1 + y * y) * z * scale_y, -x * y * z * scale_y,
                            -x * z * scale_y], -1)  # fmt: skip
        return torch.stack([by_x, by_y], 2)


def _covariances(problem: _Problem, map_from_camera: Tensor, box: Tensor) -> Tensor:
    """Of all views, `(B, 6, 6)`."""
    return torch.stack(
        [
            _covariance(problem.of(slice(view, view + 1)), map_from_camera[view : view + 1], box)
            for view in range(len(map_from_camera))
        ]
    )


def _covariance(problem: _Problem, map_from_camera: Tensor, box: Tensor) -> Tensor:
    """How far off a pose may be, `(6, 6)` in map axes; problem and pose `(1, 4, 4)` of a single view.

    Huber's sandwich H^-1 S H^-1, S the scatter of the single points' gradients, and to it the delete-one-group
    jackknife over parts of the image, since neighbouring points err together: without a part the next Newton step would
    lead elsewhere. A prior of standard deviations `box` `(6,)` holds what the image does not tell.

    H is not that of Gauss and Newton: what the image shows beyond what points expect has slopes too, and those it would
    take for information. It is the change of the gradient over half a cell to either side.
    """
    with torch.autocast(box.device.type, enabled=False):
        slope = problem.slope(map_from_camera)
        _, inside, points = problem._look(map_from_camera)
        by_offset = problem._place_by_offset(points)[inside]
        reach = 0.5 / (by_offset**2).sum(1).mean(0).sqrt().clamp(min=1e-3)  # a row per offset
        steps = torch.cat([torch.diag(reach), -torch.diag(reach)])
        around = problem.of(torch.zeros(len(steps), dtype=torch.long)).slope(map_from_camera @ se3.exp(steps))
        wide = box.double()
        parts = part_of_points(slope.place[0].double())
        used = (parts @ slope.weight[0].double()) > 0
        parts = parts[used]
        change = (parts @ (around.by_point[:6] - around.by_point[6:]).double()) / (2 * reach.double()[:, None, None])
        hessians = change.permute(1, 0, 2) * wide * wide[:, None]  # (G, 6, 6) in units of the box
        by_point = slope.by_point[0].double() * wide
        single = by_point.T @ by_point
        # The variance of residuals, in which the prior is to be measured; not zero, nor is the prior.
        steep = slope.hessian[0].double() * wide * wide[:, None]
        noise = (single.trace() / steep.trace().clamp(min=LEAST_NOISE)).clamp(min=LEAST_NOISE)
        prior = noise * torch.eye(6, dtype=wide.dtype, device=wide.device)
        hessian = hessians.sum(0)
        inverse = torch.linalg.inv(_clamped(hessian, low=0.0) + prior)
        told = inverse @ (single + noise * prior) @ inverse
        left = _clamped(hessian - hessians, low=0.0) + prior
        without = torch.linalg.solve(left, (parts @ by_point)[..., None])[..., 0]
        away = without - without.mean(0) if len(without) else without
        jackknife = away.T @ away * max(0, len(away) - 1) / max(1, len(away))
        covariance = _clamped(told + jackknife, high=1.0)
        to_map = torch.block_diag(map_from_camera[0, :3, :3], map_from_camera[0, :3, :3]).double() * wide
        return to_map @ covariance @ to_map.T


def _clamped(matrices: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """Symmetric parts of matrices `(..., 6, 6)`, their eigenvalues not under or over a limit."""
    values, axes = torch.linalg.eigh(0.5 * (matrices + matrices.transpose(-1, -2)))
    return (axes * values.clamp(low, high)[..., None, :]) @ axes.transpose(-1, -2)
