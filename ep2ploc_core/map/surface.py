"""The shape of the surface around each point of a map: normal, planarity, height above the ground."""

from __future__ import annotations

import numpy as np
import open3d as o3d

GROUND_CELL = 2.0  # metres
_GROUND_SHARE = 0.1  # of a cell's points: those below are not trusted, since wet roads and windows mirror the world
_GROUND_POINTS = 10  # that a cell must have to tell its neighbours where the ground is


def surface_shape(xyz: np.ndarray, viewpoint: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals `(N, 3)`, turned towards the viewpoints `(N, 3)`, and planarity `(N,)` (0 line or blob, 1 plane).

    Both from the covariance of up to 20 neighbours within `radius` metres; a lone point gets the direction to its
    viewpoint and planarity 0.
    """
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(xyz))
    cloud.estimate_covariances(o3d.geometry.KDTreeSearchParamHybrid(radius=radius, max_nn=20))
    values, vectors = np.linalg.eigh(np.asarray(cloud.covariances))
    root = np.sqrt(values.clip(0))
    planarity = (root[:, 1] - root[:, 0]) / np.maximum(root[:, 2], 1e-9)
    towards = viewpoint - xyz
    towards /= np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-9)
    lone = (values[:, 2] <= 0) | (np.abs(values[:, 2] - values[:, 0]) < 1e-12)  # open3d gives the identity there
    normals = np.where(lone[:, None], towards, vectors[:, :, 0])
    normals *= np.where((normals * towards).sum(1, keepdims=True) < 0, -1.0, 1.0)
    return normals, np.where(lone, 0.0, planarity.clip(0, 1))


def height_above_ground(xyz: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Metres `(N,)` along the unit vector `up` `(3,)` above the ground: the lowest tenth of the points in the same cell
    of GROUND_CELL metres, or in one of the eight beside it where that is lower."""
    level = np.linalg.svd(up[None])[2][1:] if abs(up[2]) < 1 else np.eye(3)[:2]  # two directions across it
    height = xyz @ up
    index = np.floor(xyz @ level.T / GROUND_CELL).astype(np.int64)
    index -= index.min(0) - 1
    columns, rows = index.max(0) + 2
    cell = index[:, 0] * rows + index[:, 1]
    order = np.lexsort((height, cell))
    count = np.bincount(cell, minlength=columns * rows)
    occupied = np.flatnonzero(count)
    start = np.cumsum(count) - count
    own = np.full(columns * rows, np.inf)
    own[occupied] = height[order[start[occupied] + (_GROUND_SHARE * count[occupied]).astype(np.int64)]]
    ground = own.copy()
    trusted = np.where(count < _GROUND_POINTS, np.inf, own)
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            shifted = occupied + dx * rows + dy
            ground[occupied] = np.minimum(ground[occupied], trusted[shifted])
    return height - ground[cell]
