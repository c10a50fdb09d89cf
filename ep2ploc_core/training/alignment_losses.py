"""What the features for the refinement by alignment are trained for; each loss can be switched off.

reprojection  where the unrolled optimizer's poses put the points, against where they are (PixLoc, Sarlin et al. 2021)
gauss_newton  where one Gauss-Newton step in the image leads from beside a point's true place, measured by its own
              Hessian (GN-Net, von Stumberg et al. 2020)
contrastive   a point and the image's feature at its true place must be alike, at other places unlike, each up to a
              margin (GN-Net, S2DHM)
place         the true place among the cells around it and some farther off: cross-entropy of the likelihoods that the
              differences of features have (ours; the other three alone learn slowly)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ep2ploc_core import se3
from ep2ploc_core.camera import project_pinhole
from ep2ploc_core.datasets.sampling import START_RANGE, Batch
from ep2ploc_core.map.unit import UNIT_VOXEL
from ep2ploc_core.model.alignment_head import DenseFeatures
from ep2ploc_core.model.ep2ploc import EP2PLoc, ImageFeatures, PointView
from ep2ploc_core.pose.feature_alignment import AlignmentSettings, FeatureLevel, align_features
from ep2ploc_core.pose.feature_sampling import sample_with_slope
from ep2ploc_core.visibility import remove_invisible

TRAINING_LENGTHS = (1.0, 3.0)  # of the optimizer's steps


@dataclass(frozen=True)
class AlignmentWeights:
    """Factors of the losses, and what they are made of. In a `shown` share of the views points expect what another
    image of the place shows of them, as in a map that was made with images, where the batch has one; in the others what
    their descriptors tell.

    `points` of each view take part. The optimizer's starts are off by START_RANGE times a share between `nearest` and
    `farthest`, small ones as often as large ones; it makes `iterations` steps a level. A point `pixels` off in the
    network's image has half left the pull of the reprojection loss. Gauss-Newton's steps start up to `cells_off` beside
    the true place. Unlike features are looked for `cells_apart` cells away, `negatives` of them; the margins are
    differences between unit vectors. The true place is looked for among the cells up to `window` away to each side and
    `farther` ones of those up to `cells_apart` away; it is taken to be `blur` pixels wide: drives' poses are no better.
    """

    reprojection: float = 0.3
    gauss_newton: float = 0.05
    contrastive: float = 0.0
    place: float = 0.2
    points: int = 256
    iterations: int = 2
    nearest: float = 0.03
    farthest: float = 0.7
    pixels: float = 2.0
    cells_off: float = 1.5
    cells_apart: tuple[float, float] = (2.0, 12.0)
    negatives: int = 4
    margin_alike: float = 0.2
    margin_unlike: float = 1.0
    shown: float = 0.75
    window: int = 2
    farther: int = 24
    blur: float = 1.0

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of those that are there."""
        named = {
            name: losses[name] for name in ("reprojection", "gauss_newton", "contrastive", "place") if name in losses
        }
        return (
            torch.stack([getattr(self, name) * value for name, value in named.items()]).sum()
            if named
            else torch.zeros(())
        )


def alignment_losses(
    network: EP2PLoc,
    features: ImageFeatures,
    batch: Batch,
    view: PointView,
    weights: AlignmentWeights,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The losses by name, unweighted, of those whose weight is not zero; and "share", that of the points of all
    views that the optimizer brings to within a pixel of the network's image."""
    step = max(1, view.xyz.shape[1] // weights.points)
    xyz, visible = view.xyz[:, ::step], batch.visible[:, ::step]
    with torch.autocast(xyz.device.type, enabled=False):
        start = se3.inverse(batch.true_camera_from_map) @ se3.exp(_start_errors(len(xyz), weights, generator).to(xyz))
    dense = network.dense_features(features)
    near = PointView(
        xyz=xyz,
        attributes=view.attributes[:, ::step],
        descriptors=view.descriptors[:, ::step],
        valid=view.valid[:, ::step],
        camera_from_map=se3.inverse(start),
        sigma=view.sigma,
        appearance=_appearances(network, dense, batch, batch.point_of_view[:, ::step], weights, generator),
    )
    levels = network.align_to(dense, batch.image_of_view, near)
    intrinsics = batch.intrinsics[batch.image_of_view]
    losses: dict[str, Tensor] = {}
    with torch.autocast(xyz.device.type, enabled=False):
        pixels, depth = project_pinhole(intrinsics, se3.apply(batch.true_camera_from_map, xyz))
        height, width = (cells * network.config.patch - 0.5 for cells in features.patches.shape[-2:])
        inside = (depth > 0.5) & (pixels > -0.5).all(-1) & (pixels[..., 0] < width) & (pixels[..., 1] < height)
        seen = near.valid & visible & inside
        if weights.reprojection > 0:
            steps = AlignmentSettings(weights.iterations, TRAINING_LENGTHS, least_metres=0.0, least_radians=0.0)
            found = align_features(levels, xyz, start, intrinsics, steps)
            off = [_distance(pose, xyz, intrinsics, pixels) for pose in found.after_level]
            each = [_mean(torch.log1p(squared / weights.pixels**2), seen) for squared in off]
            losses["reprojection"] = torch.stack(each).mean()
            losses["share"] = _mean((off[-1] < 1).float(), seen).detach()
        if weights.gauss_newton > 0:
            each = [_gauss_newton_loss(level, pixels, seen, weights, generator) for level in levels]
            losses["gauss_newton"] = torch.stack(each).mean()
        if weights.contrastive > 0:
            each = [_contrastive_loss(level, pixels, seen, weights, generator) for level in levels]
            losses["contrastive"] = torch.stack(each).mean()
        if weights.place > 0:
            each = [_place_loss(level, pixels, seen, weights, generator) for level in levels]
            losses["place"] = torch.stack(each).mean()
    return losses


def _appearances(
    network: EP2PLoc,
    dense: list[DenseFeatures],
    batch: Batch,
    points: Tensor,
    weights: AlignmentWeights,
    generator: torch.Generator,
) -> Tensor:
    """What another image of the batch shows of each view's points `(V, N)`: appearances `(V, N, A)`, zero where none
    does, and for a share of the views, which then learn from descriptors alone."""
    assert network.alignment_head is not None
    views = len(points)
    first_view = torch.zeros(len(batch.images), dtype=torch.long, device=points.device)
    first_view[batch.image_of_view] = torch.arange(views, device=points.device)
    cloud = batch.cloud[batch.point_of_view[first_view, 0]]  # of each image
    other = cloud[batch.image_of_view][:, None] == cloud
    other &= torch.arange(len(cloud), device=points.device) != batch.image_of_view[:, None]
    shown = torch.rand(views, generator=generator).to(points.device) < weights.shown
    chosen = (torch.rand(other.shape, generator=generator).to(points.device) * other).argmax(1)
    poses = batch.true_camera_from_map[first_view]
    seen = torch.zeros(len(cloud), len(batch.xyz), dtype=torch.bool, device=points.device)
    size = (batch.images.shape[-1], batch.images.shape[-2])
    for image in chosen[shown & other.any(1)].unique().tolist():
        among = (batch.cloud == cloud[image]).nonzero().squeeze(1)
        visible = remove_invisible(batch.xyz[among], poses[image], batch.intrinsics[image], size, UNIT_VOXEL)
        seen[image, among[visible.index]] = True
    with torch.autocast(points.device.type, enabled=False):
        appearance = network.alignment_head.observe(
            dense, chosen, batch.intrinsics[chosen], poses[chosen], batch.xyz[points]
        )
    kept = seen[chosen[:, None], points] & (shown & other.any(1))[:, None]
    return appearance * kept[..., None]


def _start_errors(views: int, weights: AlignmentWeights, generator: torch.Generator) -> Tensor:
    """`(V, 6)` metres and radians, along and about the camera's axes."""
    share = weights.nearest * (weights.farthest / weights.nearest) ** torch.rand(views, 1, generator=generator)
    direction = 2 * torch.rand(views, 6, generator=generator) - 1
    return direction * share * torch.from_numpy(START_RANGE).float()


def _distance(map_from_camera: Tensor, xyz: Tensor, intrinsics: Tensor, pixels: Tensor) -> Tensor:
    """Squared distances in pixels `(V, N)` between where poses `(V, 4, 4)` put points and `pixels` `(V, N, 2)`."""
    moved, _ = project_pinhole(intrinsics, se3.apply(se3.inverse(map_from_camera), xyz))
    return ((moved - pixels) ** 2).sum(-1)


def _gauss_newton_loss(
    level: FeatureLevel, pixels: Tensor, seen: Tensor, weights: AlignmentWeights, generator: torch.Generator
) -> Tensor:
    """-log of the density of the true place under a Gaussian at the step's end with the step's Hessian, in cells."""
    true = _cells(pixels, level)
    offset = (2 * torch.rand(true.shape, generator=generator).to(true) - 1) * weights.cells_off
    value, slope = sample_with_slope(level.features, level.image, true + offset)
    hessian = slope @ slope.transpose(2, 3) + 1e-4 * torch.eye(2).to(slope)
    step = torch.linalg.solve(hessian, slope @ (value - level.expected)[..., None])[..., 0]
    error = offset - step
    squared = level.precision * (error[..., None, :] @ hessian @ error[..., None]).squeeze((-1, -2))
    loss = 0.5 * squared - 0.5 * torch.logdet(hessian) - level.precision.log() + math.log(2 * math.pi)
    return _mean(loss, seen)


def _contrastive_loss(
    level: FeatureLevel, pixels: Tensor, seen: Tensor, weights: AlignmentWeights, generator: torch.Generator
) -> Tensor:
    """Double margin: squared excess of differences over the one margin, and of the other margin over differences; of
    the places looked at the most alike counts."""
    low, high = weights.cells_apart
    shape = (*pixels.shape[:2], weights.negatives)
    angle = 2 * math.pi * torch.rand(shape, generator=generator).to(pixels)
    distance = low * (high / low) ** torch.rand(shape, generator=generator).to(pixels)
    distance = pad(distance, (1, 0))  # the true place itself comes first
    angle = pad(angle, (1, 0))
    place = _cells(pixels, level)[:, :, None] + distance[..., None] * torch.stack([angle.cos(), angle.sin()], -1)
    value, _ = sample_with_slope(level.features, level.image, place.flatten(1, 2))
    difference = value.view(*place.shape[:3], -1) - level.expected[:, :, None]
    length = (difference**2).sum(-1).clamp(min=1e-8).sqrt()
    alike, unlike = length[..., 0], length[..., 1:].amin(-1)
    loss = (alike - weights.margin_alike).clamp(min=0) ** 2 + (weights.margin_unlike - unlike).clamp(min=0) ** 2
    return _mean(loss, seen)


def _place_loss(
    level: FeatureLevel, pixels: Tensor, seen: Tensor, weights: AlignmentWeights, generator: torch.Generator
) -> Tensor:
    """Nats above what the width of the target makes unavoidable."""
    true = _cells(pixels, level)
    rows, columns = level.size
    side = torch.arange(-weights.window, weights.window + 1, device=pixels.device)
    window = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).flatten(0, 1)
    reach = int(weights.cells_apart[1])
    apart = torch.randint(-reach, reach + 1, (*true.shape[:2], weights.farther, 2), generator=generator).to(
        pixels.device
    )
    cell = true.round().long()[:, :, None] + torch.cat([window.expand(*true.shape[:2], -1, -1), apart], 2)
    within = ((cell >= 0) & (cell < torch.tensor([columns, rows], device=cell.device))).all(-1)
    x, y = cell[..., 0].clamp(0, columns - 1), cell[..., 1].clamp(0, rows - 1)
    index = (level.image[:, None, None] * rows + y) * columns + x
    value = level.features.flatten(0, 2).index_select(0, index.flatten()).view(*index.shape, -1)
    likeness = (value @ level.expected[..., None]).squeeze(-1)  # 1 - half the squared difference
    said = (level.precision * likeness).masked_fill(~within, -torch.inf).log_softmax(-1)
    away = ((cell - true[:, :, None]) ** 2).sum(-1)
    width = (weights.blur / level.stride) ** 2 + 0.35**2  # a cell is no narrower than itself
    wanted = (-0.5 * away / width).masked_fill(~within, -torch.inf).log_softmax(-1)
    share = wanted.exp()
    return _mean((share * (wanted - said).masked_fill(~within, 0)).sum(-1), seen)


def _cells(pixels: Tensor, level: FeatureLevel) -> Tensor:
    return (pixels + 0.5) / level.stride - 0.5


def _mean(value: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, value, 0).sum() / mask.sum().clamp(min=1)
