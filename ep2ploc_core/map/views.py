"""Virtual views of a map: where a camera may be when nothing is known of its pose, and what it would see there.

A view is a place beside the mapping sensor's path, and a direction. Cameras between the views are reached from the
nearest one, as from any first guess that is wrong by up to two metres and ten degrees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.sampling import spread_over_image
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_core.map.unit import MapInUnits, points_in_units, scaled_pose, unit_of
from ep2ploc_core.visibility import ProjectedPoints, remove_invisible

# Lengths in units of `map.unit`: metres where the map's voxels are of 0.2 m.
SPACING = 2.0  # between views
DIRECTIONS = 18  # around each place, 20 degrees apart
EYE_HEIGHT = 1.6  # metres above the ground, where no path is known
RADIUS = 60.0
_GAP = 100.0  # between two scans beyond which the map shows too little of the way between them
_GROUND = 0.3  # above the ground that still is ground
# What a view takes in; cameras differ, so it is a middling one.
_CAMERA = Camera.from_matrix(512, 256, np.array([[320.0, 0, 255.5], [0, 320.0, 127.5], [0, 0, 1]]))
_POINTS = 256
_CELL = 16  # pixels
ROWS, COLUMNS = _CAMERA.height // _CELL, _CAMERA.width // _CELL
CELLS = ROWS * COLUMNS


@dataclass
class ViewedPoints:
    """The descriptors `(V, N, D)` int8 (times 127) of the points that each of V views shows, evenly over its image,
    which of them are no padding, `valid` `(V, N)` bool, and the view's `log_depth` `(V, CELLS)`, the mean of the points
    in each cell of its image (row by row), NaN where there are none."""

    descriptors: Tensor
    valid: Tensor
    log_depth: Tensor


def choose_views(point_map: PointMap) -> np.ndarray:
    """Poses map_from_camera `(V, 4, 4)` in metres of views all over a map: every SPACING along the path of its sensor,
    all around, level. Where the path is not known, every SPACING on the ground, at EYE_HEIGHT. Where the sensor was a
    camera (depth images), the views are its own."""
    unit = unit_of(point_map.voxel_size)
    path = scaled_pose(point_map.sensor_path(), 1 / unit)
    if point_map.info.source.get("kind") == "rgbd" and len(path):
        return scaled_pose(path[apart(path, SPACING / 4, np.pi / DIRECTIONS)], unit)
    places = _along(path[:, :3, 3]) if len(path) else _eyes_over_ground(point_map)
    return scaled_pose(_all_around(places[_thinned(places)], np.asarray(point_map.info.up)), unit)


def look(point_map: PointMap, map_from_camera: np.ndarray, width: int, device: torch.device) -> Iterator[ViewedPoints]:
    """What is seen from views `(V, 4, 4)` in metres, those of one place after the other together. width: of the map's
    descriptors."""
    intrinsics, size = _CAMERA.intrinsics_tensor().to(device), (_CAMERA.width, _CAMERA.height)
    units = MapInUnits(point_map)
    views = scaled_pose(map_from_camera, 1 / units.unit)
    for group in _by_place(views):
        place = views[group[0], :3, 3]
        points = units.query(place, RADIUS)
        if points.descriptors is None:  # no points at all around this place
            yield ViewedPoints(
                torch.zeros(len(group), _POINTS, width, dtype=torch.int8, device=device),
                torch.zeros(len(group), _POINTS, dtype=torch.bool, device=device),
                torch.full((len(group), CELLS), torch.nan, device=device),
            )
            continue
        centre = np.round(place)
        xyz = torch.from_numpy((points.xyz + (units.origin - centre)).astype(np.float32)).to(device)
        poses = views[group].copy()
        poses[:, :3, 3] -= centre
        camera_from_map = torch.from_numpy(np.linalg.inv(poses)).float().to(device)
        visible = remove_invisible(xyz, camera_from_map, intrinsics, size, units.voxel_size)
        descriptors = torch.from_numpy(np.ascontiguousarray(points.descriptors[:, :width])).to(device)
        seen = descriptors.new_zeros(len(group), _POINTS, descriptors.shape[1])
        valid = torch.zeros(len(group), _POINTS, dtype=torch.bool, device=device)
        for view in range(len(group)):
            of_view = (visible.view == view).nonzero().squeeze(1)
            pixels = visible.pixels[of_view]
            order = (pixels - pixels.round()).abs().sum(1)  # any fixed order would do
            chosen = visible.index[of_view[spread_over_image(pixels, order, _POINTS, cell=16)]]
            seen[view, : len(chosen)] = descriptors[chosen]
            valid[view, : len(chosen)] = True
        yield ViewedPoints(seen, valid, _log_depth(visible, len(group)))


def _log_depth(visible: ProjectedPoints, views: int) -> Tensor:
    """See ViewedPoints."""
    column, row = (visible.pixels / _CELL).long().unbind(1)
    cell = visible.view * CELLS + row.clamp(0, ROWS - 1) * COLUMNS + column.clamp(0, COLUMNS - 1)
    log_depth = visible.depths.log()
    total = log_depth.new_zeros(views * CELLS).index_add(0, cell, log_depth)
    count = log_depth.new_zeros(views * CELLS).index_add(0, cell, torch.ones_like(log_depth))
    return (total / count).view(views, CELLS)  # NaN where there are none


def sample_at_cells(image: Tensor, intrinsics: Tensor, stride: int) -> Tensor:
    """What an image `(H, W)`, one value per `stride` pixels, tells at the rays of a view's cells: `(CELLS,)`, NaN
    beyond its edges. intrinsics `(4,)` in pixels."""
    of_views = _CAMERA.intrinsics_tensor().to(image)
    row, column = torch.meshgrid(torch.arange(ROWS).to(image), torch.arange(COLUMNS).to(image), indexing="ij")
    middle = (torch.stack([column, row], -1) + 0.5) * _CELL - 0.5
    pixels = (middle - of_views[2:]) / of_views[:2] * intrinsics[:2] + intrinsics[2:]
    size = torch.tensor(image.shape[::-1]).to(image) * stride
    place = (pixels + 0.5) / size * 2 - 1
    values = grid_sample(image[None, None], place[None], align_corners=False, padding_mode="border")[0, 0]
    return values.where((place.abs() <= 1).all(-1), torch.nan).flatten()


def _along(places: np.ndarray) -> np.ndarray:
    """Points `(M, 3)` a quarter of SPACING apart or less on the way through places `(N, 3)`; scans may be far apart, or
    held out."""
    parts = [places[:1]]
    for start, end in pairwise(places):
        length = float(np.linalg.norm(end - start))
        steps = int(np.ceil(length / (SPACING / 4))) if length < _GAP else 1
        parts.append(start + np.linspace(0, 1, steps + 1)[1:, None] * (end - start))
    return np.concatenate(parts)


def _thinned(places: np.ndarray) -> list[int]:
    """Indices of places `(N, 3)`, in their order, each SPACING or more from all chosen before it."""
    chosen: list[int] = []
    cells: dict[tuple[int, int], list[int]] = {}
    for index, place in enumerate(places):
        x, y = np.floor(place[:2] / SPACING).astype(int)
        near = [other for dx in (-1, 0, 1) for dy in (-1, 0, 1) for other in cells.get((x + dx, y + dy), [])]
        if not near or np.linalg.norm(places[near] - place, axis=1).min() >= SPACING - 1e-6:
            chosen.append(index)
            cells.setdefault((x, y), []).append(index)
    return chosen


def _all_around(places: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Level views `(P * DIRECTIONS, 4, 4)` from places `(P, 3)`."""
    east = np.linalg.svd(up[None])[2][1] if abs(up[2]) < 0.999 else np.array([1.0, 0, 0])
    east = east - up * (up @ east)
    east /= np.linalg.norm(east)
    north = np.cross(up, east)
    angles = np.arange(DIRECTIONS) * (2 * np.pi / DIRECTIONS)
    forward = np.cos(angles)[:, None] * east + np.sin(angles)[:, None] * north
    right = np.cross(forward, up)
    views = np.tile(np.eye(4), (len(places), DIRECTIONS, 1, 1))
    views[..., :3, 0], views[..., :3, 1], views[..., :3, 2] = right, -up, forward
    views[..., :3, 3] = places[:, None]
    return views.reshape(-1, 4, 4)


def apart(poses: np.ndarray, distance: float, radians: float) -> np.ndarray:
    """Indices of those of poses `(N, 4, 4)` that lie farther or are turned more than that from all chosen before."""
    chosen: list[int] = []
    for number, pose in enumerate(poses):
        others = poses[chosen]
        moved = np.linalg.norm(others[:, :3, 3] - pose[:3, 3], axis=1)
        cosine = (np.einsum("nij,ij->n", others[:, :3, :3], pose[:3, :3]) - 1) / 2
        if ((moved > distance) | (cosine < np.cos(radians))).all():
            chosen.append(number)
    return np.array(chosen, np.int64)


def _eyes_over_ground(point_map: PointMap) -> np.ndarray:
    """Places `(P, 3)` in units at EYE_HEIGHT above one ground point of each cell of SPACING."""
    up, unit = np.asarray(point_map.info.up), unit_of(point_map.voxel_size)
    places = []
    for name in point_map.info.tiles:
        points = points_in_units(point_map.unpack(name), unit)
        flat = (np.abs(points.attributes[:, 5]) < _GROUND) & (points.attributes[:, 1:4] @ up > 0.8)
        ground = points.xyz[flat]
        _, first = np.unique(np.floor(ground[:, :2] / SPACING), axis=0, return_index=True)
        places.append(ground[first] + EYE_HEIGHT / unit * up + point_map.origin / unit)
    return np.concatenate(places) if places else np.zeros((0, 3))


def _by_place(views: np.ndarray) -> list[np.ndarray]:
    """Indices of views in runs that are at one place, at most DIRECTIONS of them."""
    if not len(views):
        return []
    moved = np.any(np.diff(views[:, :3, 3], axis=0) != 0, axis=1)
    return np.split(np.arange(len(views)), np.flatnonzero(moved) + 1)
