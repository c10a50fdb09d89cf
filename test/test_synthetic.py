"""The synthetic drive: KITTI layout, one geometry for camera and LiDAR, rich texture, the same for the same seed."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ep2ploc_core.datasets import synthetic
from ep2ploc_core.datasets.kitti import KittiDrive
from ep2ploc_core.datasets.synthetic_render import TILE, cast
from ep2ploc_core.datasets.synthetic_scene import KERB_LATERAL
from ep2ploc_core.datasets.synthetic_sensors import Lidar, SensorRig
from ep2ploc_core.datasets.synthetic_street import random_street
from ep2ploc_core.errors import InputError

FRAMES, SEED = 3, 4


@pytest.fixture(scope="module")
def drive(tmp_path_factory) -> KittiDrive:
    return KittiDrive(synthetic.write_synthetic_drive(tmp_path_factory.mktemp("drive"), FRAMES, SEED))


@pytest.fixture(scope="module")
def rig() -> SensorRig:
    return SensorRig(random_street(-synthetic.BEHIND, FRAMES + synthetic.AHEAD, SEED), SEED)


def projected(drive: KittiDrive, scan: np.ndarray, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nearest pixels and depths of the scan's points inside the image, and which these are; `shift` turns the camera
    by so many radians."""
    points = scan[:, :3] @ drive.camera_from_lidar[:3, :3].T + drive.camera_from_lidar[:3, 3]
    points = points @ cv2.Rodrigues(np.array([0, shift, 0.0]))[0].T
    front = np.flatnonzero(points[:, 2] > 1)
    pixels = drive.camera.project(points[front]).round().astype(int)
    inside = ((pixels >= 0) & (pixels < [drive.camera.width, drive.camera.height])).all(1)
    return pixels[inside], points[front[inside], 2], front[inside]


def agreement(drive: KittiDrive, rig: SensorRig, index: int, shift: float = 0.0) -> float:
    frame = drive.frames[index]
    pose = torch.tensor(drive.map_from_camera(frame), dtype=torch.float32)
    rendered = rig.depth(drive.camera, pose).numpy()
    pixels, depth, _ = projected(drive, drive.read_scan(frame), shift)
    assert len(depth) > 5000
    difference = np.abs(rendered[pixels[:, 1], pixels[:, 0]] - depth)
    return float((difference < 0.1 + 0.01 * depth).mean())


def test_the_kitti_reader_reads_it(drive):
    assert len(drive.frames) == FRAMES
    assert np.allclose(drive.camera.intrinsics, synthetic.CAMERA.intrinsics)
    assert np.allclose(drive.camera_from_lidar, synthetic.CAMERA_FROM_LIDAR, atol=1e-8)
    assert [round(frame.stamp - drive.frames[0].stamp, 6) for frame in drive.frames] == [0.0, 0.1, 0.2]
    for frame in drive.frames:
        assert drive.read_image(frame).shape == (drive.camera.height, drive.camera.width, 3)
    for sensor in ("image_02", "velodyne_points"):
        assert len((drive.path / sensor / "timestamps.txt").read_text().split("\n")) == FRAMES + 1


def test_scans_look_like_the_real_ones(drive):
    scan = drive.read_scan(drive.frames[0])
    reach = np.linalg.norm(scan[:, :3], axis=1)
    assert len(scan) > 20_000
    assert scan[:, 0].min() > -5 and reach.max() < 75.1
    assert scan[:, 3].min() >= 0 and scan[:, 3].max() < 1 and scan[:, 3].std() > 0.05
    elevation = np.degrees(np.arcsin(scan[:, 2] / reach))
    assert -25 < elevation.min() < -20 and 1 < elevation.max() < 2.1
    ground = scan[(np.abs(scan[:, 1]) < 2) & (scan[:, 0] > 4) & (scan[:, 0] < 12) & (scan[:, 2] < -1)]
    assert abs(np.median(ground[:, 2]) + 1.73) < 0.2


def test_camera_rays_meet_what_the_lidar_has_met(drive, rig):
    """Without the sensors' noise a camera ray towards a LiDAR point ends there, or before it, but never behind it."""
    frame = drive.frames[0]
    map_from_lidar = torch.tensor(frame.map_from_lidar, dtype=torch.float32)
    scan = rig.scan(Lidar(range_noise=0, dropouts=0), map_from_lidar, torch.Generator().manual_seed(0))
    scan = scan[: len(scan) // TILE**2 * TILE**2]
    points = scan[:, :3] @ map_from_lidar[:3, :3].T + map_from_lidar[:3, 3]
    camera = torch.tensor(drive.map_from_camera(frame)[:3, 3], dtype=torch.float32)
    rays = (points - camera).reshape(TILE, -1, 3)
    hits = cast(rig.scene, rig.noise, camera, rays)
    error = (hits.distance - 1) * rays.norm(dim=-1)
    assert (error.abs() < 0.01).float().mean() > 0.95
    assert (error > 0.01).float().mean() < 1e-3


@pytest.mark.parametrize("index", range(FRAMES))
def test_every_scan_lies_on_the_depth_that_the_camera_sees(drive, rig, index):
    assert agreement(drive, rig, index) > 0.92


def test_the_agreement_shows_a_camera_turned_by_one_degree(drive, rig):
    assert agreement(drive, rig, 0, np.deg2rad(1)) < agreement(drive, rig, 0) - 0.15


def test_white_paint_on_the_road_is_bright_in_both(drive):
    """The picture, not only the depth, is seen from the pose: reflectance and brightness go together there only."""
    frame = drive.frames[0]
    scan = drive.read_scan(frame)
    scan = scan[(scan[:, 2] < -1.4) & (np.hypot(scan[:, 0], scan[:, 1]) < 20) & (np.abs(scan[:, 1]) < KERB_LATERAL)]
    grey = cv2.cvtColor(drive.read_image(frame), cv2.COLOR_RGB2GRAY).astype(float)

    def correlation(shift: float) -> float:
        pixels, _, chosen = projected(drive, scan, shift)
        return float(np.corrcoef(grey[pixels[:, 1], pixels[:, 0]], scan[chosen, 3])[0, 1])

    assert correlation(0) > 0.4
    assert correlation(0) > correlation(np.deg2rad(3)) + 0.1


def test_images_are_rich_in_texture(drive):
    grey = cv2.cvtColor(drive.read_image(drive.frames[0]), cv2.COLOR_RGB2GRAY)
    assert len(cv2.goodFeaturesToTrack(grey, 2000, 0.01, 5)) > 300
    tiles = grey[: grey.shape[0] // 2 * 2].astype(float)[grey.shape[0] // 2 :]  # the road and what stands on it
    spread = [tiles[i : i + 16, j : j + 16].std() for i in range(0, 80, 16) for j in range(0, 600, 16)]
    assert np.quantile(spread, 0.1) > 2.5


def test_the_same_seed_writes_the_same_bytes_and_another_seed_another_street(tmp_path):
    def written(out: Path, seed: int) -> dict[str, bytes]:
        path = synthetic.write_synthetic_drive(out, 1, seed)
        return {file.name: file.read_bytes() for file in path.rglob("*") if file.is_file()}

    first, again, other = written(tmp_path / "a", 7), written(tmp_path / "b", 7), written(tmp_path / "c", 8)
    assert first == again
    assert {name for name in first if first[name] == other[name]} == {"timestamps.txt"}


def test_progress_is_told_and_an_old_drive_replaced(tmp_path):
    told = []
    for frames in (2, 1):
        path = synthetic.write_synthetic_drive(
            tmp_path, frames, 1, progress=lambda done, total: told.append((done, total))
        )
    assert told == [(1, 2), (2, 2), (1, 1)]
    assert [file.name for file in (path / "velodyne_points" / "data").iterdir()] == ["0000000000.bin"]
    assert sorted(item.name for item in path.parent.iterdir() if item.is_dir()) == [path.name]


def test_the_car_drives_about_a_metre_a_frame_and_stays_in_its_lane():
    road = random_street(-25, 260, 3).road
    poses = synthetic.drive_along(road, 200, 3)
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    assert steps.min() > 0.7 and steps.max() < 1.3
    lateral = road.lateral(torch.tensor(poses[:, 0, 3]), torch.tensor(poses[:, 1, 3])).numpy()
    assert (np.abs(lateral - synthetic.LANE) < 0.45).all() and lateral.std() > 0.1
    assert np.allclose(poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1), np.eye(3))
    assert (poses[:, 2, 2] > np.cos(np.deg2rad(3))).all()


@pytest.mark.parametrize(("frames", "seed"), [(0, 0), (-3, 0), (5, -1), (5, 10_000)])
def test_impossible_requests_are_refused(tmp_path, frames, seed):
    with pytest.raises(InputError, match="at least one frame and a seed"):
        synthetic.write_synthetic_drive(tmp_path, frames, seed)
