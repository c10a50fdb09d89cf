"""KITTI readers, on a drive written here and on the real ones where they are."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ep2ploc_core import se3
from ep2ploc_core.datasets.kitti import KittiDrive, camera_from_projection, read_camera_file, read_scan
from ep2ploc_core.datasets.queries import Queries, parse_frames, write_queries
from ep2ploc_core.datasets.synthetic import write_synthetic_drive
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.sources import KittiSource, mapping_images, open_source, reopen_source


@pytest.fixture(scope="module")
def drive_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_drive(tmp_path_factory.mktemp("drive"), frames=12, seed=3)


def copy_of(drive: Path, out: Path) -> Path:
    """The drive and the calibration above it, in another directory."""
    shutil.copytree(drive.parent, out / drive.parent.name)
    return out / drive.parent.name / drive.name


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
    assert [image.frame for image in source.images] == [0, 1, 2, 8, 9, 10, 11]
    again = reopen_source(source.describe())
    assert [scan.frame for scan in again.scans()] == [0, 1, 9, 10, 11]
    assert mapping_images(again)[3].frame == 8


def test_poses_by_time_are_taken_at_the_frames_stamps(drive_path: Path, tmp_path: Path) -> None:
    drive = KittiDrive(drive_path)
    rows = [
        [frame.stamp, *frame.map_from_lidar[:3, 3], *se3.to_quaternion(frame.map_from_lidar)]
        for frame in drive.frames[:9:2]
        if frame.map_from_lidar is not None
    ]
    np.savetxt(tmp_path / "tum.txt", rows, fmt="%.7f")
    by_time = KittiDrive(drive_path, tmp_path / "tum.txt")
    known = {frame.index: frame.map_from_lidar for frame in by_time.frames if frame.map_from_lidar is not None}
    assert list(known) == list(range(9))  # 0.2 s between rows are bridged, the end is not gone beyond
    for index, pose in known.items():
        truth = drive.frame(index).map_from_lidar
        assert truth is not None
        distance, angle = se3.pose_error(pose, truth)
        assert distance < (0.1 if index % 2 else 1e-5) and angle < (0.02 if index % 2 else 1e-5)
    np.savetxt(tmp_path / "other_clock.txt", np.array(rows) - [1e6, 0, 0, 0, 0, 0, 0, 0], fmt="%.7f")
    with pytest.raises(InputError, match="none has a pose"):
        KittiDrive(drive_path, tmp_path / "other_clock.txt")


def test_a_drive_without_poses_says_so(tmp_path: Path, drive_path: Path) -> None:
    copy = copy_of(drive_path, tmp_path)
    (copy / "poses_lidar.txt").unlink()
    source = open_source(copy)
    assert not source.has_poses and len(source) == 12
    assert all((scan.map_from_lidar == np.eye(4)).all() for scan in source.scans())
    with pytest.raises(InputError, match="no image with a pose"):
        mapping_images(source)


def test_reflectance_of_other_ranges_is_scaled(tmp_path: Path) -> None:
    scan = np.random.default_rng(0).uniform(-50, 50, (100, 4)).astype(np.float32)
    for largest, full in ((0.99, 1), (1.004, 1), (250, 255), (255, 255), (60000, 65535)):
        scan[:, 3] = np.linspace(0, largest, 100)
        scan.tofile(tmp_path / "0.bin")
        np.testing.assert_allclose(read_scan(tmp_path / "0.bin")[:, 3], (scan[:, 3] / full).clip(max=1), atol=1e-6)


def test_a_scan_of_something_else_says_so(tmp_path: Path) -> None:
    (tmp_path / "0.bin").write_bytes(np.random.default_rng(0).bytes(16_000))
    with pytest.raises(InputError, match="holds no LiDAR points"):
        read_scan(tmp_path / "0.bin")
    points = np.ones((10, 4), np.float32)
    points[2:5, 1] = np.nan
    points.tofile(tmp_path / "0.bin")
    assert len(read_scan(tmp_path / "0.bin")) == 7


def test_what_lies_at_a_path_is_recognised(drive_path: Path, tmp_path: Path) -> None:
    assert isinstance(open_source(drive_path), KittiSource)
    for name in ("readme.txt", "folder"):
        path = tmp_path / name
        path.mkdir() if name == "folder" else path.write_text("hello")
        with pytest.raises(InputError, match="nothing that a map can be made of; give a KITTI raw drive"):
            open_source(path)
    with pytest.raises(InputError, match="does not exist"):
        open_source(tmp_path / "none")
    with pytest.raises(InputError, match="takes no --camera"):
        open_source(drive_path, camera=tmp_path / "camera.yaml")
    with pytest.raises(InputError, match="kind 'stars' is not known"):
        reopen_source({"kind": "stars", "path": str(tmp_path)})


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
        ("poses_lidar.txt", lambda f: f.write_text("1 2 3\n"), "have 3 columns"),
        ("poses_lidar.txt", lambda f: f.write_text("1 nan " + "0 " * 10), "no numbers"),
        ("image_02/timestamps.txt", lambda f: f.write_text("yesterday\n" * 12), "not of the form"),
        ("../calib_cam_to_cam.txt", lambda f: f.write_text("P_rect_02: 1 2 3\n"), "lacks a whole"),
        ("../calib_velo_to_cam.txt", lambda f: f.unlink(), "cannot be read"),
    ],
)
def test_bad_files_get_a_sentence(drive_path: Path, tmp_path: Path, name: str, spoil, says: str) -> None:
    path = copy_of(drive_path, tmp_path)
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
