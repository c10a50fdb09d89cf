"""LiDAR odometry on synthetic drives whose poses are known, and on scans that cannot be matched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ep2ploc_core.datasets.kitti import KittiDrive
from ep2ploc_core.datasets.synthetic import write_synthetic_drive
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.odometry import estimate_path, level_from_tilted
from ep2ploc_core.map.posed_scan import PosedScan


class Recording:
    """Scans as a source without poses; the truth stays in `posed`."""

    has_poses = False

    def __init__(self, posed: list[PosedScan]) -> None:
        self.posed = posed

    def __len__(self) -> int:
        return len(self.posed)

    def scans(self, first: int = 0) -> Iterator[PosedScan]:
        for scan in self.posed[first:]:
            yield replace(scan, map_from_lidar=np.eye(4))

    def describe(self) -> dict[str, Any]:
        return {"kind": "recording", "path": "/somewhere"}


def read_drive(path: Path) -> list[PosedScan]:
    drive = KittiDrive(path)
    scans = []
    for frame in drive.frames:
        assert frame.map_from_lidar is not None
        scans.append(PosedScan(frame.index, drive.read_scan(frame), frame.map_from_lidar, frame.stamp))
    return scans


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> list[PosedScan]:
    return read_drive(write_synthetic_drive(tmp_path_factory.mktemp("street"), frames=13, seed=3))


@pytest.fixture(scope="module")
def other_street(tmp_path_factory: pytest.TempPathFactory) -> list[PosedScan]:
    return read_drive(write_synthetic_drive(tmp_path_factory.mktemp("other"), frames=1, seed=4))


@pytest.fixture(scope="module")
def estimated(street: list[PosedScan]) -> np.ndarray:
    return estimate_path(Recording(street)).map_from_lidar


def end_to_end(poses: np.ndarray) -> np.ndarray:
    return np.linalg.inv(poses[0]) @ poses[-1]


def angle(rotation: np.ndarray) -> float:
    """Degrees."""
    return float(np.rad2deg(Rotation.from_matrix(rotation[:3, :3]).magnitude()))


def tilt_error(poses: np.ndarray, truth: np.ndarray) -> float:
    """Degrees between the two upward directions in the sensor's frame, at the first scan."""
    return float(np.rad2deg(np.arccos(np.clip(poses[0, 2, :3] @ truth[0, 2, :3], -1, 1))))


def test_drift_on_a_street(street: list[PosedScan], estimated: np.ndarray) -> None:
    truth = np.array([scan.map_from_lidar for scan in street])
    error = np.linalg.inv(end_to_end(truth)) @ end_to_end(estimated)
    assert np.linalg.norm(end_to_end(truth)[:3, 3]) > 11
    assert np.linalg.norm(error[:3, 3]) < 0.15 and angle(error) < 0.6  # measured: 0.04 m, 0.16 degrees
    np.testing.assert_allclose(estimated[0, :3, 3], 0, atol=1e-12)
    assert tilt_error(estimated, truth) < 1.0  # measured: 0.5


def test_the_same_scans_give_the_same_poses(street: list[PosedScan]) -> None:
    first, second = (estimate_path(Recording(street[:12])).map_from_lidar for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_start_at_speed(street: list[PosedScan]) -> None:
    """Four metres from scan to scan, where ICP from standing still ends in the wrong place."""
    fast = street[::4]
    calls: list[tuple[int, int]] = []
    poses = estimate_path(Recording(fast), lambda done, total: calls.append((done, total))).map_from_lidar
    truth = np.array([scan.map_from_lidar for scan in fast])
    for k in range(1, len(fast)):
        step = np.linalg.inv(truth[k - 1]) @ truth[k]
        error = np.linalg.inv(step) @ np.linalg.inv(poses[k - 1]) @ poses[k]
        assert np.linalg.norm(error[:3, 3]) < 0.2
    assert calls == [(k + 1, len(fast)) for k in range(len(fast))]


def test_a_tilted_sensor_is_levelled(street: list[PosedScan]) -> None:
    sensor_from_level = np.eye(4)
    sensor_from_level[:3, :3] = Rotation.from_euler("xyz", [12, -9, 40], degrees=True).as_matrix()
    tilted = [
        PosedScan(
            scan.frame,
            np.c_[scan.points[:, :3] @ sensor_from_level[:3, :3].T, scan.points[:, 3]].astype(np.float32),
            scan.map_from_lidar @ np.linalg.inv(sensor_from_level),
        )
        for scan in street[:4]
    ]
    truth = np.array([scan.map_from_lidar for scan in tilted])
    poses = estimate_path(Recording(tilted)).map_from_lidar
    assert tilt_error(poses, truth) < 1.0
    assert tilt_error(np.array([np.eye(4)]), truth) > 14


def test_levelling_turns_by_the_ground_alone() -> None:
    random = np.random.default_rng(0)
    ground = np.c_[random.uniform(-10, 10, (3000, 2)), random.normal(-1.7, 0.02, 3000)]
    wall = np.c_[random.uniform(-10, 10, 2000), np.full(2000, 6.0), random.uniform(-1.7, 4, 2000)]
    tilt = Rotation.from_euler("xy", [8, -15], degrees=True)
    level = level_from_tilted(tilt.apply(np.r_[ground, wall]))
    up = tilt.apply([0, 0, 1])
    assert np.rad2deg(np.arccos(level[2, :3] @ up)) < 0.3
    np.testing.assert_allclose(level[:3, :3] @ level[:3, :3].T, np.eye(3), atol=1e-12)
    # The least turn that does it: about an axis that lies flat.
    assert abs(Rotation.from_matrix(level[:3, :3]).as_rotvec()[2]) < 1e-9


def test_without_ground_it_stays_as_it_is_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    random = np.random.default_rng(0)
    wall = np.c_[random.uniform(-10, 10, 2000), np.full(2000, 6.0), random.uniform(-4, 4, 2000)]
    np.testing.assert_array_equal(level_from_tilted(wall), np.eye(4))
    assert "No ground found" in caplog.text


def test_scans_that_do_not_overlap(street: list[PosedScan], other_street: list[PosedScan]) -> None:
    with pytest.raises(InputError, match="Scan 0 does not fit the one before it"):
        estimate_path(Recording([*street[:8], other_street[0]]))


def test_a_scan_that_is_all_but_empty(street: list[PosedScan]) -> None:
    few = replace(street[2], points=street[2].points[:30])
    with pytest.raises(InputError, match="Scan 2 holds only 30 points"):
        estimate_path(Recording([*street[:2], few]))
    with pytest.raises(InputError, match="holds only 0 points"):
        estimate_path(Recording([replace(street[0], points=np.zeros((0, 4), np.float32))]))


def test_no_scan_at_all() -> None:
    with pytest.raises(InputError, match="holds no scan"):
        estimate_path(Recording([]))
