"""Messages survive the way to numpy and back, and malformed ones are refused with a sentence."""

from __future__ import annotations

import array

import numpy as np
import pytest
import torch
import yaml
from geometry_msgs.msg import Pose
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, PointField
from std_msgs.msg import Header, String

from ep2ploc_core import se3
from ep2ploc_core.datasets.image_message import camera_from_message
from ep2ploc_core.errors import InputError
from ep2ploc_core.landmarks.landmark_view import LandmarkView
from ep2ploc_core.map.place_index import NO_PLACES, PlaceIndex
from ep2ploc_core.map.point_map import MapPoints
from ep2ploc_core.map.views import CELLS
from ep2ploc_ros.clouds import (
    cloud_from_landmarks,
    cloud_from_matches,
    cloud_from_places,
    cloud_from_points,
    landmarks_from_cloud,
    places_from_cloud,
    points_from_cloud,
)
from ep2ploc_ros.map_info import MapDescription
from ep2ploc_ros.messages import pose_from_message, pose_to_message


def camera_info(**change: object) -> CameraInfo:
    message = CameraInfo(width=64, height=48, distortion_model="plumb_bob", d=[0.0] * 5)
    message.k = [50.0, 0.0, 32.0, 0.0, 51.0, 24.0, 0.0, 0.0, 1.0]
    message.p = [40.0, 0.0, 30.0, 0.0, 0.0, 41.0, 23.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    for name, value in change.items():
        setattr(message, name, value)
    return message


def test_rectified_calibration_is_that_of_p() -> None:
    camera = camera_from_message(camera_info())
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (40, 41, 30, 23)
    assert camera.distortion == ()


def test_without_p_and_distortion_k_holds() -> None:
    assert camera_from_message(camera_info(p=[0.0] * 12)).fx == 50


def test_distorted_calibration_is_that_of_k_and_d() -> None:
    camera = camera_from_message(camera_info(d=[0.1, -0.2, 0.0, 0.0, 0.0]))
    assert camera.fx == 50
    assert camera.distortion == (0.1, -0.2, 0, 0, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"p": [float("nan")] * 12},
        {"k": [float("inf")] * 9, "p": [0.0] * 12},
        {"k": [0.0] * 9, "p": [0.0] * 12},
        {"d": [float("nan")] * 5},
        {"d": [0.1] * 3},
        {"d": [0.1] * 5, "distortion_model": "fairground_mirror"},
        {"width": 0},
    ],
)
def test_unusable_calibration_is_refused(change: dict) -> None:
    with pytest.raises(InputError):
        camera_from_message(camera_info(**change))


def test_pose_round_trip() -> None:
    pose = se3.from_quaternion(np.array([1.0, -2, 3]), np.array([0.1, 0.2, 0.3, 0.9]))
    assert np.allclose(pose_from_message(pose_to_message(pose)), pose, atol=1e-12)


@pytest.mark.parametrize("broken", ["nan", "zero", "long"])
def test_pose_without_meaning_is_refused(broken: str) -> None:
    message = Pose()
    if broken == "nan":
        message.position.x = float("nan")
    message.orientation.w = {"nan": 1.0, "zero": 0.0, "long": 3.0}[broken]
    with pytest.raises(InputError):
        pose_from_message(message)


def map_points(count: int, width: int | None) -> MapPoints:
    numbers = np.random.default_rng(2)
    descriptors = None if width is None else numbers.integers(-127, 128, (count, width)).astype(np.int8)
    return MapPoints(
        numbers.normal(size=(count, 3)).astype(np.float32),
        numbers.normal(size=(count, 6)).astype(np.float32),
        np.zeros((count, 2), np.uint16),
        descriptors,
    )


@pytest.mark.parametrize("count", [0, 1, 100])
@pytest.mark.parametrize("width", [None, 1, 64])
def test_cloud_round_trip(count: int, width: int | None) -> None:
    points = map_points(count, width)
    message = cloud_from_points(points, Header(frame_id="map"))
    back = points_from_cloud(message)
    assert np.array_equal(back.xyz, points.xyz)
    assert np.array_equal(back.attributes, points.attributes)
    if width is None:
        assert back.descriptors is None
    else:
        assert np.array_equal(back.descriptors, points.descriptors)
        field = message.fields[-1]
        assert (field.name, field.datatype, field.count) == ("descriptor", PointField.INT8, width)


def test_places_round_trip_relative_to_the_maps_origin() -> None:
    rng = np.random.default_rng(0)
    poses = se3.exp(torch.from_numpy(rng.uniform(-2, 2, (30, 6)))).numpy()
    origin = np.array([4e5, 5e6, 100.0])
    poses[:, :3, 3] += origin
    descriptors = rng.standard_normal((30, 256))
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    depths = rng.integers(-128, 128, (30, CELLS)).astype(np.int8)
    places = PlaceIndex(poses, descriptors.astype(np.float16), depths)
    back = places_from_cloud(cloud_from_places(places, origin, Header(frame_id="map")))
    poses[:, :3, 3] -= origin
    np.testing.assert_allclose(back.map_from_camera, poses, atol=1e-5)
    np.testing.assert_allclose(back.descriptors.astype(float), descriptors, atol=0.5 / 127 + 1e-3)
    np.testing.assert_array_equal(back.depths, depths)
    assert not len(places_from_cloud(cloud_from_places(NO_PLACES, np.zeros(3), Header())))
    unlearned = PlaceIndex(poses + 0.0, np.zeros((30, 0), np.float16), depths)
    assert places.is_learned and not places_from_cloud(cloud_from_places(unlearned, np.zeros(3), Header())).is_learned


def test_landmarks_come_back_from_a_message() -> None:
    rng = np.random.default_rng(3)
    origin = np.array([4e5, 5e6, 100.0])
    views = []
    for count in (40, 1, 25):
        pose = np.eye(4)
        pose[:3, :3] = Rotation.random(random_state=count).as_matrix()
        pose[:3, 3] = origin + rng.uniform(-50, 50, 3)
        descriptors = rng.integers(0, 256, (count, 128)).astype(np.uint8)
        views.append(LandmarkView(pose, descriptors, rng.uniform(-50, 50, (count, 3)).astype(np.float32)))
    back = landmarks_from_cloud(cloud_from_landmarks(views, origin, Header(frame_id="map")))
    for view, expected in zip(back, views, strict=True):
        np.testing.assert_allclose(view.map_from_camera, se3.moved(expected.map_from_camera, -origin), atol=1e-5)
        np.testing.assert_array_equal(view.descriptors, expected.descriptors)
        np.testing.assert_array_equal(view.xyz, expected.xyz)
    assert landmarks_from_cloud(cloud_from_landmarks([], origin, Header())) == []
    with pytest.raises(InputError, match="no field 'view_x'"):
        landmarks_from_cloud(cloud_from_points(map_points(10, 4), Header()))


def test_places_without_rotations_are_refused() -> None:
    places = PlaceIndex(np.tile(np.eye(4), (3, 1, 1)), np.ones((3, 8), np.float16), np.zeros((3, CELLS), np.int8))
    message = cloud_from_places(places, np.zeros(3), Header())
    values = np.frombuffer(bytes(message.data), np.uint8).reshape(3, message.point_step).copy()
    values[1, 12:28] = 0
    message.data = array.array("B", values.tobytes())
    with pytest.raises(InputError, match="rotations"):
        places_from_cloud(message)
    with pytest.raises(InputError, match="no field 'qx'"):
        places_from_cloud(cloud_from_points(map_points(10, 4), Header()))


def test_cloud_of_matches_holds_points_and_pixels() -> None:
    message = cloud_from_matches(np.arange(6.0).reshape(2, 3), np.array([[7.0, 8.0], [9.0, 10.0]]), Header())
    rows = np.frombuffer(message.data, np.float32).reshape(2, 5)
    assert [field.name for field in message.fields] == ["x", "y", "z", "u", "v"]
    assert rows.tolist() == [[0, 1, 2, 7, 8], [3, 4, 5, 9, 10]]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda m: setattr(m, "data", m.data[:-1]),
        lambda m: setattr(m, "width", 10**9),
        lambda m: setattr(m, "point_step", 8),
        lambda m: setattr(m, "point_step", 0),
        lambda m: setattr(m, "is_bigendian", True),
        lambda m: setattr(m, "fields", m.fields[1:]),
        lambda m: setattr(m, "fields", []),
        lambda m: setattr(m.fields[0], "offset", 10**6),
        lambda m: setattr(m.fields[0], "datatype", PointField.FLOAT64),
        lambda m: setattr(m.fields[0], "count", 3),
        lambda m: setattr(m.fields[-1], "count", 10**6),
        lambda m: setattr(m.fields[-1], "count", 0),
        lambda m: setattr(m.fields[-1], "datatype", 77),
        lambda m: m.data.__setitem__(slice(0, 4), array.array("B", np.float32(np.nan).tobytes())),
    ],
)
def test_malformed_cloud_is_refused(break_it) -> None:
    message = cloud_from_points(map_points(10, 4), Header())
    break_it(message)
    with pytest.raises(InputError):
        points_from_cloud(message)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"origin": [0, 0]},
        {"origin": [0, 0, float("nan")]},
        {"origin": ["a", "b", "c"]},
        {"origin": 3},
        {"places": -1},
        {"num_points": -1},
    ],
)
def test_a_map_info_without_meaning_is_refused(change: dict) -> None:
    good = {"path": "/m", "checkpoint": "", "checkpoint_file": "", "origin": [1.0, 2, 3], "voxel_size": 0.2}
    message = String(data=yaml.safe_dump({**good, "num_points": 9, "places": 2, **change}))
    if not change:
        assert MapDescription.from_message(message).places == 2
        return
    with pytest.raises(InputError, match="message is not that"):
        MapDescription.from_message(message)
