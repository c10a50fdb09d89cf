"""The likelihood of a camera pose under the patch scores of many points, and its posterior.

With weak matches the best patch of each point says little, but the sum over all points of the whole score maps still
peaks near the true pose; so poses are compared by where they send every point, before any match is decided.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from ep2ploc_core import se3
from ep2ploc_core.camera import project_pinhole
from ep2ploc_core.model.patch_classifier import PatchScores
from ep2ploc_core.pose.jackknife import WIDE_SAMPLES, PartValues, part_of_points

NEAREST = 0.5  # metres; what is nearer, or behind, is not in the image
BOUND_PENALTY = 1e5  # nats lost by leaving the box around the prior by its own size
CPU_CHUNK = 1 << 16  # points looked up at a time, so that a CPU core works in its own cache


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
    column, row = (pixels[..., 0] + 0.5) / patch - 0.5, (pixels[..., 1] + 0.5) / patch - 0.5
    # Half a patch beyond the outermost centres is inside too; values stay constant there.
    inside = (depth > NEAREST) & (column > -0.5) & (column < columns - 0.5) & (row > -0.5) & (row < rows - 0.5)
    column, row = column.clamp(0, columns - 1), row.clamp(0, rows - 1)
    left, top = column.floor().clamp(max=columns - 2), row.floor().clamp(max=rows - 2)
    corner = torch.arange(batch * count, device=xyz.device).view(batch, 1, count) * (rows * columns)
    corner = corner + (top * columns + left).long()
    upper_left, upper_right, lower_left, lower_right = (
        scores.log_likelihood.reshape(-1).index_select(0, (corner + step).flatten()).view(corner.shape)
        for step in (0, 1, columns, columns + 1)
    )
    across, down = column - left, row - top
    value = torch.lerp(torch.lerp(upper_left, upper_right, across), torch.lerp(lower_left, lower_right, across), down)
    value = torch.where(inside, value, scores.log_likelihood_none[:, None])
    weight = scores.confidence * valid
    return (value * weight[:, None]).sum(-1)


@dataclass
class Box:
    """Poses that a prior allows: within `half_widths` `(6,)` (metres, radians) of `map_from_camera` `(4, 4)`, along and
    about its camera's axes."""

    map_from_camera: Tensor
    half_widths: Tensor

    def excess(self, rotation: Tensor, translation: Tensor) -> Tensor:
        """By how many half widths poses lie outside, squared and summed over the axes, `(K,)`; they are given from the
        middle of the box, box_from_camera: `(K, 3, 3)` and `(K, 3)`."""
        turn = 0.5 * (rotation - rotation.transpose(1, 2))  # sine of the angle x axis: exact enough for a fence
        tangent = torch.stack([*translation.unbind(1), turn[:, 2, 1], turn[:, 0, 2], turn[:, 1, 0]], 1)
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
        self.maps = scores.log_likelihood[0][:, None].contiguous()
        self.none = scores.log_likelihood_none[0][:, None]
        self.weight = scores.confidence[0] * valid[0] * temperature
        points = se3.apply(se3.inverse(guess_map_from_camera), xyz[0])
        self.points = pad(points, (0, 1), value=1.0)  # (N, 4) in the guess's optical frame
        self.guess, self.sigma, self.box = guess_map_from_camera, sigma, box
        self.box_from_guess = se3.inverse(box.map_from_camera) @ guess_map_from_camera
        # Rows of a matrix that makes of a point in an optical frame its place in the image, times its depth: -1 at the
        # left and upper edges and 1 at the right and lower ones, as `grid_sample` counts.
        rows, columns = self.maps.shape[2:]
        fx, fy, cx, cy = intrinsics[0].tolist()
        self.to_image = torch.tensor(
            [[2 * fx / (patch * columns), 0, (2 * cx + 1) / (patch * columns) - 1],
             [0, 2 * fy / (patch * rows), (2 * cy + 1) / (patch * rows) - 1],
             [0, 0, 1]],
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

    def value(self, offsets: Tensor) -> Tensor:
        """Log probabilities `(K,)`, up to a constant."""
        rotation, _ = rotation_and_jacobian(offsets[:, 3:])
        return self._weighed(self.weight, rotation, offsets) + self._prior(offsets, rotation)

    def part_values(self, offsets: Tensor) -> PartValues:
        """What the parts of the image say of the poses, the prior apart. `(B, K)`"""
        at_guess = self.points[:, :3] @ self.to_image.T
        parts = part_of_points(at_guess[:, :2] / at_guess[:, 2:].clamp(min=NEAREST)) * self.weight
        return PartValues(self._weighed(parts, rotation_and_jacobian(offsets[:, 3:])[0], offsets), parts.sum(1))

    def part_values_anywhere(self, generator: torch.Generator) -> Tensor:
        """What the parts `(B,)` say on the average of poses that are as far off as the first guess may be."""
        wide = torch.randn(WIDE_SAMPLES, 6, generator=generator).to(self.sigma) * self.box.half_widths / math.sqrt(3)
        return self.part_values(wide).value.mean(1)

    def slope(self, offsets: Tensor) -> Slope:
        """Value, gradient and information."""
        rotation, jacobian = rotation_and_jacobian(offsets[:, 3:])
        camera = torch.matmul(self.points, _camera_from_guess(rotation, offsets).permute(1, 2, 0))  # (3, N, K)
        value, inside, place = self._look((self.to_image @ camera.flatten(1)).view(camera.shape))
        # What `grid_sample` itself calls for the gradient by the places; where values stay constant it is zero.
        by_place = torch.ops.aten.grid_sampler_2d_backward(
            torch.ones_like(value)[:, None, None], self.maps, place, 0, 1, False, (False, True)
        )[1]
        x, y, z = camera[0], camera[1], camera[2].clamp(min=NEAREST)
        by_image = torch.where(inside[..., None], by_place[:, 0], 0) / z[..., None]
        by_x, by_y = (by_image * self.to_image.diagonal()[:2]).unbind(2)
        by_z = -(by_x * x + by_y * y) / z
        turns = (by_y * z - by_z * y, by_z * x - by_x * z, by_x * y - by_y * x)
        by_point = torch.stack([by_x, by_y, by_z, *turns]).permute(2, 0, 1)  # (K, 6, N)
        weighted = by_point * self.weight
        # The camera moves by R^T d and turns by J_r d: a point in its frame moves by -R^T d and by point x (J_r d).
        by_offset = torch.zeros_like(by_point[..., :6])
        by_offset[:, :3, :3] = -rotation
        by_offset[:, 3:, 3:] = jacobian.transpose(1, 2)
        information = by_offset @ (weighted @ by_point.transpose(1, 2)) @ by_offset.transpose(1, 2)
        return Slope(
            self.weight @ torch.where(inside, value, self.none) + self._prior(offsets, rotation),
            (by_offset @ weighted.sum(-1, keepdim=True)).squeeze(-1) - offsets / self.sigma**2,
            information + torch.diag(1 / self.sigma**2),
        )

    def _weighed(self, weight: Tensor, rotation: Tensor, offsets: Tensor) -> Tensor:
        """Log likelihoods of the points, summed with weights `(N,)` or `(B, N)`: `(K,)` or `(B, K)`."""
        to_image = self.to_image @ _camera_from_guess(rotation, offsets)
        chunk = max(1, CPU_CHUNK // len(self.points)) if offsets.device.type == "cpu" else len(offsets)
        sums = []
        for some in to_image.split(chunk):
            value, inside, _ = self._look(torch.matmul(self.points, some.permute(1, 2, 0)))
            sums.append(weight @ torch.where(inside, value, self.none))
        return torch.cat(sums, -1)

    def _look(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each point's map, interpolated at its places in K images, which are given times their depth `(3, N, K)` and
        overwritten: values `(N, K)`, held constant beyond the outermost patch centres; which are inside the image; and
        the places `(N, 1, K, 2)`."""
        place, depth = seen[:2], seen[2]
        ahead = depth > NEAREST
        place.div_(depth.clamp_(min=NEAREST))
        inside = (torch.maximum(place[0].abs(), place[1].abs()) < 1).logical_and_(ahead)
        place = place.permute(1, 2, 0)[:, None]
        value = grid_sample(self.maps, place, mode="bilinear", padding_mode="border", align_corners=False)
        return value[:, 0, 0], inside, place

    def _prior(self, offsets: Tensor, rotation: Tensor) -> Tensor:
        turn, move = self.box_from_guess[:3, :3], self.box_from_guess[:3, 3]
        excess = self.box.excess(turn @ rotation, offsets[:, :3] @ turn.T + move)
        return -0.5 * ((offsets / self.sigma) ** 2).sum(1) - BOUND_PENALTY * excess


def _camera_from_guess(rotation: Tensor, offsets: Tensor) -> Tensor:
    """`(K, 3, 4)`: the upper rows of the inverses of guess_from_camera, from rotations `(K, 3, 3)` and offsets."""
    back = rotation.transpose(1, 2)
    return torch.cat([back, -back @ offsets[:, :3, None]], 2)


def rotation_and_jacobian(rotation_vector: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations R `(K, 3, 3)` of rotation vectors `(K, 3)` of up to a radian, and J_r `(K, 3, 3)` with exp(w + d) =
    exp(w) exp(J_r d) for small d: Rodrigues' formula, J_r's last coefficient by its series."""
    hat = se3.hat(rotation_vector)
    identity, square = torch.eye(3).to(hat), hat @ hat
    squared = (rotation_vector**2).sum(-1)[:, None, None]
    turns = squared.sqrt() / math.pi  # as torch.sinc counts
    first, second = torch.sinc(turns) * hat, 0.5 * torch.sinc(turns / 2) ** 2
    return identity + first + second * square, identity - second * hat + (1 / 6 - squared / 120) * square
