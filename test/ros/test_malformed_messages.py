"""A thousand malformed messages of every kind, drawn from a seed: both nodes outlive them and no wrong pose comes."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField, RegionOfInterest
from std_msgs.msg import Header, String

from ep2ploc_core import se3
from ep2ploc_ros.messages import pose_from_message

COUNT, SEED = 1000, 0
MOST_GROWTH = 300  # MB
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
ENCODINGS = ["rgb8", "bgr8", "mono8", "rgba8", "16UC1", "bayer_rggb8", "yuv422", "", "\x00", "ä" * 5000]
FRAMES = ["camera", "map", "", "/", "odom\n\t", "x" * 3000]
NUMBERS = [0.0, -0.0, 1.0, -1.0, 372.0, 1e-300, 1e9, 1e38, 1e300, float("inf"), float("-inf"), float("nan")]
SIZES = [0, 1, 2, 64, 192, 640, 1920, 65_535, 2**31, 2**32 - 1]
DESCRIPTION = "path: {0}\ncheckpoint: {0}\ncheckpoint_file: {0}\norigin: {0}\nvoxel_size: {1}\nnum_points: {0}\n"
LAUGHS = "a: &a [x, x, x]\n" + "".join(  # each line as long as nine of the line before, once somebody writes it out
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
TEXTS = [
    "", "{", "[]", "7", "path: 1", "[" * 5000, "path: &p [*p]", "\x00\x01", "!!python/object:os.system {}",
    DESCRIPTION.format("1", ".nan"), DESCRIPTION.format("''", "-1.0"), LAUGHS + DESCRIPTION.format("*j", "1.0"),
]  # fmt: skip


class Vandal:
    """Draws messages that are not as they should be, and good ones whose bytes are cut off, changed or random."""

    def __init__(self, node: Any, good: dict[str, Any]) -> None:
        self.random = np.random.default_rng(SEED)
        self.good = good
        latched = ("map_info", "map_places")
        self.publishers = {
            topic: node.create_publisher(type(message), topic, LATCHED if topic in latched else 2)
            for topic, message in good.items()
        }
        self.draw = {
            "image": self.image, "camera_info": self.camera_info, "/initialpose": self.initial_pose,
            "submap": self.cloud, "submap_landmarks": self.cloud, "map_places": self.cloud,
            "submap_request": self.request, "map_info": lambda: String(data=self.one_of(TEXTS)),
        }  # fmt: skip

    def send(self) -> None:
        """Publishes one message on one of the topics."""
        topic = self.one_of(list(self.draw))
        sound = self.random.random() < 0.5
        self.publishers[topic].publish(
            self.draw[topic]() if sound else self.broken(serialize_message(self.good[topic]))
        )

    def make_good(self) -> None:
        """Publishes the good message of every topic."""
        for topic, message in self.good.items():
            self.publishers[topic].publish(message)

    def one_of(self, choices: list) -> Any:
        return choices[self.random.integers(len(choices))]

    def broken(self, raw: bytes) -> bytes:
        """Cut off, random after the header, with some bytes changed, or random altogether (CDR: a header of four)."""
        how = self.random.integers(4)
        if how == 0:
            return raw[: self.random.integers(len(raw))]
        if how == 1:
            return raw[:4] + self.random.bytes(self.random.integers(300))
        if how == 2:
            changed = bytearray(raw)
            for _ in range(self.random.integers(1, 20)):  # near the beginning, where more than data lies
                changed[self.random.integers(min(len(raw), 120))] = self.random.integers(256)
            return bytes(changed)
        return self.random.bytes(self.random.integers(200))

    def header(self) -> Header:
        header = Header(frame_id=self.one_of(FRAMES))
        header.stamp.sec = self.one_of([0, 1, -1, 1001, 2**31 - 1, -(2**31)])
        header.stamp.nanosec = self.one_of([0, 1, 999_999_999, 10**9, 2**32 - 1])
        return header

    def numbers(self, count: int) -> list[float]:
        return [self.one_of(NUMBERS) for _ in range(count)]

    def data(self, length: int) -> array.array:
        return array.array("B", self.random.bytes(length))

    def image(self) -> Image:
        width, height, step = self.one_of(SIZES), self.one_of(SIZES), self.one_of(SIZES)
        if self.random.random() < 0.5:
            width, height, step = 640, 192, 1920
        length = self.one_of([0, 1, 368_639, 368_640, 368_641])
        return Image(
            header=self.header(), width=width, height=height, step=step, encoding=self.one_of(ENCODINGS),
            is_bigendian=self.one_of([0, 1, 255]), data=self.data(length),
        )  # fmt: skip

    def camera_info(self) -> CameraInfo:
        message = CameraInfo(header=self.header(), width=self.one_of(SIZES), height=self.one_of(SIZES))
        message.distortion_model = self.one_of(["", "plumb_bob", "equidistant", "none", "?" * 2000])
        message.d = self.numbers(self.one_of([0, 1, 4, 5, 8, 2000]))
        message.k, message.p = self.numbers(9), self.numbers(12)
        message.binning_x, message.binning_y = self.one_of(SIZES), self.one_of(SIZES)
        message.roi = RegionOfInterest(x_offset=self.one_of(SIZES), width=self.one_of(SIZES))
        return message

    def initial_pose(self) -> PoseWithCovarianceStamped:
        message = PoseWithCovarianceStamped(header=self.header())
        self.fill(message.pose.pose)
        return message

    def request(self) -> PoseStamped:
        message = PoseStamped(header=self.header())
        self.fill(message.pose)
        return message

    def fill(self, pose: Any) -> None:
        pose.position.x, pose.position.y, pose.position.z = self.numbers(3)
        turn = pose.orientation
        turn.x, turn.y, turn.z, turn.w = self.numbers(4)
        if self.random.random() < 0.5:
            turn.x, turn.y, turn.z, turn.w = 0.0, 0.0, 0.0, 1.0

    def cloud(self) -> PointCloud2:
        names = [field.name for field in self.good["submap"].fields]
        message = PointCloud2(header=self.header(), is_bigendian=bool(self.random.integers(2)))
        message.fields = [
            PointField(
                name=self.one_of([name, name, name, "", "x"]), offset=int(self.one_of([4 * k, 4 * k, 0, 2**32 - 1])),
                datatype=int(self.one_of([7, 7, 1, 0, 255])), count=self.one_of([1, 1, 0, 64, 2**32 - 1]),
            )
            for k, name in enumerate(names)
        ]  # fmt: skip
        message.width, message.height, message.point_step = (self.one_of([0, 1, 3, 100, 2**32 - 1]) for _ in range(3))
        length = message.width * message.height * message.point_step
        message.data = self.data(length if length < 1e6 else 99)
        return message


def test_a_thousand_malformed_messages_are_outlived(listener, start, site, camera) -> None:
    server = start("map_server_node", map_path=site.map_path)
    localizer = start("localizer_node")
    poses = listener.listen(PoseStamped, "pose")
    submaps = listener.listen(PointCloud2, "submap")
    landmarks = listener.listen(PointCloud2, "submap_landmarks")
    infos = listener.listen(String, "map_info", LATCHED)
    places = listener.listen(PointCloud2, "map_places", LATCHED)
    listener.wait_for_diagnostic("localizer", "Ready")
    listener.wait(lambda: infos and places and camera.ready())
    camera.poses.publish(camera.start_pose(pose=site.prior))
    listener.wait(lambda: poses and submaps and landmarks, meanwhile=camera.good)
    good = {
        "image": camera.image(), "camera_info": camera.info(), "/initialpose": camera.start_pose(pose=site.prior),
        "submap": submaps[0], "submap_landmarks": landmarks[0], "map_places": places[0], "map_info": infos[0],
        "submap_request": PoseStamped(header=camera.header("map")),
    }  # fmt: skip
    vandal = Vandal(listener.node, good)
    listener.wait(lambda: all(one.get_subscription_count() for one in vandal.publishers.values()))
    before = {one: one.megabytes for one in (server, localizer)}
    for number in range(COUNT):
        if number % 50 == 0:  # else all of them would meet a node that waits for a map
            vandal.make_good()
        vandal.send()
        rclpy.spin_once(listener.node, timeout_sec=0.005)
    stamp = len(listener.heard["/diagnostics"])
    listener.wait(lambda: len(listener.heard["/diagnostics"]) > stamp + 3)  # both have come back to their heartbeat
    status = listener.diagnostic("localizer")
    assert status.level != status.OK
    vandal.make_good()
    camera.poses.publish(camera.start_pose(pose=site.prior))
    listener.wait_for_diagnostic("localizer", "Tracking", meanwhile=camera.good)
    errors = [se3.pose_error(pose_from_message(pose.pose), site.truth) for pose in poses]
    assert max(metres for metres, _ in errors) < 0.5
    assert max(radians for _, radians in errors) < np.radians(2)
    for one, megabytes in before.items():
        print(f"{one.log.name}: {megabytes:.0f} MB before, {one.megabytes:.0f} MB after")
        assert one.megabytes < megabytes + MOST_GROWTH
    said = localizer.log.read_text()
    sentences = ("encoding", "bytes", "not a number", "calibration", "initial pose", "cloud", "map_info message")
    assert sum(words in said for words in sentences) >= 3  # of what comes at once the newest is looked at
    assert "Traceback" not in said + server.log.read_text()
    assert "A submap was not sent" in server.log.read_text()
    assert localizer.interrupt() == 0
    assert server.interrupt() == 0
