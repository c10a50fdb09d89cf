"""Painted boxes: the colour of a surface tells where it is, so that a map point can be compared with what an image
shows at the pixel where the point is projected to."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.spatial.transform import Rotation

from ep2ploc_core.datasets.queries import Queries
from ep2ploc_core.map.point_map import PointMap

FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # world_from_camera of a level camera that looks along +x


def level_pose(place: tuple[float, float, float], yaw: float, pitch: float = 0.0) -> np.ndarray:
    """world_from_camera of a camera at `place` that looks `yaw` degrees to the left of +x and `pitch` down."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("ZY", [yaw, pitch], degrees=True).as_matrix() @ FORWARD
    pose[:3, 3] = place
    return pose


@dataclass
class PaintedWorld:
    """Rooms `(2, 3)` seen from within and cases `(2, 3)` seen from outside. Colours are the position from `low` on,
    `span` metres in each direction being the whole range, after which they begin anew."""

    rooms: list[np.ndarray]
    cases: list[np.ndarray] = field(default_factory=list)
    low: np.ndarray = field(default_factory=lambda: np.zeros(3))
    span: float = 10.0

    def distance(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """Along rays `(..., 3)`, in lengths of each, to the first surface."""
        rays = np.where(rays == 0, 1e-12, rays)
        room = next(room for room in self.rooms if ((origin > room[0]) & (origin < room[1])).all())
        nearest = np.stack([(side - origin) / rays for side in room]).max(0).min(-1)
        for case in self.cases:
            sides = np.sort(np.stack([(side - origin) / rays for side in case]), 0)
            enters, leaves = sides[0].max(-1), sides[1].min(-1)
            nearest = np.where((enters > 0) & (enters < leaves), np.minimum(enters, nearest), nearest)
        return nearest

    def paint(self, points: np.ndarray) -> np.ndarray:
        """Colours `(..., 3)` uint8, RGB."""
        return np.round((points - self.low) / self.span % 1 * 255).astype(np.uint8)

    def render(self, k: np.ndarray, size: tuple[int, int], pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image `(H, W, 3)` and depth along the axis `(H, W)` of a camera; K counts from the first pixel's centre."""
        v, u = np.mgrid[0 : size[1], 0 : size[0]]
        rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], -1) @ pose[:3, :3].T
        depth = self.distance(pose[:3, 3], rays)
        return self.paint(pose[:3, 3] + rays * depth[..., None]), depth

    def surface(self, room: np.ndarray, step: float) -> np.ndarray:
        """Points `(N, 3)` on a room's walls and on the sides of the cases in it, `step` metres apart."""
        cases = [case for case in self.cases if (case[0] >= room[0]).all() and (case[1] <= room[1]).all()]
        points = []
        for box in [room, *cases]:
            for axis in range(3):
                others = [other for other in range(3) if other != axis]
                grid = np.meshgrid(*(np.arange(box[0][other], box[1][other], step) for other in others))
                for side in box:
                    face = np.empty((grid[0].size, 3))
                    face[:, axis] = side[axis]
                    face[:, others[0]], face[:, others[1]] = grid[0].ravel(), grid[1].ravel()
                    points.append(face)
        return np.concatenate(points)

    def misses(self, point_map: PointMap, queries: Queries, farthest: float) -> list[np.ndarray]:
        """For each query, how far the map points that it sees, up to `farthest` metres deep, lie from what the image
        shows at the pixel that they are projected to."""
        assert queries.map_from_camera is not None
        points = point_map.all_points().xyz + point_map.origin
        found = []
        for number, pose in enumerate(queries.map_from_camera):
            image, local = queries.image(number), np.linalg.inv(pose)
            camera_points = points @ local[:3, :3].T + local[:3, 3]
            near = (camera_points[:, 2] > 0.3) & (camera_points[:, 2] < farthest)
            u, v = np.round(np.nan_to_num(queries.camera.project(camera_points), nan=-1)).astype(int).T
            inside = near & (u >= 0) & (v >= 0) & (u < image.shape[1]) & (v < image.shape[0])
            inside &= self.distance(pose[:3, 3], points - pose[:3, 3]) > 0.97  # nothing stands before the point
            painted = image[v[inside], u[inside]] / 255 * self.span
            off = np.abs(painted - (points[inside] - self.low) % self.span)
            found.append(np.linalg.norm(np.minimum(off, self.span - off), axis=1))
        return found
