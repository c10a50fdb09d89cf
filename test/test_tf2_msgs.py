"""tf2_msgs, as built by tools/build_tf2_msgs.py where ROS came as wheels, is what a ROS machine has."""

import os
import random
import time

import pytest
from rosbags.typesys import Stores, get_typestore

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")
from geometry_msgs.msg import TransformStamped  # noqa: E402
from rclpy.serialization import deserialize_message, serialize_message  # noqa: E402
from tf2_msgs.msg import TFMessage  # noqa: E402

# What Jazzy's own tf2_msgs announces on the network.
TYPE_HASH = "RIHS01_e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087"


@pytest.fixture
def message() -> TFMessage:
    transform = TransformStamped()
    transform.header.stamp.sec, transform.header.stamp.nanosec = 12, 345
    transform.header.frame_id, transform.child_frame_id = "map", "camera"
    transform.transform.translation.x = 1.5
    transform.transform.rotation.z = transform.transform.rotation.w = 0.5**0.5
    return TFMessage(transforms=[transform, TransformStamped(child_frame_id="straße")])


@pytest.fixture
def node(monkeypatch):
    monkeypatch.setitem(os.environ, "ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    context = rclpy.Context()
    context.init(domain_id=random.SystemRandom().randint(1, 101))
    node = rclpy.create_node("tf2_msgs_test", context=context)
    yield node
    node.destroy_node()
    context.try_shutdown()


def test_a_message_comes_back_from_its_bytes(message):
    assert deserialize_message(serialize_message(message), TFMessage) == message


def test_another_implementation_reads_the_bytes(message):
    read = get_typestore(Stores.ROS2_JAZZY).deserialize_cdr(serialize_message(message), "tf2_msgs/msg/TFMessage")
    assert [transform.child_frame_id for transform in read.transforms] == ["camera", "straße"]
    assert read.transforms[0].header.stamp.nanosec == 345
    assert read.transforms[0].transform.translation.x == 1.5


def test_the_network_is_told_the_true_type_hash(node):
    node.create_publisher(TFMessage, "/tf", 10)
    deadline = time.monotonic() + 20
    while not (found := node.get_publishers_info_by_topic("/tf")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert str(found[0].topic_type_hash) == TYPE_HASH
    assert get_typestore(Stores.ROS2_JAZZY).hash_rihs01("tf2_msgs/msg/TFMessage") == TYPE_HASH


def test_a_published_transform_arrives(node, message):
    received: list[TFMessage] = []
    publisher = node.create_publisher(TFMessage, "/tf", 10)
    node.create_subscription(TFMessage, "/tf", received.append, 10)
    executor = rclpy.executors.SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    deadline = time.monotonic() + 20
    while not received and time.monotonic() < deadline:
        publisher.publish(message)
        executor.spin_once(timeout_sec=0.1)
    assert received[0] == message
