"""Trajectories: pose files by row (12 numbers, KITTI) or by time (TUM), and poses between their rows."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from ep2ploc_core.errors import InputError

# Rows further apart than this, in seconds, are not interpolated between. From every second pose of KITTI odometry 00
# (0.2 s apart, a car in town) the ones between come out within 0.6 cm and 0.09 deg (median), 4 cm and 0.4 deg (99 %).
MAX_GAP = 0.25
# A time this close to a row's, in seconds, is that row's time: files round their stamps.
SAME_TIME = 1e-3
FARTHEST_PLACE = 1e8  # metres; beyond any map projection, so a column was mistaken
_ROTATION_TOLERANCE = 0.02


@dataclass(frozen=True)
class Trajectory:
    """`poses` `(N, 4, 4)` float64, map_from_sensor of whichever sensor the file speaks of. `stamps` `(N,)` in seconds,
    strictly rising; None where row k is simply frame k."""

    path: Path
    poses: np.ndarray
    stamps: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.poses)

    def at(self, stamps: np.ndarray, max_gap: float = MAX_GAP) -> np.ndarray:
        """Poses `(M, 4, 4)` at times `(M,)` in seconds: translation linear, rotation by slerp between the two rows
        around. NaN outside the trajectory and between rows more than `max_gap` seconds apart; a row's own time (to a
        millisecond) always has its pose. Raises InputError when the rows carry no times."""
        if self.stamps is None:
            raise InputError(
                f"The poses {self.path} are rows of 12 numbers without times, and poses at given times are needed; "
                "give TUM rows (time x y z qx qy qz qw)."
            )
        stamps = np.asarray(stamps, dtype=np.float64)
        known = self.stamps
        after = np.searchsorted(known, stamps).clip(1, max(len(known) - 1, 1))
        before, after = after - 1, np.minimum(after, len(known) - 1)
        nearest = np.where(np.abs(stamps - known[before]) <= np.abs(stamps - known[after]), before, after)
        at_row = np.abs(stamps - known[nearest]) <= SAME_TIME
        between = (known[before] <= stamps) & (stamps <= known[after]) & (known[after] - known[before] <= max_gap)

        out = np.full((len(stamps), 4, 4), np.nan)
        out[at_row] = self.poses[nearest[at_row]]
        between &= ~at_row
        if between.any():
            times, first, second = stamps[between], before[between], after[between]
            share = ((times - known[first]) / (known[second] - known[first]))[:, None]
            inside = np.tile(np.eye(4), (len(times), 1, 1))
            inside[:, :3, 3] = (1 - share) * self.poses[first, :3, 3] + share * self.poses[second, :3, 3]
            inside[:, :3, :3] = Slerp(known, Rotation.from_matrix(self.poses[:, :3, :3]))(times).as_matrix()
            out[between] = inside
        return out


def read_trajectory(path: Path | str) -> Trajectory:
    """A file of rows of 12 numbers (the upper 3x4 of a pose, by row; row k = frame k) or of TUM rows (time x y z qx qy
    qz qw; sorted by time here, the first of rows with one time kept); `#` begins a comment. Raises InputError."""
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file, which gets its own sentence below
            rows = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"The poses {path} cannot be read ({reason}); give rows of 12 numbers, or of 8 (TUM: time x y z qx qy qz "
            "qw)."
        ) from error
    if not rows.size:
        raise InputError(f"The poses {path} hold no rows; give rows of 12 numbers, or of 8 (TUM).")
    if rows.shape[1] not in (8, 12):
        raise InputError(
            f"The poses {path} have {rows.shape[1]} columns; give rows of 12 numbers, or of 8 (TUM: time x y z qx qy "
            "qz qw)."
        )
    _refuse_rows(path, np.count_nonzero(~np.isfinite(rows), axis=1) > 0, "holds values that are no numbers")
    return _from_tum(path, rows) if rows.shape[1] == 8 else _from_matrices(path, rows)


def write_trajectory(path: Path, poses: np.ndarray, stamps: np.ndarray | None, comment: str) -> None:
    """Writes poses `(N, 4, 4)` as TUM rows, or without `stamps` `(N,)` as rows of 12 numbers, every bit of them; and
    before them a `comment` of one line. Written aside and renamed."""
    if stamps is None:
        rows = poses[:, :3].reshape(-1, 12)
    else:
        rows = np.column_stack([stamps, poses[:, :3, 3], Rotation.from_matrix(poses[:, :3, :3]).as_quat()])
    aside = path.with_name(path.name + ".tmp")
    np.savetxt(aside, rows, fmt="%.17g", header=comment)
    os.replace(aside, path)


def is_rotation(matrices: np.ndarray, tolerance: float = _ROTATION_TOLERANCE) -> np.ndarray:
    """Which of `(N, 3, 3)` are rotations, up to the rounding of text files, `(N,)` bool."""
    matrices = matrices.clip(-2, 2)  # squares of huge numbers would overflow
    gram = matrices @ matrices.transpose(0, 2, 1)
    return (np.abs(gram - np.eye(3)).max((1, 2)) < tolerance) & (np.linalg.det(matrices) > 0)


def _from_matrices(path: Path, rows: np.ndarray) -> Trajectory:
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3] = rows.reshape(-1, 3, 4)
    _refuse_rows(path, np.abs(poses[:, :3, 3]).max(1) > FARTHEST_PLACE, "lies further away than 100,000 km")
    _refuse_rows(path, ~is_rotation(poses[:, :3, :3]), "is no pose: its 3x3 part is no rotation")
    return Trajectory(path, poses)


def _from_tum(path: Path, rows: np.ndarray) -> Trajectory:
    _refuse_rows(path, np.abs(rows[:, 1:4]).max(1) > FARTHEST_PLACE, "lies further away than 100,000 km")
    length = np.linalg.norm(rows[:, 4:].clip(-2, 2), axis=1)  # squares of huge numbers would overflow
    _refuse_rows(path, np.abs(length - 1) > 0.1, "has a quaternion whose length is not 1")
    stamps, first = np.unique(rows[:, 0], return_index=True)
    poses = np.tile(np.eye(4), (len(stamps), 1, 1))
    poses[:, :3, :3] = Rotation.from_quat(rows[first, 4:]).as_matrix()
    poses[:, :3, 3] = rows[first, 1:4]
    return Trajectory(path, poses, stamps)


def _refuse_rows(path: Path, bad: np.ndarray, why: str) -> None:
    if np.any(bad):
        raise InputError(f"Row {int(bad.argmax()) + 1} of the poses {path} {why}; correct that row or leave it out.")
