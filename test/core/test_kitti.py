"""KITTI readers, on a drive written here and on the real ones where they are."""

import os
from pathlib import Path

import numpy as np
import pytest

from ep2ploc_core.datasets.kitti import KittiDrive, camera_from_projection, read_camera_file, read_scan
from ep2ploc_core.datasets.queries import Queries, parse_frames, write_queries
from ep2ploc_core.datasets.synthetic import write_synthetic_drive
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.sources import KittiSource


@pytest.fixture(scope="module")
def drive_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_drive(tmp_path_factory.mktemp("drive"), frames=12, seed=3)


def test_drive_reads_frames_images_scans_poses(drive_path: Path) -> None:
    drive = KittiDrive(drive_path)
    assert [frame.index for frame in drive.frames] == list(range(12))
    image = drive.read_image(drive.frames[3])
    assert image.shape == (drive.camera.height, drive.camera.width, 3)
    assert drive.read_scan(drive.frames[3]).shape[1] == 4
    pose = drive.map_from_camera(drive.frames[3])
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-6)
    assert pose[2, 2] ** 2 < 0.1  # the optical axis is level in a z-up map
    stamps = [frame.stamp for frame in drive.frames]
    np.testing.assert_allclose(np.diff(stamps), 0.1, atol=1e-3)


def test_fourth_column_of_the_projection_moves_the_camera_not_its_centre() -> None:
    projection = np.array([[700.0, 0, 600, 45], [0, 700, 170, -0.3], [0, 0, 1, 0.005]])
    camera, camera_from_rectified = camera_from_projection(projection, 1242, 375)
    point = np.array([2.0, 1.0, 15.0, 1.0])
    expected = projection @ point
    pixel = camera.project((camera_from_rectified @ point)[None, :3])[0]
    np.testing.assert_allclose(pixel, expected[:2] / expected[2], atol=1e-6)


def test_missing_frames_are_borne_and_held_out_ones_stay_out(drive_path: Path, tmp_path: Path) -> None:
    source = KittiSource(drive_path, hold_out=[5])
    assert [frame.index for frame in source.scan_frames] == [0, 1, 9, 10, 11]
    assert [frame.index for frame in source.images] == [0, 1, 2, 8, 9, 10, 11]
    again = KittiSource.reopen(source.describe())
    assert [frame.index for frame in again.scan_frames] == [0, 1, 9, 10, 11]


def test_queries_carry_images_camera_and_poses(drive_path: Path, tmp_path: Path) -> None:
    drive = KittiDrive(drive_path)
    write_queries(drive, [2, 7], tmp_path / "queries")
    queries = Queries(tmp_path / "queries")
    assert queries.frames is not None and queries.frames.tolist() == [2, 7]
    assert queries.map_from_camera is not None
    np.testing.assert_allclose(queries.map_from_camera[1], drive.map_from_camera(drive.frame(7)), atol=1e-6)
    np.testing.assert_array_equal(queries.image(0), drive.read_image(drive.frame(2)))
    assert queries.camera.fx == pytest.approx(drive.camera.fx)


def test_frames_are_named_briefly() -> None:
    assert parse_frames("6:20:6,40,41") == [6, 12, 18, 40, 41]
    with pytest.raises(InputError, match="names no frames"):
        parse_frames("a:b")


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        ("velodyne_points/data/0000000002.bin", lambda f: f.write_bytes(f.read_bytes()[:-3]), "truncated"),
        ("velodyne_points/data/0000000002.bin", lambda f: f.write_bytes(b""), "truncated"),
        ("image_02/data/0000000002.*", lambda f: f.write_bytes(b"not an image"), "cannot be decoded"),
        ("poses_lidar.txt", lambda f: f.write_text("1 2 3\n"), "rows of 12 numbers"),
        ("poses_lidar.txt", lambda f: f.write_text("1 nan " + "0 " * 10), "no numbers"),
        ("image_02/timestamps.txt", lambda f: f.write_text("yesterday\n" * 12), "not of the form"),
        ("../calib_cam_to_cam.txt", lambda f: f.write_text("P_rect_02: 1 2 3\n"), "lacks a whole"),
        ("../calib_velo_to_cam.txt", lambda f: f.unlink(), "cannot be read"),
    ],
)
def test_bad_files_get_a_sentence(tmp_path: Path, name: str, spoil, says: str) -> None:
    path = write_synthetic_drive(tmp_path, frames=3, seed=1)
    (file,) = (path / name).parent.glob(Path(name).name)
    spoil(file)
    with pytest.raises(InputError, match=says):
        drive = KittiDrive(path)
        drive.read_scan(drive.frame(2))
        drive.read_image(drive.frame(2))


def test_a_directory_that_is_no_drive_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a KITTI raw drive"):
        KittiDrive(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_scan(tmp_path / "no.bin")
    with pytest.raises(InputError, match="does not exist"):
        read_camera_file(tmp_path / "no.yaml", 10, 10)


@pytest.mark.skipif("EP2PLOC_DATA" not in os.environ, reason="EP2PLOC_DATA does not name a directory of real drives")
def test_real_drive_bears_its_gaps() -> None:
    path = Path(os.environ["EP2PLOC_DATA"]) / "kitti_raw/2011_09_26/2011_09_26_drive_0001_sync"
    drive = KittiDrive(path)
    images = [frame for frame in drive.frames if frame.image_path]
    scans = [frame for frame in drive.frames if frame.scan_path]
    assert (len(images), len(scans)) == (98, 54)
    both = next(frame for frame in images if frame.scan_path)
    scan = drive.read_scan(both)
    in_camera = scan[:, :3] @ drive.camera_from_lidar[:3, :3].T + drive.camera_from_lidar[:3, 3]
    pixels = drive.camera.project(in_camera[in_camera[:, 2] > 1])
    inside = (pixels > 0).all(1) & (pixels < [drive.camera.width, drive.camera.height]).all(1)
    assert inside.sum() > 10_000
