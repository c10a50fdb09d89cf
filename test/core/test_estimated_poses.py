"""A recording without poses gets them by LiDAR odometry, in the form in which it would bring its own."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from ep2ploc_core.datasets.kitti import KittiDrive
from ep2ploc_core.datasets.synthetic import write_synthetic_drive
from ep2ploc_core.map.sources import KittiSource, mapping_images, open_source, with_estimated_poses


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drive with its poses beside it instead of in it."""
    path = write_synthetic_drive(tmp_path_factory.mktemp("drive"), frames=10, seed=31)
    (path / "poses_lidar.txt").rename(path.parent / "truth.txt")
    return path


def told(calls: list[tuple[int, int]]):
    return lambda done, total: calls.append((done, total))


def test_scans_and_images_get_poses_and_the_file_is_used_again(drive: Path, tmp_path: Path) -> None:
    source = open_source(drive)
    assert not source.has_poses
    calls: list[tuple[int, int]] = []
    posed = with_estimated_poses(source, tmp_path / "map", None, told(calls))
    assert posed.has_poses and calls[-1] == (10, 10)
    truth = KittiDrive(drive, drive.parent / "truth.txt")
    first = np.linalg.inv(truth.map_from_camera(truth.frame(0)))
    images = mapping_images(posed)
    assert len(images) == 10
    start = np.linalg.inv(images[0].map_from_camera)
    for image in images:
        moved, expected = start @ image.map_from_camera, first @ truth.map_from_camera(truth.frame(image.frame))
        assert np.linalg.norm(moved[:3, 3] - expected[:3, 3]) < 0.15
    calls.clear()
    again = with_estimated_poses(source, tmp_path / "map", [5], told(calls))
    assert not calls
    assert [scan.frame for scan in again.scans()] == [0, 1, 9]
    np.testing.assert_array_equal(next(again.scans()).map_from_lidar, next(posed.scans()).map_from_lidar)


def test_missing_scans_leave_images_their_poses_in_between(drive: Path, tmp_path: Path) -> None:
    path = tmp_path / drive.parent.name / drive.name
    shutil.copytree(drive.parent, path.parent)
    (path / "velodyne_points/data/0000000004.bin").unlink()
    posed = with_estimated_poses(open_source(path), tmp_path / "map", None, told([]))
    assert [scan.frame for scan in posed.scans()] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    images = {image.frame: image.map_from_camera for image in mapping_images(posed)}
    middle = (images[3][:3, 3] + images[5][:3, 3]) / 2
    np.testing.assert_allclose(images[4][:3, 3], middle, atol=1e-3)


def test_an_odometry_sequence_gets_the_poses_of_its_camera(drive: Path, tmp_path: Path) -> None:
    sequence = tmp_path / "sequences" / "11"
    shutil.copytree(drive / "velodyne_points/data", sequence / "velodyne")
    raw = KittiDrive(drive)
    rows = [f"P{k}: " + " ".join(map(str, np.c_[raw.camera.matrix, np.zeros(3)].ravel())) for k in range(4)]
    rows.append("Tr: " + " ".join(map(str, raw.camera_from_lidar[:3].ravel())))
    (sequence / "calib.txt").write_text("\n".join(rows))
    source = open_source(sequence)
    assert not source.has_poses
    posed = with_estimated_poses(source, tmp_path / "map", None, told([]))
    assert (tmp_path / "map.poses.txt").is_file()
    expected = with_estimated_poses(KittiSource(drive), tmp_path / "raw", None, told([]))
    for ours, theirs in zip(posed.scans(), expected.scans(), strict=True):
        np.testing.assert_allclose(
            np.linalg.inv(next(posed.scans()).map_from_lidar) @ ours.map_from_lidar,
            np.linalg.inv(next(expected.scans()).map_from_lidar) @ theirs.map_from_lidar,
            atol=1e-6,
        )
