"""Which way rooms of S3DIS's "aligned version" have to be turned back, by the depth images taken in them.

In that version every room was turned about its middle until its entrance faces one way, by a multiple of a right
angle; 2D-3D-S, and the version that is not called aligned, have the rooms as they lie in the building. The turns are
told by files that come with the latter only. A room's turn is one of four for all that is seen in it: it says nothing
of any single image.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from ep2ploc_core.datasets.stanford2d3ds import turned
from ep2ploc_core.datasets.stanford_cameras import StanfordImage, depth_points
from ep2ploc_core.datasets.stanford_points import count_pieces, read_piece

NEAR = 0.1  # metres between what a depth image sees and the nearest point
LEAST_SHARE = 0.6  # of what the depth images of a room see, near its points
LEAST_LEAD = 0.02  # of the best turn's share before the next one's
_POINTS = 200_000  # of a room
_IMAGES = 16  # of a room
_ANGLES = (0.0, 90.0, 180.0, 270.0)


def find_turns(
    rooms: dict[str, Path], images: list[StanfordImage], progress: Callable[[int, int], None]
) -> dict[str, list[float]]:
    """The turn (degrees, x, y; see StanfordSource) of each room whose turn the depth images tell; rooms of which they
    do not are missing."""
    turns = {}
    for done, (room, file) in enumerate(rooms.items(), 1):
        inside = [image for image in images if image.room == room and image.depth_path]
        chosen = inside[:: max(1, -(-len(inside) // _IMAGES))]
        seen = np.concatenate([depth_points(image) for image in chosen]) if chosen else np.zeros((0, 3))
        if len(seen):
            turn = _turn_of(_room_points(file), seen)
            if turn is not None:
                turns[room] = turn
        progress(done, len(rooms))
    return turns


def share_near(tree: cKDTree, seen: np.ndarray, near: float = NEAR) -> float:
    """The share of the places `(N, 3)` that have a point of the tree within `near` metres."""
    if not len(seen):
        return 0.0
    return float(np.isfinite(tree.query(seen, distance_upper_bound=near)[0]).mean())


def _turn_of(points: np.ndarray, seen: np.ndarray) -> list[float] | None:
    # A box is turned by right angles about its middle into a box with the same middle.
    middle = (points[:, :2].min(0) + points[:, :2].max(0)) / 2
    turns = [[angle, float(middle[0]), float(middle[1])] for angle in _ANGLES]
    shares = [share_near(cKDTree(turned(points, turn)), seen) for turn in turns]
    best, second = np.argsort(shares)[::-1][:2]
    if shares[best] < LEAST_SHARE or shares[best] - shares[second] < LEAST_LEAD:
        return None
    return turns[best]


def _room_points(file: Path) -> np.ndarray:
    """Some of a room's points `(N, 3)`, with the outermost among them."""
    pieces = []
    count = count_pieces(file)
    for number in range(count):
        xyz = read_piece(file, number)[:, :3]
        if not len(xyz):
            continue
        outermost = np.unique(np.concatenate([xyz.argmin(0), xyz.argmax(0)]))
        step = max(1, len(xyz) * count // _POINTS)
        pieces += [xyz[::step], xyz[outermost]]
    return np.concatenate(pieces) if pieces else np.zeros((1, 3))
