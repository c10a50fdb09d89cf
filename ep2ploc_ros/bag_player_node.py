"""The `bag_player`: plays a bag where rosbag2 is not installed, with `/clock`.

Messages go out as they lie in the bag, without being decoded, under the names they were recorded with (remap as usual).
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
from pathlib import Path

from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time
from rosbags.interfaces import Connection, QosDurability
from rosbags.rosbag2 import Reader, ReaderError
from rosgraph_msgs.msg import Clock

from ep2ploc_core.errors import InputError
from ep2ploc_ros.health import OK, WARN, Health
from ep2ploc_ros.parameters import BagPlayerParameters, declare
from ep2ploc_ros.running import RunnableNode, run

_CLOCK_STEP = 0.01  # seconds of wall time between messages on /clock
_IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")


class BagPlayerNode(RunnableNode):
    """Plays one bag on a thread of its own; the node is finished when the bag is."""

    def __init__(self) -> None:
        super().__init__("bag_player")
        self._settings = declare(self, BagPlayerParameters)
        self._health = Health(self)
        self._clock_publisher = self.create_publisher(Clock, "/clock", QoSProfile(depth=10))
        self._publishers_by_topic: dict[str, Publisher] = {}
        self._image_topics: list[str] = []
        for connection in _connections(self._settings.bag):
            self._advertise(connection)
        self._stopping = threading.Event()
        self._player = threading.Thread(target=self._play_all, name="player", daemon=True)
        self._player.start()

    def stop(self) -> None:
        """Ends the player."""
        self._stopping.set()
        self._player.join(timeout=1.0)

    def _advertise(self, connection: Connection) -> None:
        try:
            package, _, name = connection.msgtype.split("/")
            kind = getattr(importlib.import_module(f"{package}.msg"), name)
        except (ImportError, AttributeError, ValueError):
            self._health.reject(f"{connection.topic} is not played: the type {connection.msgtype} is not installed.")
            return
        qos = QoSProfile(depth=10)
        profiles = getattr(connection.ext, "offered_qos_profiles", [])
        if any(profile.durability == QosDurability.TRANSIENT_LOCAL for profile in profiles):
            qos.durability = DurabilityPolicy.TRANSIENT_LOCAL
        publisher = self.create_publisher(kind, connection.topic, qos)
        self._publishers_by_topic[connection.topic] = publisher
        if connection.msgtype in _IMAGE_TYPES:
            self._image_topics.append(connection.topic)

    def _play_all(self) -> None:
        try:
            with Reader(Path(self._settings.bag)) as reader:
                self._wait_for_subscribers()
                self._health.report(OK, f"Playing {self._settings.bag}.")
                self._play(reader)
                while self._settings.loop and not self._stopping.is_set():
                    self._play(reader)
            self._stopping.wait(0.5)  # for the last messages to leave
        except Exception as error:  # a bag may hold anything
            if not self._stopping.is_set():
                self._health.report(WARN, f"The bag {self._settings.bag} ended early: {type(error).__name__}: {error}")
        self.finished = True

    def _wait_for_subscribers(self) -> None:
        wanted = self._settings.wait_for.split() or self._image_topics
        publishers = [self._publishers_by_topic[topic] for topic in wanted if topic in self._publishers_by_topic]
        deadline = time.monotonic() + self._settings.longest_wait
        while not all(publisher.get_subscription_count() for publisher in publishers):
            if time.monotonic() > deadline:
                self._health.report(WARN, f"Not all of {', '.join(wanted)} have a subscriber; playing all the same.")
                break
            if self._stopping.wait(0.05):
                return
        self._stopping.wait(0.5)  # a subscriber that is seen may not see us yet

    def _play(self, reader: Reader) -> None:
        first, start, count = reader.start_time, time.monotonic(), 0
        for connection, stamp, raw in reader.messages():
            if not self._sleep_until(first, start, stamp):
                return
            publisher = self._publishers_by_topic.get(connection.topic)
            if publisher is not None:
                publisher.publish(bytes(raw))
                count += 1
        self.get_logger().info(f"played {count} messages in {time.monotonic() - start:.1f} s")

    def _sleep_until(self, first: int, start: float, stamp: int) -> bool:
        """Waits for the moment of a stamp and keeps /clock going; False when the node is to stop."""
        rate = self._settings.rate
        due = start + (stamp - first) / 1e9 / rate
        while (left := due - time.monotonic()) > 0:
            self._tell_time(stamp - int(left * rate * 1e9))
            if self._stopping.wait(min(left, _CLOCK_STEP)):
                return False
        self._tell_time(stamp)
        return not self._stopping.is_set()

    def _tell_time(self, stamp: int) -> None:
        self._clock_publisher.publish(Clock(clock=Time(nanoseconds=stamp).to_msg()))


def _connections(bag: str) -> list[Connection]:
    """What a bag holds; raises InputError when it is none."""
    if not bag:
        raise InputError("No bag is given; set the parameter bag to a bag directory.")
    try:
        with Reader(Path(bag)) as reader:
            return list(reader.connections)
    except (ReaderError, OSError) as error:
        raise InputError(f"{bag} cannot be played: {error}") from error


def main() -> int:
    """Entry point of the executable."""
    return run(BagPlayerNode)


if __name__ == "__main__":
    sys.exit(main())
