"""The TF stand-in joins, interpolates and refuses as tf2 does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.time import Time

from ep2ploc_ros.health import Health
from ep2ploc_ros.odometry import OdometryInput
from ep2ploc_ros.standalone.tf2_ros import (
    Buffer,
    ConnectivityException,
    ExtrapolationException,
    LookupException,
)
from ep2ploc_ros.transforms import MissingTransformError, Transforms

SECOND = 10**9


def transform(parent: str, child: str, seconds: float, x: float, yaw: float = 0.0) -> TransformStamped:
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    message.header.stamp = Time(nanoseconds=int(seconds * SECOND)).to_msg()
    message.transform.translation.x = float(x)
    message.transform.rotation.z, message.transform.rotation.w = np.sin(yaw / 2), np.cos(yaw / 2)
    return message


def at(seconds: float) -> Time:
    return Time(nanoseconds=int(seconds * SECOND))


@pytest.fixture
def buffer() -> Buffer:
    """odom -> base moves along x by 1 m/s from 10 s to 12 s and turns; base -> camera is fixed; a tree apart."""
    buffer = Buffer()
    for k in range(3):
        buffer.set_transform(transform("odom", "base", 10 + k, k, yaw=0.2 * k), "test")
    buffer.set_transform_static(transform("base", "camera", 0, 0.5), "test")
    buffer.set_transform_static(transform("island", "hut", 0, 1), "test")
    return buffer


def test_joins_a_chain_and_interpolates(buffer: Buffer) -> None:
    found = buffer.lookup_transform("odom", "camera", at(11.5)).transform
    assert found.translation.x == pytest.approx(1.5 + 0.5 * np.cos(0.3))
    assert found.translation.y == pytest.approx(0.5 * np.sin(0.3))
    assert 2 * np.arctan2(found.rotation.z, found.rotation.w) == pytest.approx(0.3)


def test_looks_up_both_ways_and_between_siblings(buffer: Buffer) -> None:
    buffer.set_transform_static(transform("base", "lidar", 0, 2.0), "test")
    assert buffer.lookup_transform("camera", "lidar", at(0)).transform.translation.x == pytest.approx(1.5)
    assert buffer.lookup_transform("lidar", "camera", at(0)).transform.translation.x == pytest.approx(-1.5)


def test_time_zero_is_the_newest(buffer: Buffer) -> None:
    assert buffer.lookup_transform("odom", "base", at(0)).transform.translation.x == pytest.approx(2)


@pytest.mark.parametrize("seconds", [9.0, 13.0])
def test_does_not_extrapolate(buffer: Buffer, seconds: float) -> None:
    with pytest.raises(ExtrapolationException, match="odom -> base is known from 10"):
        buffer.lookup_transform("odom", "base", at(seconds))


def test_says_what_is_not_known_or_not_joined(buffer: Buffer) -> None:
    with pytest.raises(LookupException, match="'moon'"):
        buffer.lookup_transform("odom", "moon", at(11))
    with pytest.raises(ConnectivityException, match="'odom' and 'hut'"):
        buffer.lookup_transform("odom", "hut", at(11))


def test_time_that_jumps_back_starts_a_new_history(buffer: Buffer) -> None:
    buffer.set_transform(transform("odom", "base", 100, 7), "test")
    buffer.set_transform(transform("odom", "base", 1, 9), "test")
    assert buffer.lookup_transform("odom", "base", at(1)).transform.translation.x == pytest.approx(9)


def test_transforms_without_meaning_are_dropped(buffer: Buffer) -> None:
    broken = transform("odom", "base", 12.5, float("nan"))
    buffer.set_transform(broken, "test")
    broken = transform("odom", "base", 12.6, 1)
    broken.transform.rotation.w = 0.0
    buffer.set_transform(broken, "test")
    assert buffer.lookup_transform("odom", "base", at(0)).transform.translation.x == pytest.approx(2)


@pytest.fixture
def robot() -> Iterator[Node]:
    node = rclpy.create_node("robot")
    yield node
    node.destroy_node()


def test_where_the_camera_sits_is_looked_up_or_not_known(robot: Node) -> None:
    transforms = Transforms(robot, "map_to_camera", "map", "odom", "base_link")
    with pytest.raises(MissingTransformError, match="odom needs the transform base_link -> camera in TF"):
        transforms.base_from_camera("camera", "odom")
    with pytest.raises(MissingTransformError, match="odom needs the transform hull -> camera in TF"):
        transforms.base_from_camera("camera", "odom", "hull")
    assert np.array_equal(transforms.base_from_camera("camera", "odom", "camera"), np.eye(4))  # visual odometry


@pytest.mark.parametrize("known", [True, False])
def test_where_the_camera_sits_is_remembered_when_its_own_transform_hides_it(robot: Node, known: bool) -> None:
    transforms = Transforms(robot, "map_to_camera", "map", "odom", "base")
    buffer = transforms._buffer
    if known:
        buffer.set_transform_static(transform("base", "camera", 0, 0.5), "test")
    stamp = Time(nanoseconds=10 * SECOND).to_msg()
    transforms.send(stamp, np.eye(4), "camera")
    buffer.set_transform(transform("map", "base", 10, 3.0), "test")
    buffer.set_transform(transform("map", "camera", 10, 7.0), "test")  # what was sent comes back
    if known:
        assert transforms.base_from_camera("camera", "odom")[0, 3] == pytest.approx(0.5)
    else:
        with pytest.raises(MissingTransformError, match="before tf_mode map_to_camera hid it"):
            transforms.base_from_camera("camera", "odom")


def test_odometry_is_of_use_only_where_it_is_known_how_the_camera_sits(robot: Node) -> None:
    transforms = Transforms(robot, "map_to_base", "map", "odom", "base")
    health = Health(robot)
    odometry = OdometryInput(robot, transforms, health)
    for k in range(11):
        message = Odometry(child_frame_id="base")
        message.header.stamp = Time(nanoseconds=(100 + k) * SECOND // 10).to_msg()
        message.pose.pose.position.x, message.pose.pose.orientation.w = 0.1 * k, 1.0
        odometry._on_odometry(message)
    span = (10 * SECOND, 11 * SECOND)
    assert odometry.camera_motion(span, "camera") is None
    assert "not used: odom needs the transform base -> camera" in health._values["odometry"]
    transforms._buffer.set_transform_static(transform("base", "camera", 0, 0.5, yaw=np.pi / 2), "test")
    assert odometry.camera_motion(None, "camera") is None
    motion = odometry.camera_motion(span, "camera")
    assert motion is not None and motion[:3, 3] == pytest.approx([0, -1, 0])
