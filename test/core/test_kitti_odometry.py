"""KITTI odometry sequences: the same street as a raw drive and as a sequence is the same map."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ep2ploc_core import se3
from ep2ploc_core.datasets.kitti import KittiDrive
from ep2ploc_core.datasets.kitti_odometry import KittiOdometrySource
from ep2ploc_core.datasets.synthetic import CAMERA, CAMERA_FROM_REFERENCE, REFERENCE_FROM_LIDAR, write_synthetic_drive
from ep2ploc_core.datasets.trajectory import Trajectory, read_trajectory
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.sources import open_source, reopen_source

FRAMES = 6


def write_calib(file: Path, camera0_from_lidar: np.ndarray) -> None:
    projection = CAMERA.matrix @ CAMERA_FROM_REFERENCE[:3]
    rows = {"P0": CAMERA.matrix @ np.eye(4)[:3], "P2": projection, "Tr": camera0_from_lidar[:3]}
    file.write_text("".join(f"{name}: {' '.join(map(repr, row.ravel().tolist()))}\n" for name, row in rows.items()))


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> KittiDrive:
    return KittiDrive(write_synthetic_drive(tmp_path_factory.mktemp("raw"), frames=FRAMES, seed=3))


def relative_poses(drive: KittiDrive) -> np.ndarray:
    """The LiDAR's poses `(N, 4, 4)` in its first frame: what a sequence should bring."""
    poses = np.stack([frame.map_from_lidar for frame in drive.frames if frame.map_from_lidar is not None])
    return np.linalg.inv(poses[0]) @ poses


@pytest.fixture
def sequence(drive: KittiDrive, tmp_path: Path) -> Path:
    """`drive` in the layout of the odometry benchmark."""
    path = tmp_path / "dataset" / "sequences" / "00"
    for folder in ("velodyne", "image_2", "../../poses"):
        (path / folder).mkdir(parents=True)
    for frame in drive.frames:
        assert frame.scan_path and frame.image_path
        shutil.copy(frame.scan_path, path / "velodyne" / f"{frame.index:06d}.bin")
        shutil.copy(frame.image_path, path / "image_2" / f"{frame.index:06d}{frame.image_path.suffix}")
    write_calib(path / "calib.txt", REFERENCE_FROM_LIDAR)
    camera0 = REFERENCE_FROM_LIDAR @ relative_poses(drive) @ np.linalg.inv(REFERENCE_FROM_LIDAR)
    np.savetxt(path / "../../poses/00.txt", camera0[:, :3].reshape(-1, 12))
    np.savetxt(path / "times.txt", np.arange(FRAMES) / 10)
    return path


def test_sequence_and_raw_drive_are_the_same_map(drive: KittiDrive, sequence: Path) -> None:
    source = open_source(sequence)
    assert isinstance(source, KittiOdometrySource) and source.has_poses and len(source) == FRAMES
    expected = relative_poses(drive)
    for scan, pose, frame in zip(source.scans(), expected, drive.frames, strict=True):
        np.testing.assert_allclose(scan.map_from_lidar, pose, atol=1e-6)
        np.testing.assert_array_equal(scan.points, drive.read_scan(frame))
        assert scan.stamp == pytest.approx(frame.index / 10)
    assert [image.frame for image in source.images] == list(range(FRAMES))
    image = source.images[3]
    np.testing.assert_allclose(image.map_from_camera, expected[3] @ np.linalg.inv(drive.camera_from_lidar), atol=1e-6)
    assert image.camera.fx == pytest.approx(CAMERA.fx)


def test_poses_by_time_and_held_out_frames(sequence: Path, tmp_path: Path) -> None:
    poses = read_trajectory(sequence / "../../poses/00.txt").poses
    rows = [[k / 10, *pose[:3, 3], *se3.to_quaternion(pose)] for k, pose in enumerate(poses)]
    np.savetxt(tmp_path / "tum.txt", rows[1:5])
    source = open_source(sequence, tmp_path / "tum.txt", hold_out=[5])
    assert [scan.frame for scan in source.scans()] == [1]
    again = reopen_source(source.describe())
    (scan,) = again.scans()
    np.testing.assert_allclose(scan.map_from_lidar, list(open_source(sequence).scans())[1].map_from_lidar, atol=1e-6)


def test_without_poses_it_says_so(sequence: Path) -> None:
    (sequence / "../../poses/00.txt").unlink()
    source = KittiOdometrySource(sequence)
    assert not source.has_poses and not source.images
    assert all((scan.map_from_lidar == np.eye(4)).all() for scan in source.scans())


def test_missing_scans_are_borne(sequence: Path) -> None:
    for number in (2, 5):  # times.txt still tells how many frames there are
        (sequence / "velodyne" / f"{number:06d}.bin").unlink()
        next((sequence / "image_2").glob(f"{number:06d}.*")).unlink()
    assert [scan.frame for scan in KittiOdometrySource(sequence).scans()] == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("../../poses/00.txt", "1 0 0 0 0 1 0 0 0 0 1 0\n" * 4, "4 rows, and .* has 6 frames"),
        ("../../poses/00.txt", "1 0 0 0 0 1 0 0 0 0 1 0\n" * 9, "9 rows, and .* has 6 frames"),
        ("../../poses/00.txt", "1 0 0 0 0 1 0 0 0 0 2 0\n" * 6, "Row 1 .* no rotation"),
        ("times.txt", "0.0\nsoon\n", "cannot be read"),
        ("calib.txt", "P2: 1 2 3\n", "lacks a whole"),
    ],
)
def test_bad_files_get_a_sentence(sequence: Path, name: str, text: str, says: str) -> None:
    (sequence / name).write_text(text)
    with pytest.raises(InputError, match=says):
        KittiOdometrySource(sequence)


def test_poses_by_time_need_times(sequence: Path, tmp_path: Path) -> None:
    (tmp_path / "tum.txt").write_text("0 0 0 0 0 0 0 1\n1 0 0 0 0 0 0 1\n")
    (sequence / "times.txt").write_text("0.0\n0.1\n")
    with pytest.raises(InputError, match="2 times for 6 frames"):
        KittiOdometrySource(sequence, tmp_path / "tum.txt")


def test_trajectory_between_its_rows_is_the_exact_screw(tmp_path: Path) -> None:
    """A turn at constant rate: slerp is exact for it, and the straight chord is off by less than speed^2 dt^2 / 8 r."""

    def pose(time: float) -> np.ndarray:
        return se3.from_quaternion(
            np.array([20 * np.sin(0.4 * time), 20 - 20 * np.cos(0.4 * time), 0]),
            np.array([0, 0, np.sin(0.2 * time), np.cos(0.2 * time)]),
        )

    times = np.delete(np.arange(0, 5, 0.2), [10, 11])
    rows = [[1e9 + time, *pose(time)[:3, 3], *se3.to_quaternion(pose(time))] for time in times]
    np.savetxt(tmp_path / "tum.txt", rows[::-1], fmt="%.6f", header="time x y z qx qy qz qw")
    trajectory = read_trajectory(tmp_path / "tum.txt")
    assert len(trajectory) == len(times) and trajectory.stamps is not None
    asked = np.array([0.07, 1.13, 1.8, 2.0, 2.4, 4.8, 4.9, -0.1])
    got = trajectory.at(1e9 + asked)
    assert np.isnan(got[[3, 6, 7]]).all()  # in the gap, after the end, before the beginning
    for k in (0, 1, 2, 4, 5):
        distance, angle = se3.pose_error(got[k], pose(asked[k]))
        assert distance < 20 * 0.4**2 * 0.2**2 / 8 + 1e-4 and angle < 1e-5
    assert np.isfinite(trajectory.at(np.array([1e9 + 2.0]), max_gap=1.0)).all()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "hold no rows"),
        ("1 2 3\n4 5 6\n", "have 3 columns"),
        ("1 2 3\n4 5\n", "cannot be read"),
        ("0 0 0 0 0 0 0 1\n1 0 0 0 0 0 0 0\n", "Row 2 .* quaternion whose length is not 1"),
        ("0 0 0 nan 0 0 0 1\n", "Row 1 .* no numbers"),
        ("0 0 9e99 0 0 0 0 1\n", "Row 1 .* further away"),
    ],
)
def test_bad_trajectories_get_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "poses.txt").write_text(text)
    with pytest.raises(InputError, match=says):
        read_trajectory(tmp_path / "poses.txt")


def test_rows_without_times_cannot_be_asked_for_times() -> None:
    with pytest.raises(InputError, match="without times"):
        Trajectory(Path("poses.txt"), np.eye(4)[None]).at(np.zeros(1))


@pytest.mark.skipif("EP2PLOC_DATA" not in os.environ, reason="EP2PLOC_DATA does not name a directory of real data")
@pytest.mark.parametrize(("name", "metres"), [("04", 394), ("07", 695)])
def test_real_sequences_lie_level(tmp_path: Path, name: str, metres: float) -> None:
    data = Path(os.environ["EP2PLOC_DATA"])
    camera0 = read_trajectory(data / "kitti_odometry_poses" / f"{name}.txt")
    (tmp_path / "velodyne").mkdir()
    (tmp_path / "velodyne" / f"{len(camera0) - 1:06d}.bin").write_bytes(np.ones(4, "<f4").tobytes())
    write_calib(tmp_path / "calib.txt", REFERENCE_FROM_LIDAR)
    shutil.copy(data / "kitti_odometry_poses" / f"{name}.txt", tmp_path / "poses.txt")
    (last,) = KittiOdometrySource(tmp_path).scans()
    assert last.frame == len(camera0) - 1
    steps = np.linalg.norm(np.diff(camera0.poses[:, :3, 3], axis=0), axis=1)
    assert steps.sum() == pytest.approx(metres, rel=0.01)
    assert abs(last.map_from_lidar[2, 3]) < 0.05 * metres  # the town is flat
    assert last.map_from_lidar[2, 2] > 0.99
