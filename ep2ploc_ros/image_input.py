"""Where images come from: the topic `image`, or `image/compressed` where there is no other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

from ep2ploc_core.datasets.image_message import image_from_compressed
from ep2ploc_core.errors import InputError
from ep2ploc_ros.messages import image_from_message


class ImageInput:
    """Subscribes, and calls `take` with every message. `reliability`: best_effort or reliable."""

    def __init__(self, node: Node, reliability: str, take: Callable[[Image | CompressedImage], None]) -> None:
        self._node = node
        self._take = take
        self._qos = QoSProfile(depth=1, reliability=ReliabilityPolicy[reliability.upper()])
        self._topic = node.resolve_topic_name("image")
        self._compressed: Subscription | None = None
        node.create_subscription(Image, "image", take, self._qos)
        node.create_timer(1.0, self._choose, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _choose(self) -> None:
        """Listens to compressed images only where there are no others: listening makes a camera driver compress."""
        topic = f"{self._topic}/compressed"
        wanted = not self._node.count_publishers(self._topic) and self._node.count_publishers(topic) > 0
        if wanted and self._compressed is None:
            self._compressed = self._node.create_subscription(CompressedImage, topic, self._take, self._qos)
        elif not wanted and self._compressed is not None:
            self._node.destroy_subscription(self._compressed)
            self._compressed = None


def pixels_of(message: Image | CompressedImage) -> np.ndarray:
    """Pixels `(H, W, 3)` RGB or `(H, W)` grey, uint8; raises InputError when they cannot be read, or when nobody says
    which frame the camera is."""
    if not message.header.frame_id:
        raise InputError("The image's header has no frame_id; set it in the camera driver.")
    return image_from_compressed(message) if isinstance(message, CompressedImage) else image_from_message(message)
