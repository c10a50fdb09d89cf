"""The synthetic drive: KITTI layout, one geometry for camera and LiDAR, rich texture, the same for the same seed."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from ep2ploc_core.datasets import synthetic
from ep2ploc_core.datasets.kitti import KittiDrive
from ep2ploc_core.datasets.synthetic_moving import KINDS, MovingBoxes, Traffic, read_moving
from ep2ploc_core.datasets.synthetic_render import TILE, cast
from ep2ploc_core.datasets.synthetic_scene import Material
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


def test_white_paint_on_the_road_is_bright_in_both(drive, rig):
    """The picture, not only the depth, is seen from the pose: reflectance and brightness go together there only."""
    frame = drive.frames[0]
    scan = drive.read_scan(frame)
    scan = scan[
        (scan[:, 2] < -1.4) & (np.hypot(scan[:, 0], scan[:, 1]) < 20) & (np.abs(scan[:, 1]) < rig.scene.road.kerb)
    ]
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


def test_streets_differ_in_more_than_their_details():
    streets = [random_street(-25, 100, seed) for seed in range(8)]
    houses = [(street.material == Material.FACADE) & (street.half[:, 0] > 3) for street in streets]  # without bays
    heights = [float(2 * street.half[house, 2].mean()) for street, house in zip(streets, houses, strict=True)]
    leaves = [int((street.material == Material.LEAVES).sum()) for street in streets]
    bends = [street.road.waves[0][0] for street in streets]
    widths = [street.road.kerb for street in streets]
    azimuths = [float(torch.atan2(street.sun[1], street.sun[0])) for street in streets]
    sunshine = [street.sunshine for street in streets]
    for values, spread in ((heights, 2), (leaves, 40), (bends, 2), (widths, 0.8), (azimuths, 2), (sunshine, 0.3)):
        assert max(values) - min(values) > spread
        assert len(set(values)) == len(streets) or isinstance(values[0], int)


def test_frames_made_side_by_side_are_the_same(tmp_path):
    threads, written = torch.get_num_threads(), []
    for workers in (1, 2):
        torch.set_num_threads(workers)
        try:
            path = synthetic.write_synthetic_drive(tmp_path / str(workers), 3, 9, moving=1)
            assert torch.get_num_threads() == workers
        finally:
            torch.set_num_threads(threads)
        written.append({file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()})
    assert written[0] == written[1]
    assert len(written[0]) == 2 * 3 + 4


@pytest.fixture(scope="module")
def moving_drive(tmp_path_factory) -> KittiDrive:
    return KittiDrive(synthetic.write_synthetic_drive(tmp_path_factory.mktemp("moving"), FRAMES, SEED, moving=2))


def in_map(drive: KittiDrive, index: int) -> tuple[np.ndarray, np.ndarray]:
    """The points of a scan and the place of the LiDAR, map frame."""
    frame = drive.frames[index]
    points = drive.read_scan(frame)[:, :3] @ frame.map_from_lidar[:3, :3].T + frame.map_from_lidar[:3, 3]
    return points, frame.map_from_lidar[:3, 3]


def raised(boxes: MovingBoxes, height: float) -> MovingBoxes:
    """The boxes without their lowest `height` metres."""
    poses, sizes = boxes.map_from_box.copy(), boxes.sizes - [0, 0, height]
    poses[:, 2, 3] += height / 2
    return MovingBoxes(poses, sizes)


def test_the_boxes_hold_the_points_on_moving_things_and_nothing_of_the_street(drive, moving_drive):
    frames = read_moving(moving_drive.path)
    assert len(frames) == FRAMES and all(boxes.map_from_box.shape == (2, 4, 4) for boxes in frames)
    for index, boxes in enumerate(frames):
        upper = raised(boxes, 0.5)
        for number in range(2):
            one = MovingBoxes(upper.map_from_box[number : number + 1], upper.sizes[number : number + 1])
            assert one.contain(in_map(moving_drive, index)[0]).sum() > 50
        assert not upper.contain(in_map(drive, index)[0], 0.0).any()


def test_what_has_moved_leaves_nothing_where_it_was(moving_drive):
    first, last = raised(read_moving(moving_drive.path)[0], 0.5), raised(read_moving(moving_drive.path)[-1], 0.5)
    steps = np.linalg.norm(last.map_from_box[:, :3, 3] - first.map_from_box[:, :3, 3], axis=1)
    assert (steps > 1).all()
    before, after = in_map(moving_drive, 0)[0], in_map(moving_drive, -1)[0]
    assert first.contain(before).sum() > first.contain(before[~last.contain(before)]).sum() > 50
    assert not (first.contain(after, 0.0) & ~last.contain(after)).any()


@pytest.mark.parametrize("index", range(FRAMES))
def test_the_static_world_is_the_same_outside_of_what_moving_things_hide(drive, moving_drive, index):
    boxes = read_moving(moving_drive.path)[index]
    static, lidar = in_map(drive, index)
    points, _ = in_map(moving_drive, index)
    away, _ = cKDTree(static).query(points)
    assert (away[~boxes.contain(points)] < 1e-3).all()
    lost, _ = cKDTree(points).query(static)
    rays = (static[lost > 1e-3] - lidar)[:, None] * np.linspace(0.02, 1, 400)[:, None]
    assert len(rays) > 500
    hidden = boxes.contain((lidar + rays).reshape(-1, 3), 0.15).reshape(len(rays), -1).any(1)
    assert hidden.all()


def test_moving_things_are_in_the_picture_too(drive, moving_drive):
    frame, boxes = drive.frames[0], read_moving(moving_drive.path)[0]
    seen, empty = moving_drive.read_image(frame), drive.read_image(frame)
    different = np.abs(
        moving_drive.read_image(moving_drive.frames[0]).astype(int) - drive.read_image(frame).astype(int)
    ).max(2)
    camera_from_map = np.linalg.inv(drive.map_from_camera(frame))
    ahead = (camera_from_map @ boxes.map_from_box[1])[:3, 3]
    u, v = drive.camera.project(ahead[None]).round().astype(int)[0]
    assert seen.shape == empty.shape
    assert (different[v - 3 : v + 4, u - 3 : u + 4] > 25).mean() > 0.5
    assert (different > 25).mean() < 0.2


def test_each_moving_thing_keeps_to_its_way():
    street = random_street(-25, 180, 5)
    traffic = Traffic(street, len(KINDS), 100, 1.0, 5)
    frames = [traffic.boxes(index) for index in range(100)]
    poses = np.array([boxes.map_from_box for boxes in frames])
    sizes = np.array([boxes.sizes for boxes in frames])
    lateral = street.road.lateral(torch.tensor(poses[..., 0, 3]), torch.tensor(poses[..., 1, 3])).numpy()
    steps = np.diff(poses[..., :3, 3], axis=0)
    forward = (steps * poses[:-1, :, :3, 0]).sum(-1)
    assert np.allclose(forward, np.linalg.norm(steps, axis=-1), rtol=0.02, atol=0.03)  # they go where they look
    oncoming, ahead, walking, cycling = range(4)
    assert (steps[:, oncoming, 0] < -0.6).all() and (steps[:, cycling, 0] < -0.3).all()
    assert (lateral[:, oncoming] > 0).all() and (lateral[:, cycling] < street.road.kerb).all()
    assert (steps[:, ahead, 0] > 0.5).all() and np.allclose(lateral[:, ahead], street.road.lane, atol=0.05)
    assert (street.road.kerb < np.abs(lateral[:, walking])).all()
    assert (np.abs(lateral[:, walking]) < street.road.walk).all()
    assert (sizes[:, :2, 0] > 3.5).all() and (sizes[:, 2:, 2] > 1.6).all() and (sizes[:, 2:, 1] < 0.8).all()
    assert np.allclose(sizes, sizes[0], atol=0.7) and np.allclose(sizes[..., 1:], sizes[0][:, 1:], atol=1e-5)


def test_moving_boxes_that_cannot_be_had_are_refused(drive, tmp_path):
    with pytest.raises(InputError, match="write the synthetic drive with moving things"):
        read_moving(drive.path)
    (tmp_path / "moving.json").write_text('{"frames": [[{"size": [1, 2]}]]}')
    with pytest.raises(InputError, match="cannot be read"):
        read_moving(tmp_path)
    for count in (-1, len(KINDS) + 1):
        with pytest.raises(InputError, match="0 to 4 moving things"):
            synthetic.write_synthetic_drive(tmp_path, 1, 0, moving=count)


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
    assert (np.abs(lateral - road.lane) < 0.45).all() and lateral.std() > 0.1
    assert np.allclose(poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1), np.eye(3))
    assert (poses[:, 2, 2] > np.cos(np.deg2rad(3))).all()


@pytest.mark.parametrize(("frames", "seed"), [(0, 0), (-3, 0), (5, -1), (5, 10_000)])
def test_impossible_requests_are_refused(tmp_path, frames, seed):
    with pytest.raises(InputError, match="at least one frame and a seed"):
        synthetic.write_synthetic_drive(tmp_path, frames, seed)
