"""IPR, invisible point removal: which map points a camera at a pose can see (EP2P-Loc, section 3.1).

The points' depths are drawn into a z-buffer, holes between them are closed by min pooling and the result opened by
max pooling; what lies behind that surface is hidden. The paper's rule has no tolerance and so thins slanted ground;
ours keeps what is within `tolerance_metres` or `tolerance_share` of its depth behind the surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from ep2ploc_core import se3
from ep2ploc_core.camera import project_pinhole


@dataclass(frozen=True)
class VisibilitySettings:
    """`kernel` in pixels for an image `reference_width` wide (it scales with the width); `margin` widens the image on
    each side by this share of its width and height, so that a wrong prior does not lose what the camera sees."""

    kernel: int = 9
    reference_width: int = 1080
    tolerance_metres: float = 0.3
    tolerance_share: float = 0.03
    nearest: float = 1.0
    farthest: float = 60.0
    margin: float = 0.0


@dataclass
class VisiblePoints:
    """`index` `(M,)` of the points that stay, their `pixels` `(M, 2)` and `depths` `(M,)` in metres."""

    index: Tensor
    pixels: Tensor
    depths: Tensor


def remove_invisible(
    xyz: Tensor,
    camera_from_map: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
    settings: VisibilitySettings = VisibilitySettings(),
) -> VisiblePoints:
    """The points `(N, 3)` that a pinhole camera sees.

    camera_from_map: `(4, 4)`. intrinsics: `(4,)` fx, fy, cx, cy. size: width and height in pixels. Works on any device.
    """
    width, height = size
    pixels, depths = project_pinhole(intrinsics, se3.apply(camera_from_map, xyz))
    border_x, border_y = round(settings.margin * width), round(settings.margin * height)
    column = pixels[:, 0].round() + border_x
    row = pixels[:, 1].round() + border_y
    full_width, full_height = width + 2 * border_x, height + 2 * border_y
    inside = (depths > settings.nearest) & (depths < settings.farthest)
    inside &= (column >= 0) & (column < full_width) & (row >= 0) & (row < full_height)
    index = inside.nonzero().squeeze(1)
    pixels, depths = pixels[index], depths[index]
    cell = row[index].long() * full_width + column[index].long()
    buffer = torch.full((full_width * full_height,), torch.inf, dtype=depths.dtype, device=depths.device)
    buffer.scatter_reduce_(0, cell, depths, "amin")
    kernel = pooling_kernel(width, settings)
    surface = open_depth(buffer.view(1, 1, full_height, full_width), kernel).view(-1)
    slack = (settings.tolerance_share * depths).clamp(min=settings.tolerance_metres)
    seen = depths <= surface[cell] + slack
    return VisiblePoints(index[seen], pixels[seen], depths[seen])


def pooling_kernel(width: int, settings: VisibilitySettings) -> int:
    """The odd pooling size for an image of this width: the paper's 9 pixels at 1080, at least 3."""
    return max(3, 2 * round((settings.kernel * width / settings.reference_width - 1) / 2) + 1)


def open_depth(depth: Tensor, kernel: int) -> Tensor:
    """Max pooling of min pooling of depths `(B, 1, H, W)`, empty pixels infinite, stride 1 (EP2P-Loc, equation 1)."""
    return _max_pool(-_max_pool(-depth, kernel), kernel)


def _max_pool(grid: Tensor, kernel: int) -> Tensor:
    """Along rows, then along columns: the same result for 2 x kernel comparisons a pixel instead of kernel squared."""
    rows = functional.max_pool2d(grid, (1, kernel), stride=1, padding=(0, kernel // 2))
    return functional.max_pool2d(rows, (kernel, 1), stride=1, padding=(kernel // 2, 0))
