"""The map drawn over an image from a pose: whether the pose, or the calibration, is right can be seen at once."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import torch

from ep2ploc_core.camera import Camera
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.point_map import MapPoints
from ep2ploc_core.visibility import ProjectedPoints, VisibilitySettings, project_inside, remove_invisible, surface_depth

REMOVED = (150, 70, 150)  # a colour that no depth has
SETTINGS = VisibilitySettings()
_ENDS = (10, 300)  # spacings of the points at the ends of the colours: 2 and 60 m where points are 0.2 m apart
_LEGEND = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)  # metres
# From red to blue, without the very ends of the colour map, which are too dark to be seen.
_COLORS = cv2.applyColorMap(np.arange(240, 19, -1, dtype=np.uint8)[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1]
_EDGE_STEP = 0.2  # a point is at an edge where the surface beside it is deeper by this share


def draw_overlay(
    image: np.ndarray,
    camera: Camera,
    points: MapPoints,
    origin: np.ndarray,
    map_from_camera: np.ndarray,
    spacing: float,
    removed: bool = False,
) -> np.ndarray:
    """The visible map points over the undistorted, darkened image `(H, W, 3)` uint8 RGB, coloured by depth.

    Where a thing stands out before what is behind it its points are larger: these edges must lie on those of the image.
    points: relative to origin `(3,)`. map_from_camera: `(4, 4)`. spacing: of the points, metres. removed: also marks,
    under the others, the points that IPR took for hidden. Raises InputError when no point lies inside the image.
    """
    flat, pinhole = camera.undistort(image)
    view = (*_local(points, origin, map_from_camera), pinhole.intrinsics_tensor(), (camera.width, camera.height))
    inside = project_inside(*view, SETTINGS)
    if not len(inside):
        place = ", ".join(f"{value:.1f}" for value in map_from_camera[:3, 3])
        raise InputError(
            f"No point of the map lies in front of a camera at {place} within {SETTINGS.farthest:g} m; check that the "
            "pose is map_from_camera, z of the camera pointing forward, and belongs to this map."
        )
    visible = remove_invisible(*view, spacing, SETTINGS)
    grey = flat.mean(2, keepdims=True)
    out = np.ascontiguousarray((0.3 * flat + 0.4 * grey).astype(np.uint8))
    # Marks of one pixel at a width of 640, of three at 1242, and larger where there are few.
    sparse = camera.width * camera.height > 36 * len(visible)
    radius = round(camera.width / 1300) + int(sparse)
    if removed:
        hidden = inside.select(~torch.isin(inside.index, visible.index))
        _paint(out, hidden, np.tile(np.array(REMOVED, np.uint8), (len(hidden), 1)), max(0, radius - 1))
    edges = _at_edges(visible, surface_depth(*view, spacing, SETTINGS)[0].numpy(), spacing)
    for chosen, size in ((~edges, radius), (edges, radius + 1)):
        some = visible.select(torch.from_numpy(chosen))
        _paint(out, some, depth_colors(some.depths.numpy(), spacing), size)
    _draw_legend(out, spacing)
    return out


def depth_colors(depths: np.ndarray, spacing: float) -> np.ndarray:
    """Colours `(N, 3)` uint8 RGB of depths `(N,)` in metres, from red over yellow and green to blue, like steps for
    like ratios: 10 to 300 times the `spacing` of the points, in metres."""
    first, last = np.log(np.array(_ENDS) * spacing)
    share = (np.log(depths) - first) / (last - first)
    colors: np.ndarray = _COLORS[np.round(share.clip(0, 1) * (len(_COLORS) - 1)).astype(int)]
    return colors


def write_image(image: np.ndarray, path: Path) -> None:
    """Writes an RGB image `(H, W, 3)` uint8 aside and renames it; OSError when the place cannot be written."""
    path = Path(path)
    try:
        _, content = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise InputError(f"The picture {path} cannot be written; give a name that ends in .png or .jpg.") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_bytes(content.tobytes())
    os.replace(aside, path)


def _local(points: MapPoints, origin: np.ndarray, map_from_camera: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Points relative to the camera's place, map axes, and the rotation that is left, as `(4, 4)`: in single precision
    also where the map lies a thousand kilometres from its origin."""
    xyz = (points.xyz + (origin - map_from_camera[:3, 3])).astype(np.float32)
    camera_from_local = np.eye(4, dtype=np.float32)
    camera_from_local[:3, :3] = map_from_camera[:3, :3].T
    return torch.from_numpy(xyz), torch.from_numpy(camera_from_local)


def _at_edges(points: ProjectedPoints, surface: np.ndarray, spacing: float) -> np.ndarray:
    """Which points `(M,)` have, within three pixels, a surface `(H, W)` that is well behind them."""
    column, row = points.pixels.round().long().numpy().T
    deepest = cv2.dilate(np.where(np.isfinite(surface), surface, 0), np.ones((7, 7), np.uint8))
    row, column = row.clip(0, surface.shape[0] - 1), column.clip(0, surface.shape[1] - 1)
    at_edge: np.ndarray = deepest[row, column] > (1 + _EDGE_STEP) * points.depths.numpy() + 2 * spacing
    return at_edge


def _paint(out: np.ndarray, points: ProjectedPoints, colors: np.ndarray, radius: int) -> None:
    """Squares of 2 x radius + 1 pixels in `colors` `(M, 3)`, the nearer over the farther ones."""
    height, width = out.shape[:2]
    order = np.argsort(-points.depths.numpy(), kind="stable")
    column, row = points.pixels.numpy()[order].round().astype(np.int64).T
    steps = np.arange(-radius, radius + 1)
    rows = (row[:, None, None] + steps[:, None]).clip(0, height - 1)
    columns = (column[:, None, None] + steps).clip(0, width - 1)
    # Of indices given twice the last one counts.
    out.reshape(-1, 3)[(rows * width + columns).ravel()] = np.repeat(colors[order], len(steps) ** 2, axis=0)


def _draw_legend(out: np.ndarray, spacing: float) -> None:
    """A bar of the colours with depths in metres below it, in the upper left corner."""
    height, width = out.shape[:2]
    unit = max(6, round(min(width / 60, height / 24)))  # of the letters' height
    bar, left = 18 * unit, unit
    if bar + 4 * unit > width or 5 * unit > height:
        return  # an image too small for it
    depths = np.geomspace(_ENDS[0] * spacing, _ENDS[1] * spacing, bar)
    out[: 3 * unit + unit // 2, : bar + 4 * unit] //= 3
    out[unit // 2 : unit // 2 + unit, left : left + bar] = depth_colors(depths, spacing)
    shown = [metres for metres in _LEGEND if depths[0] * 0.99 <= metres <= depths[-1]]
    for metres in shown:
        x = left + int(np.searchsorted(depths, metres))
        text = f"{metres:g} m" if metres == shown[-1] else f"{metres:g}"
        cv2.putText(out, text, (x, 3 * unit), cv2.FONT_HERSHEY_SIMPLEX, unit / 22, (255, 255, 255), 1, cv2.LINE_AA)
