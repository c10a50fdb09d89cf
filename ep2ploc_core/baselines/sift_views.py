"""The mapping run's images as SIFT features with a place in the map: the index of the classical way to localize."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial import Delaunay, QhullError

from ep2ploc_core.baselines.grey_image import grey_image
from ep2ploc_core.baselines.sift_features import Features, detect
from ep2ploc_core.baselines.visible_points import VisiblePoints, visible_points
from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.kitti import read_image
from ep2ploc_core.datasets.posed_image import PosedImage
from ep2ploc_core.map.point_map import MapSource
from ep2ploc_core.map.unit import MapInUnits, scaled_pose

MOST_FEATURES = 4000  # of an image
STEEPEST = 1.15  # depths of the three points around a feature may be so many times as large as each other
FARTHEST_CORNER = 3.0  # spacings of the map that a feature may lie from each of them


@dataclass(frozen=True)
class SiftView:
    """One mapping image: its pose map_from_camera `(4, 4)`, descriptors `(K, 128)` of its features, the strongest
    first, and their places xyz `(K, 3)` float64, map coordinates; lengths in units of `map.unit`."""

    map_from_camera: np.ndarray
    descriptors: np.ndarray
    xyz: np.ndarray


def index_images(
    point_map: MapSource,
    images: list[PosedImage],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[SiftView]:
    """A view for each image. Features without a place, in the sky or at an edge of what is near, are left out."""
    units, views = MapInUnits(point_map), []
    for number, image in enumerate(images):
        grey, camera = grey_image(read_image(image.path), image.camera)
        pose = scaled_pose(image.map_from_camera, 1 / units.unit)
        features = detect(grey, MOST_FEATURES)
        xyz = places_of(features, visible_points(units, pose, camera), camera, units.voxel_size)
        known = np.isfinite(xyz).all(1)
        views.append(SiftView(pose, features.descriptors[known], xyz[known]))
        progress(number + 1, len(images))
    return views


def places_of(features: Features, seen: VisiblePoints, camera: Camera, spacing: float) -> np.ndarray:
    """Where in the map features lie, `(K, 3)` float64; NaN where that is not known.

    Between the three visible map points around a feature in the image inverse depth is interpolated, which is exact on
    a plane. Where the three are not neighbours on one surface nothing is known.
    """
    xyz = np.full((len(features), 3), np.nan)
    try:
        mesh = Delaunay(seen.pixels.astype(np.float64))
    except (QhullError, ValueError):  # fewer than three points, or all in a row
        return xyz
    triangle = mesh.find_simplex(features.pixels)
    corners = mesh.simplices[triangle]
    # Barycentric coordinates by the affine map that `Delaunay` keeps for each triangle.
    affine = mesh.transform[triangle]
    first = np.einsum("kij,kj->ki", affine[:, :2], features.pixels - affine[:, 2])
    weights = np.c_[first, 1 - first.sum(1)]
    depths = seen.depths[corners].astype(np.float64)
    depth = 1 / (weights / depths).sum(1)
    away = np.linalg.norm(seen.pixels[corners] - features.pixels[:, None], axis=2).max(1)
    known = (triangle >= 0) & (depths.max(1) < STEEPEST * depths.min(1))
    known &= away < FARTHEST_CORNER * spacing * camera.fx / depth
    rays = np.c_[(features.pixels - camera.intrinsics[2:]) / camera.intrinsics[:2], np.ones(len(features))]
    rotation, centre = seen.map_from_camera[:3, :3], seen.map_from_camera[:3, 3]
    xyz[known] = (rays[known] * depth[known, None]) @ rotation.T + centre
    return xyz
