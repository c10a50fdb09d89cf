"""What the network is trained for: the paper's losses, and two that made it learn sooner (pose, geometry).

patch   cross-entropy of each point over the patches and "no patch", at the true pixel, shared among four patches
pixel   cross-entropy over the pixels of the true patch
pose    cross-entropy of the true pose against wrong ones under the score maps: in the manner of EPro-PnP (cost at the
        truth + log of a sum over samples), but those are drawn around the truth and count alike
epro    EPro-PnP's loss itself, on single matches; trains nothing but their confidence
global  contrastive, images against what is visible from their poses
geometry  log depth, height and normal that the image alone should tell at visible points
align_...  those of the refinement by alignment (`alignment_losses.py`)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as functional
from torch import Tensor

from ep2ploc_core import se3
from ep2ploc_core.camera import project_pinhole
from ep2ploc_core.datasets.sampling import START_RANGE, Batch
from ep2ploc_core.model.ep2ploc import MIDDLE_LOG_DEPTH, EP2PLoc, ImageFeatures, PointView
from ep2ploc_core.model.patch_classifier import PatchScores
from ep2ploc_core.pose.epro_pnp import PoseMatches, monte_carlo_pose_loss
from ep2ploc_core.pose.pose_posterior import pose_log_likelihood
from ep2ploc_core.training.alignment_losses import AlignmentWeights, alignment_losses

EPRO_MATCHES = 128  # of each view, spread over all
EPRO_SETTLED = 0.25  # share of a view's matches that must lie within a patch of their true places


@dataclass(frozen=True)
class LossWeights:
    """Factors of the losses, and how many hypotheses the pose loss sets against the truth. `epro` is off: in a
    short adaptation to a site it was not seen to help, and it takes its time."""

    patch: float = 0.3
    pixel: float = 0.1
    pose: float = 1.0
    place: float = 0.05
    geometry: float = 0.3
    epro: float = 0.0
    hypotheses: int = 64
    pixel_points: int = 128
    alignment: AlignmentWeights = field(default_factory=AlignmentWeights)


@dataclass
class Losses:
    """The total to minimise, and named parts and measures for the log (detached scalars)."""

    total: Tensor
    log: dict[str, Tensor]


def compute_losses(
    network: EP2PLoc, batch: Batch, weights: LossWeights, generator: torch.Generator, voxel_codes: Tensor | None = None
) -> Losses:
    """Runs the network on a batch; `generator` (CPU) draws the hypotheses; voxel_codes as in PointTransformer."""
    features = network.encode_image(batch.images, batch.intrinsics)
    if network.config.encode == "view":
        seen, cloud, picked = batch.seen_point, batch.seen_view, batch.seen_of_view.flatten()
        descriptors = network.encode_points(batch.xyz[seen], batch.attributes[seen], cloud, None, picked)
    else:
        picked = batch.point_of_view.flatten()
        descriptors = network.encode_points(batch.xyz, batch.attributes, batch.cloud, voxel_codes, picked)
    view = PointView(
        xyz=batch.xyz[batch.point_of_view],
        attributes=batch.attributes[batch.point_of_view],
        descriptors=descriptors.float().view(*batch.point_of_view.shape, -1),
        valid=batch.valid,
        camera_from_map=batch.start_camera_from_map,
        sigma=batch.sigma,
    )
    intrinsics = batch.intrinsics[batch.image_of_view]
    patches = features.patches[batch.image_of_view]
    scores = network.classify(view, patches, intrinsics)
    pixels, depth = project_pinhole(intrinsics, se3.apply(batch.true_camera_from_map, view.xyz))
    target = _PatchTarget.of(pixels, depth, patches.shape[-2], patches.shape[-1], network.config.patch)
    seen = batch.valid & batch.visible

    patch = _patch_loss(scores, target, seen)
    hypotheses = draw_hypotheses(batch, weights.hypotheses, generator)
    likelihood = pose_log_likelihood(scores, view.xyz, view.valid, hypotheses, intrinsics, network.config.patch)
    likelihood = likelihood * network.log_pose_temperature.exp()
    pose = functional.cross_entropy(
        likelihood, torch.zeros(len(likelihood), dtype=torch.long, device=likelihood.device)
    )
    pixel = _pixel_loss(network, scores, patches, pixels, target, seen, weights.pixel_points)
    place = _place_loss(network, features, view, batch)
    geometry = _geometry_loss(features, batch, view, pixels, depth, target, seen, network.config.patch)
    total = (
        weights.patch * patch
        + weights.pose * pose
        + weights.pixel * pixel
        + weights.place * place
        + weights.geometry * geometry
    )
    parts = {"patch": patch, "pose": pose, "pixel": pixel, "place": place, "geometry": geometry}
    if weights.epro > 0:
        parts["epro"] = _epro_loss(network, batch, view, scores, intrinsics, pixels, generator)
        total = total + weights.epro * parts["epro"]
    if network.alignment_head is not None:
        aligned = alignment_losses(network, features, batch, view, weights.alignment, generator)
        parts |= {f"align_{name}": value for name, value in aligned.items()}
        total = total + weights.alignment.total(aligned)
    log = {name: value.detach() for name, value in parts.items()}
    log["pose_right"] = (likelihood.argmax(1) == 0).float().mean()
    log["near_patch"] = _share_near(scores, pixels, target, seen, network.config.patch)
    return Losses(total, log)


@dataclass
class _PatchTarget:
    """inside `(B, N)`; the four patches `(B, N, 4)` around the true pixel and their shares `(B, N, 4)`; the patch that
    holds it `(B, N)`."""

    inside: Tensor
    corners: Tensor
    shares: Tensor
    patch: Tensor

    @classmethod
    def of(cls, pixels: Tensor, depth: Tensor, rows: int, columns: int, size: int) -> _PatchTarget:
        column, row = (pixels[..., 0] + 0.5) / size, (pixels[..., 1] + 0.5) / size
        inside = (depth > 0.5) & (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        column, row = column.clamp(0, columns - 1e-3), row.clamp(0, rows - 1e-3)
        patch = row.long() * columns + column.long()
        x, y = (column - 0.5).clamp(0, columns - 1.001), (row - 0.5).clamp(0, rows - 1.001)
        left, top = x.floor(), y.floor()
        fx, fy = x - left, y - top
        corner = (top * columns + left).long()
        corners = torch.stack([corner, corner + 1, corner + columns, corner + columns + 1], -1)
        shares = torch.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], -1)
        return cls(inside, corners, shares, patch)


def _mean(value: Tensor, mask: Tensor) -> Tensor:
    return (value * mask).sum() / mask.sum().clamp(min=1)


def _patch_loss(scores: PatchScores, target: _PatchTarget, seen: Tensor) -> Tensor:
    inside = -(scores.log_posterior.gather(-1, target.corners) * target.shares).sum(-1)
    outside = -scores.log_posterior[..., -1]
    return _mean(torch.where(target.inside, inside, outside), seen)


def draw_hypotheses(batch: Batch, count: int, generator: torch.Generator) -> Tensor:
    """Poses camera_from_map `(V, count, 4, 4)`: the true one first; then wrong ones, from all over the prior down to a
    twentieth of it, a third of them along a single axis or a pair that images confuse (lateral with yaw)."""
    views = len(batch.sigma)
    device = batch.sigma.device
    rest = count - 1

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    direction = (2 * uniform(views, rest, 6) - 1) * torch.from_numpy(START_RANGE).float()
    third = rest // 3
    kind = (uniform(views, third) * 4).long()
    masks = torch.tensor([[0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0]])
    direction[:, :third] *= masks[kind]
    span = (batch.sigma[:, :1].cpu() * math.sqrt(3) / START_RANGE[0])[..., None]
    size = 0.05 ** uniform(views, rest, 1)
    wide = se3.exp((direction * size * 2 * span.clamp(min=0.1)).to(device))
    with torch.autocast(device.type, enabled=False):
        wrong = wide @ batch.true_camera_from_map[:, None]
    return torch.cat([batch.true_camera_from_map[:, None], wrong], 1)


def _pixel_loss(
    network: EP2PLoc,
    scores: PatchScores,
    patches: Tensor,
    pixels: Tensor,
    target: _PatchTarget,
    seen: Tensor,
    count: int,
) -> Tensor:
    """Against a Gaussian of one pixel around the true place: the poses of real drives are no better than that."""
    size, columns = network.config.patch, patches.shape[-1]
    usable = seen & target.inside
    view, point = usable.nonzero().unbind(1)
    step = max(1, len(view) // (count * len(usable)))
    view, point = view[::step], point[::step]
    patch = target.patch[view, point]
    descriptor = patches.flatten(2)[view, :, patch]
    log_probability = network.locate_in_patch(scores.query[view, point], descriptor)
    corner = torch.stack([patch % columns, patch // columns], -1) * size
    offset = pixels[view, point] - corner
    grid = torch.arange(size, device=pixels.device)
    distance = (grid - offset[:, 1:2])[:, :, None] ** 2 + (grid - offset[:, 0:1])[:, None, :] ** 2
    wanted = (-0.5 * distance).flatten(1).softmax(-1)
    return -(wanted * log_probability).sum() / max(1, len(view))


def _epro_loss(
    network: EP2PLoc,
    batch: Batch,
    view: PointView,
    scores: PatchScores,
    intrinsics: Tensor,
    true_pixels: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Monte-Carlo pose loss of single matches in nats per degree of freedom: a mean over the views that are settled.

    A match is a point and the pixel that it is expected at among the best patch and its neighbours; its squared weight
    is, as when localizing, certainty times confidence, here relative to the mean and with a learned scale.
    """
    size = network.config.patch
    with torch.no_grad():
        found, certainty, matched = _expected_pixels(scores, batch.valid, size)
        chosen, matched = _spread(matched, EPRO_MATCHES)
        found = found.gather(1, chosen[..., None].expand(-1, -1, 2))
        off = (found - true_pixels.gather(1, chosen[..., None].expand(-1, -1, 2))).abs().amax(-1)
        count = matched.sum(1)
        settled = ((off < size) & matched).sum(1) > EPRO_SETTLED * count.clamp(min=EPRO_MATCHES // 4)
    trust = (network.confidence_alone(view).float() * certainty).gather(1, chosen) * matched
    relative = trust / (trust.sum(1) / count.clamp(min=1)).clamp(min=1e-6)[:, None]
    weight = torch.where(matched, relative, 1.0).sqrt() * network.log_match_scale.exp() * matched
    points = view.xyz.gather(1, chosen[..., None].expand(-1, -1, 3))
    matches = PoseMatches(points, found, weight[..., None].expand(-1, -1, 2), intrinsics)
    true = batch.true_camera_from_map
    starts = torch.stack([true, batch.start_camera_from_map], 1)
    loss = monte_carlo_pose_loss(matches, true, starts, generator) / 6
    return _mean(torch.where(settled, loss, 0), settled)


def _expected_pixels(scores: PatchScores, valid: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels `(B, N, 2)` expected in the 3 x 3 patches around the best, its probability `(B, N)`, and whether the point
    is matched: valid and in the image rather than not `(B, N)`."""
    rows, columns = scores.log_likelihood.shape[-2:]
    best_log, best = scores.log_posterior.max(-1)
    matched = valid & (best < rows * columns)
    best = best.clamp(max=rows * columns - 1)
    step = torch.tensor([-1, 0, 1], device=best.device)
    row = torch.div(best, columns, rounding_mode="floor")[..., None, None] + step[:, None]
    column = (best % columns)[..., None, None] + step
    inside = ((row >= 0) & (row < rows)) & ((column >= 0) & (column < columns))
    index = row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)
    around = scores.log_posterior.gather(-1, index.flatten(2)).masked_fill(~inside.flatten(2), -torch.inf)
    share = around.softmax(-1).view(*best.shape, 3, 3)
    x = (share * column).sum((-1, -2))
    y = (share * row).sum((-1, -2))
    return (torch.stack([x, y], -1) + 0.5) * size - 0.5, best_log.exp(), matched


def _spread(matched: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices `(B, count)` of points that are matched, spread evenly over all `(B, N)` that are, and which hold one."""
    order = (~matched).to(torch.uint8).argsort(dim=1, stable=True)
    number = matched.sum(1, keepdim=True)
    place = torch.arange(count, device=matched.device) * number.clamp(min=count) // count
    chosen = order.gather(1, place.clamp(max=matched.shape[1] - 1))
    return chosen, (place < number) & (place < matched.shape[1])


def _place_loss(network: EP2PLoc, features: ImageFeatures, view: PointView, batch: Batch) -> Tensor:
    """Each view's points should be nearest its own image, among the images of the batch that lie elsewhere."""
    place = network.encode_place(view)
    similarity = place @ features.global_descriptor.T * 10
    cloud_of_view = batch.cloud[batch.point_of_view[:, 0]]
    first_view = torch.zeros(len(batch.images), dtype=torch.long, device=place.device)
    first_view[batch.image_of_view] = torch.arange(len(cloud_of_view), device=place.device)
    same_cloud = cloud_of_view[:, None] == cloud_of_view[first_view][None]
    own = functional.one_hot(batch.image_of_view, len(batch.images)).bool()
    similarity = similarity.masked_fill(same_cloud & ~own, -torch.inf)
    return functional.cross_entropy(similarity, batch.image_of_view)


def _geometry_loss(
    features: ImageFeatures,
    batch: Batch,
    view: PointView,
    pixels: Tensor,
    depth: Tensor,
    target: _PatchTarget,
    seen: Tensor,
    size: int,
) -> Tensor:
    geometry = features.geometry.flatten(2)[batch.image_of_view]
    said = geometry.gather(2, target.patch[:, None].expand(-1, 5, -1)).transpose(1, 2)
    normals = view.attributes[..., 1:4] @ batch.true_camera_from_map[:, :3, :3].transpose(1, 2)
    height = (view.attributes[..., 5:] / 4).clamp(-2, 2)
    true = torch.cat([depth.clamp(min=0.5).log()[..., None] - MIDDLE_LOG_DEPTH, height, normals], -1)
    error = functional.smooth_l1_loss(said, true, reduction="none", beta=0.3).sum(-1)
    return _mean(error, seen & target.inside)


def _share_near(scores: PatchScores, pixels: Tensor, target: _PatchTarget, seen: Tensor, size: int) -> Tensor:
    """Share of visible points in the image whose most likely patch is the true one or touches it."""
    columns = scores.log_likelihood.shape[-1]
    best = scores.log_posterior[..., :-1].argmax(-1)
    near = ((best % columns - target.patch % columns).abs() <= 1) & (
        (
            torch.div(best, columns, rounding_mode="floor") - torch.div(target.patch, columns, rounding_mode="floor")
        ).abs()
        <= 1
    )
    return _mean(near.float(), seen & target.inside)
