"""Ghosts: what moved while the map was made leaves points where nothing is any more. Later scans saw through them.

Each scan is kept as a small image of ranges around the sensor. A place of the map that some of these images look
through, to something well behind it, and that fewer of them agree with, is a ghost.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_COLUMNS = 720  # around the full circle
_CELL = 2 * np.pi / _COLUMNS
_EMPTY = np.iinfo(np.uint16).max
_CENTIMETRE = 0.01


@dataclass(frozen=True)
class GhostSettings:
    """`reach`: how far from a sensor, in metres, its scan is believed to have seen through a place; `looks`: at the
    most so many scans are asked about a tile; a place is a ghost when at least `through_least` of them saw through it,
    and more than `through_ratio` times as many as saw something there. "Well behind" is the larger of three voxels
    and `margin_share` of the range."""

    reach: float = 30.0
    looks: int = 32
    through_least: int = 2
    through_ratio: float = 2.0
    margin_share: float = 0.03


@dataclass
class RangeImage:
    """What a scan saw: the nearest range in cells of half a degree, `(rows, 720)` uint16 centimetres, row 0 at
    elevation `first_row` cells; columns by azimuth from -pi. Cells without a point are empty. `lidar_from_map`
    `(4, 4)`: relative to the map's origin."""

    ranges: np.ndarray
    first_row: int
    lidar_from_map: np.ndarray

    @classmethod
    def of_scan(cls, points: np.ndarray, lidar_from_map: np.ndarray) -> RangeImage:
        """From points `(N, 3+)` in the sensor's frame. Where most lie along its z axis, as of a depth camera, the image
        is turned so that they lie around the equator: cells at the poles are no squares."""
        x, y, z = np.abs(points[:, :3].sum(0))
        if z > max(x, y) and z > 0.5 * np.linalg.norm(points[:, :3], axis=1).sum():
            points = points[:, [2, 0, 1]]
            lidar_from_map = lidar_from_map[[2, 0, 1, 3]]
        row, column, distance = _spherical(points[:, :3])
        if not len(row):
            return cls(np.zeros((0, _COLUMNS), np.uint16), 0, lidar_from_map)
        first = int(row.min())
        ranges = np.full((int(row.max()) - first + 1, _COLUMNS), _EMPTY, np.uint16)
        centimetres = np.minimum(distance / _CENTIMETRE, _EMPTY - 1).astype(np.uint16)
        np.minimum.at(ranges, (row - first, column), centimetres)
        return cls(ranges, first, lidar_from_map)


class GhostDetector:
    """Counts how many scans saw through each place, and how many saw something there."""

    def __init__(self, voxel_size: float, settings: GhostSettings = GhostSettings()) -> None:
        self.margin = 3 * voxel_size
        self.settings = settings

    def choose(self, places: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Which of the scans taken at `places` `(S, 3)` to ask about the box from `low` to `high` `(2,)`: indices,
        spread evenly over those within reach."""
        outside = np.maximum(np.maximum(low - places[:, :2], places[:, :2] - high), 0)
        near = np.flatnonzero((outside**2).sum(1) < self.settings.reach**2)
        if len(near) <= self.settings.looks:
            return near
        return near[np.linspace(0, len(near) - 1, self.settings.looks).round().astype(np.int64)]

    def ghosts(self, xyz: np.ndarray, images: list[RangeImage]) -> np.ndarray:
        """Which places `(N, 3)`, relative to the map's origin, are ghosts: `(N,)` bool."""
        through, hit = np.zeros(len(xyz), np.int32), np.zeros(len(xyz), np.int32)
        for image in images:
            seen_through, seen = self._look(xyz, image)
            through += seen_through
            hit += seen
        return (through >= self.settings.through_least) & (through > self.settings.through_ratio * hit)

    def _look(self, xyz: np.ndarray, image: RangeImage) -> tuple[np.ndarray, np.ndarray]:
        """Whether a scan saw through each place, and whether it saw something there."""
        through, hit = np.zeros(len(xyz), bool), np.zeros(len(xyz), bool)
        if not len(image.ranges):
            return through, hit
        rotation, shift = image.lidar_from_map[:3, :3], image.lidar_from_map[:3, 3]
        offset = xyz + rotation.T @ shift  # from the sensor, map axes
        near = np.flatnonzero((offset**2).sum(1) < self.settings.reach**2)
        row, column, distance = _spherical((offset[near] @ rotation.T).astype(np.float32))
        row -= image.first_row
        inside = (row >= 0) & (row < len(image.ranges))
        near, row, column, distance = near[inside], row[inside], column[inside], distance[inside]
        centre = image.ranges[row, column]
        # A neighbouring cell that saw something at this range or nearer leaves it open whether the ray passed by.
        around = _nearest_around(image.ranges)[row, column] * _CENTIMETRE
        margin = np.maximum(self.margin, self.settings.margin_share * distance)
        through[near] = (around > distance + margin) & (centre != _EMPTY)
        hit[near] = np.abs(np.where(centre == _EMPTY, around, centre * _CENTIMETRE) - distance) <= margin
        return through, hit


def _spherical(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row (elevation) and column (azimuth) of the cell of each point `(N, 3)`, and its range in metres."""
    x, y, z = points.T
    level = np.hypot(x, y)
    row = np.floor(np.arctan2(z, level) / _CELL).astype(np.int32)
    column = np.minimum(((np.arctan2(y, x) + np.pi) / _CELL).astype(np.int32), _COLUMNS - 1)
    return row, column, np.hypot(level, z)


def _nearest_around(ranges: np.ndarray) -> np.ndarray:
    """The least of each cell and the eight around it, around the full circle."""
    wrapped = np.concatenate([ranges[:, -1:], ranges, ranges[:, :1]], axis=1)
    least: np.ndarray = cv2.erode(wrapped, np.ones((3, 3), np.uint8))[:, 1:-1]
    return least
