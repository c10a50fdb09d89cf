"""RGB-D recordings: a room computed here, tilted as rooms of 7-Scenes are, and the real kitchen where it is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import open3d as o3d
import pytest
import torch
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from ep2ploc_core.cli import app
from ep2ploc_core.datasets.cli import queries_from_rgbd
from ep2ploc_core.datasets.gravity import up_direction
from ep2ploc_core.datasets.queries import Queries
from ep2ploc_core.datasets.rgbd import RgbdSource, find_frames, read_camera_pose, read_depth
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.build import BuildSettings, build_map
from ep2ploc_core.map.encode import encode_map
from ep2ploc_core.map.point_map import SITE_CHECKPOINT, PointMap
from ep2ploc_core.map.sources import open_source, reopen_source
from ep2ploc_core.model.checkpoint import load_network
from ep2ploc_core.training.scenes import map_scene
from ep2ploc_core.training.site import SITE_SCHEDULE, adapt_to_site

K = np.array([[130.0, 0, 80], [0, 130.0, 60], [0, 0, 1]])
WIDTH, HEIGHT = 160, 120
# The room's own frame has z up; the map's frame is turned against it.
MAP_FROM_ROOM = np.eye(4)
MAP_FROM_ROOM[:3, :3] = Rotation.from_euler("xyz", [100, 25, -40], degrees=True).as_matrix()
MAP_FROM_ROOM[:3, 3] = [1.0, 2.0, 3.0]
BOX = np.array([[-2.0, -1.5, 0.0], [2.0, 1.5, 2.5]])  # the room
CASE = np.array([[0.6, -0.4, 0.0], [1.1, 0.4, 0.8]])  # a cupboard in it


def room_from_camera(number: int) -> np.ndarray:
    """A camera that looks along +x, 25 degrees down, and pans."""
    axes = Rotation.from_euler("ZY", [number * 4.0 - 20, 25], degrees=True).as_matrix()
    pose = np.eye(4)
    pose[:3, :3] = axes @ np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    pose[:3, 3] = [-1.5, 0.1 * number - 0.5, 1.5]
    return pose


def depth_of_room(pose: np.ndarray) -> np.ndarray:
    """Metres along the optical axis `(HEIGHT, WIDTH)`: the room from within, the cupboard from outside."""
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH]
    rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], -1) @ pose[:3, :3].T
    with np.errstate(divide="ignore"):
        walls = np.sort(np.stack([(side - pose[:3, 3]) / rays for side in BOX]), 0)[1].min(-1)
        sides = np.sort(np.stack([(side - pose[:3, 3]) / rays for side in CASE]), 0)
    enters, leaves = sides[0].max(-1), sides[1].min(-1)
    return np.where((enters > 0) & (enters < leaves), np.minimum(enters, walls), walls)


def write_recording(path: Path, frames: int = 10, first: int = 0) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for number in range(frames):
        pose = room_from_camera(number)
        stem = path / f"frame-{first + number:06d}"
        millimetres = np.round(1000 * depth_of_room(pose)).astype(np.uint16)
        millimetres[:5] = 65535
        millimetres[5:8] = 0
        cv2.imwrite(f"{stem}.depth.png", millimetres)
        cv2.imwrite(f"{stem}.color.png", np.full((HEIGHT, WIDTH, 3), 102, np.uint8))
        np.savetxt(f"{stem}.pose.txt", MAP_FROM_ROOM @ pose)
    np.savetxt(path.parent / "camera-intrinsics.txt", K)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rgbd") / "room"
    write_recording(path)
    return path


def distance_to_surfaces(room: np.ndarray) -> np.ndarray:
    """Metres `(N,)` from points in the room's frame to the room's walls or the cupboard's surface."""
    wall = np.abs(np.concatenate([room - BOX[0], room - BOX[1]], 1)).min(1)
    outside = np.maximum(np.maximum(CASE[0] - room, room - CASE[1]), 0)
    inside = np.minimum(room - CASE[0], CASE[1] - room).min(1).clip(min=0)
    return np.minimum(wall, np.linalg.norm(outside, axis=1) + inside)


def test_points_lie_on_the_surfaces_and_none_between(recording: Path) -> None:
    source = RgbdSource(recording)
    scans = list(source.scans())
    assert len(source) == 10 and [scan.frame for scan in scans] == list(range(10))
    room_from_map = np.linalg.inv(MAP_FROM_ROOM)
    for scan in scans:
        assert len(scan.points) > 0.8 * WIDTH * HEIGHT / 16
        room_from_lidar = room_from_map @ scan.map_from_lidar
        room = scan.points[:, :3] @ room_from_lidar[:3, :3].T + room_from_lidar[:3, 3]
        assert distance_to_surfaces(room).max() < 0.002
    np.testing.assert_allclose(scans[0].points[:, 3], 0.4, atol=1e-6)
    assert [scan.frame for scan in source.scans(8)] == [8, 9]


def test_flying_pixels_are_left_out(tmp_path: Path) -> None:
    write_recording(tmp_path / "room", frames=1)
    file = tmp_path / "room" / "frame-000000.depth.png"
    depth = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    mixed = cv2.blur(depth[8:], (2, 2))  # what sensors make of an edge: depths between the two surfaces
    cv2.imwrite(str(file), np.concatenate([depth[:8], mixed]))
    (scan,) = RgbdSource(tmp_path / "room").scans()
    room_from_lidar = np.linalg.inv(MAP_FROM_ROOM) @ scan.map_from_lidar
    room = scan.points[:, :3] @ room_from_lidar[:3, :3].T + room_from_lidar[:3, 3]
    assert len(room) > 800 and distance_to_surfaces(room).max() < 0.06


def test_back_projection_is_that_of_open3d(recording: Path) -> None:
    source = RgbdSource(recording)
    mine = source.read_points(source.frames[2])[:, :3]
    intrinsics = o3d.camera.PinholeCameraIntrinsic(WIDTH, HEIGHT, K[0, 0], K[1, 1], K[0, 2], K[1, 2])
    millimetres = cv2.imread(str(recording / "frame-000002.depth.png"), cv2.IMREAD_UNCHANGED)
    theirs = o3d.geometry.PointCloud.create_from_depth_image(
        o3d.geometry.Image(millimetres), intrinsics, depth_trunc=5.0
    )
    distance = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(mine)).compute_point_cloud_distance(theirs)
    assert np.max(distance) < 1e-5


def test_up_is_found_in_a_tilted_frame(recording: Path) -> None:
    up = np.array(RgbdSource(recording).describe()["up"])
    assert np.degrees(np.linalg.norm(up - MAP_FROM_ROOM[:3, 2])) < 0.5


def test_up_without_level_surfaces_is_the_guess() -> None:
    guess = np.array([0, -2.0, 0])
    np.testing.assert_allclose(up_direction(np.zeros((0, 3)), np.zeros(0), guess), [0, -1, 0])
    np.testing.assert_allclose(up_direction(np.array([[1.0, 0, 0]]), np.ones(1), guess), [0, -1, 0])


def test_lost_poses_are_skipped_and_others_refused(tmp_path: Path) -> None:
    write_recording(tmp_path / "room", frames=6)
    for number, text in ((1, "nan " * 16), (2, "-inf " * 16), (3, "1.#QNAN " * 16)):
        rows = "\n".join(" ".join(text.split()[4 * row : 4 * row + 4]) for row in range(4))
        (tmp_path / "room" / f"frame-{number:06d}.pose.txt").write_text(rows)
    assert [frame.index for frame in find_frames(tmp_path / "room")] == [0, 4, 5]
    for text, says in (("1 2 3", "shape"), ("", "shape"), ("a b c d", "cannot be read"), ("7 0 0 0\n" * 4, "no pose")):
        (tmp_path / "pose.txt").write_text(text)
        with pytest.raises(InputError, match=says):
            read_camera_pose(tmp_path / "pose.txt")


def test_sequences_are_found_and_frames_held_out(tmp_path: Path) -> None:
    write_recording(tmp_path / "chess" / "seq-01", frames=3, first=5)
    write_recording(tmp_path / "chess" / "seq-02", frames=3)
    source = open_source(tmp_path / "chess", hold_out=[1007])
    assert isinstance(source, RgbdSource)
    assert [frame.index for frame in source.frames] == [1005, 1006, 1007, 2000, 2001, 2002]
    assert [scan.frame for scan in source.scans()] == [2000, 2001, 2002]
    assert [image.frame for image in source.images] == [2000, 2001, 2002]
    np.testing.assert_allclose(source.images[0].camera.matrix, K)
    again = reopen_source(source.describe())
    assert [scan.frame for scan in again.scans(1)] == [2001, 2002]


def test_a_camera_file_goes_before_the_intrinsics_of_the_layout(recording: Path, tmp_path: Path) -> None:
    other = RgbdSource(recording).camera.resize(2 * WIDTH, 2 * HEIGHT)
    other.to_yaml(tmp_path / "camera.yaml")
    assert RgbdSource(recording, tmp_path / "camera.yaml").camera.fx == pytest.approx(130.0)
    assert RgbdSource(recording, tmp_path / "camera.yaml").describe()["camera"] == str(tmp_path / "camera.yaml")


def test_colour_may_have_another_camera(tmp_path: Path) -> None:
    """Colour images of another size and focal length, painted with where their rays meet the room."""
    write_recording(tmp_path / "room", frames=2)
    wide = np.array([[90.0, 0, 99.5], [0, 90.0, 69.5], [0, 0, 1]])
    np.savetxt(tmp_path / "colour.txt", wide)
    for number in range(2):
        column = np.tile(np.arange(200, dtype=np.uint8), (140, 1))
        cv2.imwrite(str(tmp_path / f"room/frame-{number:06d}.color.png"), np.stack([column] * 3, -1))
    source = open_source(tmp_path / "room", colour_camera=tmp_path / "colour.txt")
    assert isinstance(source, RgbdSource)
    (first, _) = source.scans()
    x, _, z, grey = first.points.T
    assert np.abs(255 * grey - (90 * x / z + 99.5)).max() < 0.51  # the column that sees the point
    for again in (source, reopen_source(source.describe())):
        assert isinstance(again, RgbdSource)
        np.testing.assert_allclose(again.images[0].camera.matrix, wide)
        assert (again.images[0].camera.width, again.images[0].camera.height) == (200, 140)
        np.testing.assert_allclose(again.camera.matrix, K)
    queries_from_rgbd(tmp_path / "room", tmp_path / "queries", "1", colour_camera=tmp_path / "colour.txt")
    np.testing.assert_allclose(Queries(tmp_path / "queries").camera.matrix, wide)
    without = open_source(tmp_path / "room")  # then colour is taken to be seen by the depth camera, at its own size
    assert isinstance(without, RgbdSource)
    np.testing.assert_allclose(without.images[0].camera.matrix, without.camera.resize(200, 140).matrix)
    with pytest.raises(InputError, match="colour-camera"):
        (tmp_path / "cloud.ply").write_bytes(b"")
        open_source(tmp_path / "cloud.ply", colour_camera=tmp_path / "colour.txt")


def test_bad_files_get_a_sentence(tmp_path: Path) -> None:
    write_recording(tmp_path / "room", frames=2)
    file = tmp_path / "room" / "frame-000001.depth.png"
    whole = file.read_bytes()
    other_size = cv2.imencode(".png", np.full((10, 10), 1000, np.uint16))[1].tobytes()
    grey = cv2.imencode(".png", np.full((HEIGHT, WIDTH), 100, np.uint8))[1].tobytes()
    for content, says in (
        (whole[:200], "whole PNG"),
        (b"", "whole PNG"),
        (grey, "16 bits"),
        (other_size, "others are"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=says):
            list(RgbdSource(tmp_path / "room").scans())
    with pytest.raises(InputError, match="is no RGB-D recording"):
        RgbdSource(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_depth(tmp_path / "none.png")
    with pytest.raises(InputError, match="hold out less"):
        RgbdSource(tmp_path / "room", hold_out=[0, 1])
    (tmp_path / "camera-intrinsics.txt").write_text("585 0 320")
    with pytest.raises(InputError, match="camera-intrinsics"):
        RgbdSource(tmp_path / "room")


def test_queries_are_frames_of_the_recording(recording: Path, tmp_path: Path) -> None:
    """Of the frames asked for, those that are there; their poses and camera are the recording's."""
    result = CliRunner().invoke(
        app, ["queries", "from-rgbd", str(recording), "--out", str(tmp_path / "queries"), "--frames", "2,7:40:1"]
    )
    assert result.exit_code == 0, result.output
    queries = Queries(tmp_path / "queries")
    assert queries.frames is not None and queries.frames.tolist() == [2, 7, 8, 9]
    assert queries.map_from_camera is not None
    for number, pose in zip(queries.frames, queries.map_from_camera, strict=True):
        np.testing.assert_allclose(pose, MAP_FROM_ROOM @ room_from_camera(number), atol=1e-6)
    np.testing.assert_allclose(queries.camera.matrix, K)
    assert queries.image(1).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(InputError, match="among the frames 20:30"):
        queries_from_rgbd(recording, tmp_path / "none", "20:30", None)


@pytest.mark.parametrize("told_by", ["frames", "queries"])
def test_held_out_frames_are_neither_in_the_map_nor_learned_from(recording: Path, tmp_path: Path, told_by: str) -> None:
    hold_out = "8:20"
    if told_by == "queries":
        queries_from_rgbd(recording, tmp_path / "queries", hold_out, None)
        hold_out = str(tmp_path / "queries")
    arguments = [str(recording), "--out", str(tmp_path / "map"), "--voxel", "0.05", "--checkpoint", ""]
    result = CliRunner().invoke(app, ["map", "build", *arguments, "--hold-out", hold_out])
    assert result.exit_code == 0, result.output
    point_map = PointMap.open(tmp_path / "map")
    assert point_map.all_points().seen.max() == 4  # three before the first one that is held out stay out too
    assert map_scene(point_map).frames.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_room_to_learn_from_is_level_and_four_times_the_size(recording: Path, tmp_path: Path) -> None:
    """The cameras of a tilted recording see its points in the same directions, at four times the depth."""
    point_map = build_map(RgbdSource(recording), tmp_path / "map", BuildSettings(voxel_size=0.05))
    scene = map_scene(point_map)
    plain = point_map.all_points()
    frames = {frame.index: frame for frame in RgbdSource(recording).frames}
    assert scene.frames is not None and scene.spacing == 0.2
    for pose, number in zip(scene.map_from_camera, scene.frames, strict=True):
        camera_from_map = np.linalg.inv(frames[number].map_from_camera)
        metres = (plain.xyz + point_map.origin) @ camera_from_map[:3, :3].T + camera_from_map[:3, 3]
        normals = plain.attributes[:, 1:4] @ camera_from_map[:3, :3].T
        np.testing.assert_allclose((scene.points.xyz - pose[:3, 3]) @ pose[:3, :3], 4 * metres, atol=2e-4)
        np.testing.assert_allclose(scene.points.attributes[:, 1:4] @ pose[:3, :3], normals, atol=1e-5)
    height, z = scene.points.attributes[:, 5], scene.points.xyz[:, 2]
    low = plain.attributes[:, 5] < 1
    assert np.ptp(height[low] - z[low]) < 0.3  # the ground is one plane, 0.3 being 7.5 cm


def test_a_room_is_learned_in_the_frame_in_which_maps_are_encoded(recording: Path, tmp_path: Path) -> None:
    """After a single small step the descriptors are nearly those that the learned network gives the map anew."""
    point_map = build_map(RgbdSource(recording), tmp_path / "map", BuildSettings(voxel_size=0.05))
    adapt_to_site(torch.device("cpu"), tmp_path / "map", "edge", replace(SITE_SCHEDULE, steps=1))
    learned = PointMap.open(tmp_path / "map").all_points().descriptors
    encode_map(point_map, load_network(tmp_path / "map" / SITE_CHECKPOINT))
    anew = point_map.all_points().descriptors
    assert learned is not None and anew is not None
    assert np.abs(learned.astype(int) - anew).mean() < 1


@pytest.mark.skipif("EP2PLOC_DATA" not in os.environ, reason="EP2PLOC_DATA does not name a directory of real data")
def test_kitchen_is_level_and_its_floor_flat() -> None:
    source = RgbdSource(Path(os.environ["EP2PLOC_DATA"]) / "rgbd_kitchen", hold_out=list(range(400, 1000)))
    assert len(source) == 133 and max(image.frame for image in source.images) < 400
    up = np.array(source.describe()["up"])
    cloud = np.concatenate(
        [scan.points[:, :3] @ scan.map_from_lidar[:3, :3].T + scan.map_from_lidar[:3, 3] for scan in source.scans()]
    )
    height = cloud @ up
    floor = np.percentile(height, 1)
    assert 1 < np.percentile(height, 99) - floor < 2.5
    near_floor = cloud[np.abs(height - floor) < 0.1]
    plane, inliers = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(near_floor[::20])).segment_plane(0.02, 3, 500)
    assert len(inliers) > 0.7 * len(near_floor[::20])
    assert np.degrees(np.arccos(abs(plane[:3] @ up))) < 2
