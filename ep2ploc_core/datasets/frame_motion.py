"""How named frames moved against each other during a recording: what /tf, /tf_static and odometry messages tell."""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from ep2ploc_core.datasets.trajectory import Trajectory

_COLUMNS = 8  # time, x y z, qx qy qz qw
# Transforms further apart than this are not interpolated between, unless they always come so seldom (a corrected
# map -> odom once a second, say): then up to three times their usual distance.
_MAX_GAP = 0.5
_MAX_PERIODS = 3.0


class FrameMotion:
    """A graph whose edges are `parent_from_child` over time, or for ever. Frames go by their names without a leading
    slash. Rows are kept as plain doubles (64 bytes each), so hours of transforms fit into memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._moving: dict[tuple[str, str], array] = {}
        self._static: dict[tuple[str, str], np.ndarray] = {}

    def add(self, parent: str, child: str, stamp: float, place: Sequence[float], static: bool = False) -> None:
        """One transform: `place` is x y z in metres and the quaternion qx qy qz qw. Those that are no rigid transform
        are left out, as tf2 does."""
        edge = (parent.lstrip("/"), child.lstrip("/"))
        if edge[0] == edge[1] or not np.isfinite(place).all() or abs(math.hypot(*place[3:]) - 1) > 0.1:
            return
        if static:
            self._static[edge] = np.array([[stamp, *place]])
        else:
            self._moving.setdefault(edge, array("d")).extend((stamp, *place))

    def with_statics_of(self, other: FrameMotion) -> FrameMotion:
        """These transforms, and the static ones of another."""
        both = FrameMotion(self._path)
        both._moving, both._static = self._moving, {**other._static, **self._static}
        return both

    def renamed(self, old: str, new: str) -> FrameMotion:
        """The same motion, in which a frame has another name."""
        out = FrameMotion(self._path)
        out._static = self._static
        out._moving = {
            (new if parent == old else parent, new if child == old else child): rows
            for (parent, child), rows in self._moving.items()
        }
        return out

    def frames(self) -> list[str]:
        """All names, sorted."""
        return sorted({name for edge in (*self._moving, *self._static) for name in edge})

    def moving_edges(self) -> dict[tuple[str, str], int]:
        """How many transforms there are for each moving `(parent, child)`."""
        return {edge: len(rows) // _COLUMNS for edge, rows in self._moving.items()}

    def moves(self, target: str, source: str) -> bool:
        """Whether the two frames are linked, and not rigidly."""
        chain = self._chain(target, source)
        return chain is not None and any(edge not in self._static for edge, _ in chain)

    def at(self, target: str, source: str, stamps: np.ndarray) -> np.ndarray:
        """Poses `(M, 4, 4)` target_from_source at times `(M,)` in seconds, each edge interpolated by itself. NaN
        where an edge of the chain is unknown at that time, or the frames are not linked. Nothing is extrapolated."""
        chain = self._chain(target, source)
        if chain is None:
            return np.full((len(stamps), 4, 4), np.nan)
        out = np.tile(np.eye(4), (len(stamps), 1, 1))
        for edge, inverted in chain:
            parent_from_child = self._edge_at(edge, stamps)
            out = out @ (_inverse(parent_from_child) if inverted else parent_from_child)
        return out

    def _chain(self, target: str, source: str) -> list[tuple[tuple[str, str], bool]] | None:
        """The edges from target to source, the fewest; True where one is passed from child to parent."""
        neighbours: dict[str, list[tuple[str, tuple[str, str], bool]]] = {}
        for parent, child in sorted({*self._moving, *self._static}):
            neighbours.setdefault(parent, []).append((child, (parent, child), False))
            neighbours.setdefault(child, []).append((parent, (parent, child), True))
        came_from: dict[str, tuple[str, tuple[str, str], bool] | None] = {target: None}
        queue = deque([target])
        while queue and source not in came_from:
            here = queue.popleft()
            for there, edge, inverted in neighbours.get(here, []):
                if there not in came_from:
                    came_from[there] = (here, edge, inverted)
                    queue.append(there)
        if source not in came_from:
            return None
        chain: list[tuple[tuple[str, str], bool]] = []
        step = came_from[source]
        while step is not None:
            before, edge, inverted = step
            chain.append((edge, inverted))
            step = came_from[before]
        return chain[::-1]

    def _edge_at(self, edge: tuple[str, str], stamps: np.ndarray) -> np.ndarray:
        if edge in self._static:
            return np.tile(_poses(self._static[edge]), (len(stamps), 1, 1))
        rows = np.array(self._moving[edge]).reshape(-1, _COLUMNS)
        times, first = np.unique(rows[:, 0], return_index=True)
        usual = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        trajectory = Trajectory(self._path, _poses(rows[first]), times)
        return trajectory.at(stamps, max(_MAX_GAP, _MAX_PERIODS * usual))


def _poses(rows: np.ndarray) -> np.ndarray:
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, :3] = Rotation.from_quat(rows[:, 4:]).as_matrix()
    poses[:, :3, 3] = rows[:, 1:4]
    return poses


def _inverse(poses: np.ndarray) -> np.ndarray:
    out = np.tile(np.eye(4), (len(poses), 1, 1))
    out[:, :3, :3] = poses[:, :3, :3].transpose(0, 2, 1)
    out[:, :3, 3] = -(out[:, :3, :3] @ poses[:, :3, 3:])[..., 0]
    return out
