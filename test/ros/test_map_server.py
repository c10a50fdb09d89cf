"""A map_server process: latched cloud, submaps, reload, bad maps, Ctrl-C."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import DescribeParameters
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import String

from ep2ploc_core.landmarks.landmark_view import LandmarkView
from ep2ploc_core.landmarks.store import LandmarkWriter
from ep2ploc_core.map.point_map import MapInfo, PointMap, write_map
from ep2ploc_ros.clouds import landmarks_from_cloud, points_from_cloud
from ep2ploc_ros.map_info import MapDescription

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def request(x: float, frame: str = "map", nanosec: int = 123456789) -> PoseStamped:
    message = PoseStamped()
    message.header.frame_id = frame
    message.header.stamp.sec, message.header.stamp.nanosec = 1317042146, nanosec
    message.pose.position.x = float(x)
    message.pose.orientation.w = 1.0
    return message


def test_serves_a_late_joiner_and_sends_submaps(listener, start, small_map: PointMap) -> None:
    server = start("map_server_node", map_path=small_map.path, display_points=1000, submap_radius=20)
    listener.wait_for_diagnostic("map_server", "serving the map")
    clouds = listener.listen(PointCloud2, "map_points", LATCHED)  # joins after it was published
    infos = listener.listen(String, "map_info", LATCHED)
    listener.wait(lambda: clouds and infos)
    shown = points_from_cloud(clouds[0])
    assert len(shown) == 1000
    assert shown.descriptors is None
    assert clouds[0].header.frame_id == "map"
    described = MapDescription.from_message(infos[0])
    assert (described.checkpoint, described.num_points) == ("cafe0123", 5000)
    assert Path(described.path) == small_map.path

    submaps = listener.listen(PointCloud2, "submap")
    publisher = listener.node.create_publisher(PoseStamped, "submap_request", 2)
    listener.wait(lambda: submaps, meanwhile=lambda: publisher.publish(request(50)))
    expected = small_map.query(np.array([50.0, 0, 0]), 20)
    received = points_from_cloud(submaps[0])
    assert submaps[0].header.stamp == request(50).header.stamp
    assert np.array_equal(received.xyz, expected.xyz)
    assert np.array_equal(received.descriptors, expected.descriptors)
    assert np.array_equal(received.attributes, expected.attributes)
    assert server.interrupt() == 0


def test_landmarks_come_with_a_submap(listener, start, small_map: PointMap, tmp_path: Path) -> None:
    shutil.copytree(small_map.path, tmp_path / "map")
    small_map = PointMap.open(tmp_path / "map")
    rng = np.random.default_rng(0)
    with LandmarkWriter(small_map.path) as writer:
        for x in (0.0, 45.0, 52.0):
            pose = np.eye(4)
            pose[0, 3] = x
            descriptors = rng.integers(0, 256, (30, 128)).astype(np.uint8)
            writer.add(LandmarkView(pose, descriptors, rng.uniform(0, 50, (30, 3)).astype(np.float32)))
    start("map_server_node", map_path=small_map.path, submap_radius=20)
    listener.wait_for_diagnostic("map_server", "serving the map")
    infos = listener.listen(String, "map_info", LATCHED)
    landmarks = listener.listen(PointCloud2, "submap_landmarks")
    publisher = listener.node.create_publisher(PoseStamped, "submap_request", 2)
    listener.wait(lambda: landmarks and infos, meanwhile=lambda: publisher.publish(request(50)))
    assert MapDescription.from_message(infos[0]).landmarks == 90
    assert landmarks[0].header.stamp == request(50).header.stamp
    received = landmarks_from_cloud(landmarks[0])
    expected = small_map.landmarks(np.array([50.0, 0, 0]), 14)
    assert len(received) == len(expected) == 2
    for view, wanted in zip(received, expected, strict=True):
        assert np.array_equal(view.descriptors, wanted.descriptors) and np.array_equal(view.xyz, wanted.xyz)


def test_coordinates_are_relative_to_the_maps_origin(listener, start, small_map: PointMap, tmp_path: Path) -> None:
    origin = [462_000.0, 5_428_000.0, 110.0]
    points = small_map.all_points()
    far = write_map(tmp_path / "far", points, MapInfo(voxel_size=0.2, origin=origin))
    far.store_descriptors(points.descriptors, "cafe0123")
    start("map_server_node", map_path=far.path, submap_radius=20)
    submaps = listener.listen(PointCloud2, "submap")
    publisher = listener.node.create_publisher(PoseStamped, "submap_request", 2)
    listener.wait(lambda: submaps, meanwhile=lambda: publisher.publish(request(50)))
    assert len(points_from_cloud(submaps[0])) == len(small_map.query(np.array([50.0, 0, 0]), 20)) > 0


def test_bad_requests_are_turned_down_and_good_ones_still_answered(listener, start, small_map: PointMap) -> None:
    start("map_server_node", map_path=small_map.path, submap_radius=20)
    submaps = listener.listen(PointCloud2, "submap")
    publisher = listener.node.create_publisher(PoseStamped, "submap_request", 2)
    for broken in (request(float("nan"), nanosec=1), request(50, frame="base_link", nanosec=2)):
        listener.wait(
            lambda: (
                "last_rejected" in {value.key for value in listener.diagnostic("map_server").values}
                if listener.diagnostic("map_server")
                else False
            ),
            meanwhile=lambda broken=broken: publisher.publish(broken),
        )
    listener.wait(lambda: submaps, meanwhile=lambda: publisher.publish(request(50)))
    assert {message.header.stamp.nanosec for message in submaps} == {123456789}


def test_another_map_is_loaded_and_a_bad_one_is_not(listener, start, small_map: PointMap, tmp_path: Path) -> None:
    other = write_map(tmp_path / "other", small_map.query(np.zeros(3), 30), MapInfo(voxel_size=0.2))
    other.store_descriptors(other.query(np.zeros(3), 1e3).xyz.astype(np.int8), "beef4567")
    infos = listener.listen(String, "map_info", LATCHED)
    start("map_server_node", map_path=small_map.path)
    listener.wait(lambda: infos)
    assert listener.set_parameter("map_server", "map_path", str(other.path)).successful
    listener.wait(lambda: len(infos) > 1)
    assert MapDescription.from_message(infos[-1]).checkpoint == "beef4567"
    refused = listener.set_parameter("map_server", "map_path", str(tmp_path))
    assert not refused.successful
    assert "is not a map directory" in refused.reason
    assert not listener.set_parameter("map_server", "map_path", 7).successful
    status = listener.wait_for_diagnostic("map_server", "stays")
    assert status.level == status.ERROR
    assert len(infos) == 2
    submaps = listener.listen(PointCloud2, "submap")
    publisher = listener.node.create_publisher(PoseStamped, "submap_request", 2)
    listener.wait(lambda: submaps, meanwhile=lambda: publisher.publish(request(0)))
    assert len(points_from_cloud(submaps[0])) == len(other)


@pytest.mark.parametrize("path", ["", "/nowhere/at/all"])
def test_starts_without_a_usable_map_and_says_so(listener, start, path: str, small_map: PointMap) -> None:
    server = start("map_server_node", map_path=path)
    status = listener.wait_for_diagnostic("map_server", "map")
    assert status.level == status.ERROR
    assert listener.set_parameter("map_server", "map_path", str(small_map.path)).successful
    listener.wait_for_diagnostic("map_server", "serving")
    assert server.interrupt() == 0


def test_works_in_a_namespace(listener, start, small_map: PointMap) -> None:
    start("map_server_node", namespace="/robot", map_path=small_map.path)
    clouds = listener.listen(PointCloud2, "/robot/map_points", LATCHED)
    assert listener.wait(lambda: clouds)


def test_parameters_are_described_and_fixed_ones_are_read_only(listener, start, small_map: PointMap) -> None:
    start("map_server_node", map_path=small_map.path)
    client = listener.node.create_client(DescribeParameters, "map_server/describe_parameters")
    names = ["submap_radius", "map_frame"]
    answer = listener.wait_for_service(client, DescribeParameters.Request(names=names))
    radius, frame = answer.descriptors
    assert radius.type == ParameterType.PARAMETER_DOUBLE
    assert not radius.read_only
    assert radius.description
    assert radius.floating_point_range[0].to_value == 500
    assert frame.read_only
    assert "Fixed when the node starts" in frame.description


def test_settings_change_while_it_runs_and_bad_ones_are_refused_with_a_reason(
    listener, start, small_map: PointMap
) -> None:
    start("map_server_node", map_path=small_map.path, submap_radius=20, display_points=1000)
    clouds = listener.listen(PointCloud2, "map_points", LATCHED)
    submaps = listener.listen(PointCloud2, "submap")
    publisher = listener.node.create_publisher(PoseStamped, "submap_request", 2)
    listener.wait(lambda: clouds)
    assert listener.set_parameter("map_server", "display_points", 2000).successful  # a whole number will do
    listener.wait(lambda: len(clouds) > 1)
    assert len(points_from_cloud(clouds[-1])) == len(small_map.thinned(2000)) > 1000
    assert listener.set_parameter("map_server", "submap_radius", 40.0).successful
    listener.wait(lambda: submaps, meanwhile=lambda: publisher.publish(request(50)))
    assert len(points_from_cloud(submaps[0])) == len(small_map.query(np.array([50.0, 0, 0]), 40))
    for name, value, reason in (
        ("submap_radius", 9.0, "range"),
        ("submap_radius", 9, "between 10 and 500"),
        ("submap_radius", float("nan"), ""),
        ("submap_radius", "wide", "give a float"),
        ("display_points", [1.0, 2.0], "give a float"),
        ("map_frame", "earth", "read-only"),
    ):
        answer = listener.set_parameter("map_server", name, value)
        assert not answer.successful and answer.reason and reason in answer.reason, (name, value, answer)
    heard = len(submaps)
    listener.wait(lambda: len(submaps) > heard, meanwhile=lambda: publisher.publish(request(50)))
    assert submaps[-1].width == submaps[0].width


@pytest.mark.parametrize(("name", "value"), [("submap_radius", -3.0), ("submap_radius", "wide"), ("map_frame", 5)])
def test_a_parameter_that_cannot_be_is_one_sentence_and_exit_code_2(start, name: str, value: object) -> None:
    server = start("map_server_node", **{name: value})
    assert server.process.wait(timeout=60) == 2
    assert server.log.read_text().strip().splitlines()[-1].startswith(f"The parameter '{name}'")
    assert "Traceback" not in server.log.read_text()
