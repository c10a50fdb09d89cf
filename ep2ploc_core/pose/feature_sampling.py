"""Values of images of features between their cells, with exact slopes, by Catmull and Rom's cubic."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

# Rows: of the four cells around a place, the coefficients of 1, t, t^2, t^3 (Catmull and Rom's cubic).
_CUBIC = [[0.0, -0.5, 1.0, -0.5], [1.0, 0.0, -2.5, 1.5], [0.0, 0.5, 2.0, -1.5], [0.0, 0.0, -0.5, 0.5]]


def sample(images: Tensor, image: Tensor, place: Tensor) -> Tensor:
    """Values `(B, N, D)` as of `sample_with_slope`."""
    base = place.detach().floor()
    across, down = _cubic(place - base, change=False).unbind(2)
    return _weighted_cells(images, image, base, (down[..., None] * across[..., None, :])[:, :, None])[:, :, 0]


def sample_with_slope(images: Tensor, image: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Values `(B, N, D)` at places `(B, N, 2)` (x, y in cells), and exact derivatives `(B, N, 2, D)` by them.

    images `(I, H, W, D)`, image `(B,)`: in which of them the places are. Interpolated by Catmull and Rom's cubic, whose
    slopes are continuous; beyond the outermost cells these go on.
    """
    base = place.detach().floor()
    across, down = _cubic(place - base, change=False).unbind(2)
    change_across, change_down = _cubic(place - base, change=True).unbind(2)
    columns, rows = torch.stack([across, change_across, across], 2), torch.stack([down, down, change_down], 2)
    sampled = _weighted_cells(images, image, base, rows[..., None] * columns[..., None, :])
    return sampled[:, :, 0], sampled[:, :, 1:]


def _cubic(t: Tensor, change: bool) -> Tensor:
    """Shares `(..., 4)` of the four cells around a place that lies t, 0..1, beyond the second; or how they change."""
    one, coefficients = torch.ones_like(t), torch.tensor(_CUBIC, device=t.device, dtype=t.dtype).T
    powers = [0 * t, one, 2 * t, 3 * t**2] if change else [one, t, t**2, t**3]
    return torch.stack(powers, -1) @ coefficients


def _weighted_cells(images: Tensor, image: Tensor, base: Tensor, kernels: Tensor) -> Tensor:
    """K sums `(B, N, K, D)` over the four by four cells around places whose upper left middle cell is `base`
    `(B, N, 2)`, by kernels `(B, N, K, 4, 4)` (row, column)."""
    _, height, width, _ = images.shape
    around = torch.arange(-1, 3, device=base.device)
    column = (base[..., 0, None].long() + around).clamp(0, width - 1)
    row = (base[..., 1, None].long() + around).clamp(0, height - 1)
    index = image[:, None, None, None] * (height * width) + row[..., :, None] * width + column[..., None, :]
    # Adds the cells up as it reads them: no matrix of all of them is made.
    summed = functional.embedding_bag(
        index[:, :, None].expand(kernels.shape).reshape(-1, 16),
        images.flatten(0, 2),
        per_sample_weights=kernels.reshape(-1, 16),
        mode="sum",
    )
    return summed.view(*kernels.shape[:3], images.shape[-1])
