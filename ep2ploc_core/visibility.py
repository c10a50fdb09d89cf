"""IPR, invisible point removal: which map points a camera at a pose can see (EP2P-Loc, section 3.1).

The points' depths are drawn into a z-buffer; min pooling closes the holes between them and max pooling takes back what
that added around things. What lies behind the surface that this gives is hidden. The paper has one window of pixels for
near and far, and no tolerance, which lets through what stands behind a near wall and thins the ground away. Here

* the nearer a point, the larger the cells in which it is drawn, so that its neighbours in the map lie about as many
  cells away at any depth: the holes of a near surface are closed, and a far one keeps its detail;
* a surface that is slanted, such as the ground, reaches within each cell to the farther end of it;
* what is only a little behind the surface stays: maps are noisy.

`benchmarks/visibility.py` compares this with the truth, and with the paper's rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

# Points, or pixels, times views that are worked on at a time: what a CPU's cache holds, or some GiB of a GPU's memory.
_CPU_BLOCK, _GPU_BLOCK = 1 << 16, 1 << 26


@dataclass(frozen=True)
class VisibilitySettings:
    """Lengths in metres. Chosen on ray-cast streets (`ep2ploc_core.evaluation.visibility`) and two recorded ones.

    window: of the pooling, in cells. A point is drawn in cells of 1, 2, 4 ... pixels, `scales` sizes in all: the
    smallest of which a window spans the gap to its neighbours. With three sizes, gaps of up to 28 pixels are closed;
    more would serve for walls very near, but then the few points that moving things left near the camera's way would
    hide whole parts of the image. slope: a surface goes on into the next cell when it is deeper there by at most this
    share. Points up to `tolerance_gaps` spacings or `tolerance_share` of their depth behind the surface stay. margin:
    the image is widened on each side by this share of its width and height, so that a wrong prior does not lose what
    the camera sees.
    """

    window: int = 7
    scales: int = 3
    slope: float = 0.15
    tolerance_gaps: float = 1.5
    tolerance_share: float = 0.03
    nearest: float = 0.3
    farthest: float = 60.0
    margin: float = 0.0

    def reach(self, surface: Tensor, spacing: float) -> Tensor:
        """The greatest depth that still counts as on a surface of points `spacing` metres apart, for depths of that
        surface in metres, any shape."""
        return torch.maximum(surface + self.tolerance_gaps * spacing, surface / (1 - self.tolerance_share))


@dataclass(frozen=True)
class ProjectedPoints:
    """M points as views see them, one view after the other. `view` and `index` `(M,)` int64: which point of the cloud
    in which view; `pixels` `(M, 2)` float32, outside the image where there is a margin; `depths` `(M,)` in metres."""

    view: Tensor
    index: Tensor
    pixels: Tensor
    depths: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def select(self, chosen: Tensor) -> ProjectedPoints:
        """Those of a boolean mask `(M,)`."""
        kept = chosen.nonzero().squeeze(1)
        return ProjectedPoints(*(getattr(self, part.name).index_select(0, kept) for part in fields(self)))

    @classmethod
    def concatenate(cls, parts: list[ProjectedPoints]) -> ProjectedPoints:
        """All points of one part or more."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat([getattr(part, name.name) for part in parts]) for name in fields(cls)))


def remove_invisible(
    xyz: Tensor,
    camera_from_map: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
    spacing: float,
    settings: VisibilitySettings = VisibilitySettings(),
) -> ProjectedPoints:
    """The points `(N, 3)` that pinhole cameras see.

    camera_from_map: `(4, 4)`, or `(B, 4, 4)` for B views of the one cloud. intrinsics: fx, fy, cx, cy in pixels, `(4,)`
    or `(B, 4)`. size: width and height in pixels. spacing: metres from point to point, such as the edge of the map's
    voxels. All float32 on one device, any.
    """
    parts = []
    for views in _Views.of(camera_from_map, intrinsics, size, settings).blocks(xyz):
        pieces = list(views.project(xyz))
        surface = views.surface(pieces, spacing, settings).reshape(-1)
        for points in pieces:
            column, row = views.cells(points)
            cell = (points.view * views.height + row) * views.width + column
            kept = points.select(points.depths <= settings.reach(surface.index_select(0, cell), spacing))
            parts.append(replace(kept, view=kept.view + views.first))
    return ProjectedPoints.concatenate(parts)


def project_inside(
    xyz: Tensor,
    camera_from_map: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
    settings: VisibilitySettings = VisibilitySettings(),
) -> ProjectedPoints:
    """The points that lie inside the images and between the nearest and farthest depth, hidden or not; arguments as for
    `remove_invisible`."""
    parts = []
    for views in _Views.of(camera_from_map, intrinsics, size, settings).blocks(xyz):
        parts += [replace(points, view=points.view + views.first) for points in views.project(xyz)]
    return ProjectedPoints.concatenate(parts)


def surface_depth(
    xyz: Tensor,
    camera_from_map: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
    spacing: float,
    settings: VisibilitySettings = VisibilitySettings(),
) -> Tensor:
    """Depth in metres `(B, H, W)` of the first surface behind each pixel, inf where there is none; B is 1 for a single
    pose. H and W are those of the image with its margins. Arguments as for `remove_invisible`."""
    parts = []
    for views in _Views.of(camera_from_map, intrinsics, size, settings).blocks(xyz):
        parts.append(views.surface(views.project(xyz), spacing, settings))
    return torch.cat(parts)


@dataclass(frozen=True)
class _Views:
    """B pinhole views of `width` x `height` pixels, margins included; the first is number `first` of all.

    sides `(B, 6, 4)` of the frustums: times a point `(x, y, z, 1)` they give numbers that are positive inside. The
    first is the column of the point times its depth, counted from the left edge of the image, the third the row times
    the depth, the fifth the depth beyond the nearest. corner: column and row of pixel (0, 0). focal `(B,)`: pixels.
    """

    sides: Tensor
    focal: Tensor
    width: int
    height: int
    corner: tuple[int, int]
    nearest: float
    first: int = 0

    @classmethod
    def of(
        cls, camera_from_map: Tensor, intrinsics: Tensor, size: tuple[int, int], settings: VisibilitySettings
    ) -> _Views:
        count = max(camera_from_map.numel() // 16, intrinsics.numel() // 4)
        camera_from_map = camera_from_map.reshape(-1, 4, 4).expand(count, 4, 4)
        corner = (round(settings.margin * size[0]), round(settings.margin * size[1]))
        width, height = size[0] + 2 * corner[0], size[1] + 2 * corner[1]
        focal_x, focal_y, centre_x, centre_y = intrinsics.reshape(-1, 4, 1).unbind(1)
        x, y, z = camera_from_map[:, :3].unbind(1)
        column = focal_x * x + (centre_x + corner[0] + 0.5) * z
        row = focal_y * y + (centre_y + corner[1] + 0.5) * z
        metre = torch.eye(4, dtype=z.dtype, device=z.device)[3]
        ahead = (z - settings.nearest * metre, settings.farthest * metre - z)
        sides = torch.stack([column, width * z - column, row, height * z - row, *ahead], 1)
        return cls(sides, focal_x[:, 0].expand(len(sides)), width, height, corner, settings.nearest)

    def blocks(self, xyz: Tensor) -> Iterator[_Views]:
        """The views, as many at a time as memory holds what is made of these points `(N, 3)`."""
        block = _CPU_BLOCK if xyz.device.type == "cpu" else _GPU_BLOCK
        count = max(1, block // max(len(xyz), self.width * self.height))
        for first in range(0, len(self.sides), count):
            some = slice(first, first + count)
            yield replace(self, sides=self.sides[some], focal=self.focal[some], first=first)

    def project(self, xyz: Tensor) -> Iterator[ProjectedPoints]:
        """The points `(N, 3)` inside the frustums, in pieces whose numbers stay in a CPU's cache and in memory that the
        process has: memory that is asked for anew costs more time than the arithmetic."""
        sides = self.sides.reshape(-1, 4)
        step = _CPU_BLOCK if xyz.device.type == "cpu" else max(1, _GPU_BLOCK // len(self.sides))
        corner = self.sides.new_tensor(self.corner) + 0.5
        for start in range(0, max(1, len(xyz)), step):
            piece = xyz[start : start + step]
            with torch.autocast(xyz.device.type, enabled=False):  # pixels need more than half precision
                values = torch.addmm(sides[:, 3:], sides[:, :3], piece.T).view(len(self.sides), 6, len(piece))
            view, index = (values.amin(1) > 0).nonzero().unbind(1)
            place = view * (6 * len(piece)) + index
            column, row, depths = (values.view(-1).index_select(0, place + side * len(piece)) for side in (0, 2, 4))
            depths += self.nearest
            pixels = torch.stack([column.div_(depths), row.div_(depths)], 1).sub_(corner)
            yield ProjectedPoints(view, index + start, pixels, depths)

    def cells(self, points: ProjectedPoints) -> tuple[Tensor, Tensor]:
        """Column and row `(M,)` int64 of each point in the widened image."""
        column = (points.pixels[:, 0] + (self.corner[0] + 0.5)).long().clamp_(0, self.width - 1)
        row = (points.pixels[:, 1] + (self.corner[1] + 0.5)).long().clamp_(0, self.height - 1)
        return column, row

    def surface(self, pieces: Iterable[ProjectedPoints], spacing: float, settings: VisibilitySettings) -> Tensor:
        """Depth `(B, H, W)` of the surface that the points make in the widened image, inf where there is none."""
        least, sizes = settings.window, [2**scale for scale in range(settings.scales)]
        shapes = [(max(-(-self.height // size), least), max(-(-self.width // size), least)) for size in sizes]
        lengths = [height * width for height, width in shapes]
        starts = torch.tensor([sum(lengths[:scale]) for scale in range(settings.scales)], device=self.focal.device)
        widths = torch.tensor([width for _, width in shapes], device=self.focal.device)
        buffer = self.focal.new_full((len(self.sides) * sum(lengths),), torch.inf)
        for points in pieces:
            gap = self.focal.index_select(0, points.view).mul_(2 * spacing / settings.window).div_(points.depths)
            scale = gap.log2_().clamp_(0, settings.scales - 1).long()
            column, row = self.cells(points)
            cell = (row >> scale).mul_(widths.index_select(0, scale)).add_(column >> scale)
            cell.add_(starts.index_select(0, scale)).add_(points.view * sum(lengths))
            buffer.scatter_reduce_(0, cell, points.depths, "amin")

        levels = buffer.view(len(self.sides), -1).split(lengths, 1)
        surface = buffer.new_full((len(self.sides), *shapes[-1]), torch.inf)
        for (height, width), level in zip(reversed(shapes), reversed(levels), strict=True):
            drawn = _closed_surface(level.unflatten(1, (height, width)), settings)
            doubled = surface[:, :, None, :, None].expand(-1, -1, 2, -1, 2).flatten(3, 4).flatten(1, 2)
            surface = torch.minimum(drawn, doubled[:, :height, :width])
        return surface[:, : self.height, : self.width]


def _closed_surface(depth: Tensor, settings: VisibilitySettings) -> Tensor:
    """From nearest depths `(B, H, W)`, inf in empty cells: min pooling over the windows inside the image, then max
    pooling over the windows that hold a cell (EP2P-Loc, equation 1), then each cell's farther end."""
    beyond = settings.window - 1
    near = _pooled(depth, settings.window, torch.minimum)
    opened = _pooled(pad(near, (beyond,) * 4, value=-torch.inf), settings.window, torch.maximum)
    beside = _pooled(pad(opened, (1,) * 4, value=-torch.inf), 3, torch.maximum)
    return torch.where(beside <= (1 + settings.slope) * opened, beside, opened)


def _pooled(grid: Tensor, window: int, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The extremes `(B, H - window + 1, W - window + 1)` of all square windows inside a grid `(B, H, W)`.

    Along each axis in pairs, then pairs of pairs: log2(window) steps over whole arrays, on a CPU some 70 times as fast
    as torch's own max pooling.
    """
    for axis in (2, 1):
        covered, length = 1, grid.shape[axis]
        while covered < window:
            step = min(covered, window - covered)
            length -= step
            grid = extreme(grid.narrow(axis, 0, length), grid.narrow(axis, step, length))
            covered += step
    return grid
