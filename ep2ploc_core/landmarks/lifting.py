"""Landmarks of a map: features of the mapping run's images, lifted to the places in the map that they show."""

from __future__ import annotations

import numpy as np
from matplotlib.tri import Triangulation
from scipy.spatial import Delaunay, QhullError

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.posed_image import PosedImage
from ep2ploc_core.landmarks.features import Features, detect
from ep2ploc_core.landmarks.landmark_view import LandmarkView
from ep2ploc_core.landmarks.sighting import seen_by_landmarks
from ep2ploc_core.map.point_map import MapSource
from ep2ploc_core.map.unit import MapInUnits, scaled_pose
from ep2ploc_core.map.visible_points import VisiblePoints, visible_points

MOST_FEATURES = 4000  # of an image
SMALLEST_AREA = 1e-6  # square pixels, twice that of a triangle: thinner ones tell nothing
STEEPEST = 1.15  # depths of the three points around a feature may be so many times as large as each other
FARTHEST_CORNER = 3.0  # spacings of the map that a feature may lie from each of them


def lift_features(point_map: MapSource, image: PosedImage) -> LandmarkView:
    """The features of a mapping image that have a place, in metres relative to the map's origin. Those without, in the
    sky or at an edge of what is near, are left out. Raises InputError when the image cannot be read."""
    units = MapInUnits(point_map)
    grey, camera = seen_by_landmarks(image.read(), image.camera)
    pose = scaled_pose(image.map_from_camera, 1 / units.unit)
    features = detect(grey, MOST_FEATURES)
    xyz = places_of(features, visible_points(units, pose, camera), camera, units.voxel_size)
    known = np.isfinite(xyz).all(1)
    local = (xyz[known] - units.origin) * units.unit
    return LandmarkView(image.map_from_camera, features.descriptors[known], local.astype(np.float32))


def places_of(features: Features, seen: VisiblePoints, camera: Camera, spacing: float) -> np.ndarray:
    """Where in the map features lie, `(K, 3)` float64 in units; NaN where that is not known.

    Between the three visible map points around a feature in the image inverse depth is interpolated, which is exact on
    a plane. Where the three are not neighbours on one surface nothing is known.
    """
    xyz = np.full((len(features), 3), np.nan)
    pixels, asked = seen.pixels.astype(np.float64), features.pixels.astype(np.float64)
    try:
        mesh = Delaunay(pixels).simplices
    except (QhullError, ValueError):  # fewer than three points, or all in a row
        return xyz
    mesh = mesh[np.abs(_twice_area(*pixels[mesh.T])) > SMALLEST_AREA]
    if not len(mesh):
        return xyz
    # Not `Delaunay.find_simplex`: it solves a system of two equations per triangle by LAPACK, whose threads wait for
    # each other on a busy machine many times as long as all else takes.
    find = Triangulation(pixels[:, 0], pixels[:, 1], mesh).get_trifinder()
    triangle = np.asarray(find(asked[:, 0], asked[:, 1]), np.int64)
    corners = mesh[triangle]
    first, second, third = pixels[corners.T]
    weights = np.stack([_twice_area(asked, second, third), _twice_area(first, asked, third)], 1)
    weights /= _twice_area(first, second, third)[:, None]
    weights = np.c_[weights, 1 - weights.sum(1)]
    depths = seen.depths[corners].astype(np.float64)
    depth = 1 / (weights / depths).sum(1)
    away = np.linalg.norm(pixels[corners] - asked[:, None], axis=2).max(1)
    known = (triangle >= 0) & (depths.max(1) < STEEPEST * depths.min(1))
    known &= away < FARTHEST_CORNER * spacing * camera.fx / depth
    rays = np.c_[(features.pixels - camera.intrinsics[2:]) / camera.intrinsics[:2], np.ones(len(features))]
    rotation, centre = seen.map_from_camera[:3, :3], seen.map_from_camera[:3, 3]
    xyz[known] = (rays[known] * depth[known, None]) @ rotation.T + centre
    return xyz


def _twice_area(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> np.ndarray:
    """Of triangles with these corners `(K, 2)`, with a sign."""
    one, other = second - first, third - first
    area: np.ndarray = one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]
    return area
