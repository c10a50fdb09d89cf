"""The robot's odometry as the localizer uses it: to know how the camera moved between two images."""

from __future__ import annotations

import threading

import numpy as np
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

from ep2ploc_core.errors import InputError
from ep2ploc_core.odometry_buffer import NoMotionError, OdometryBuffer
from ep2ploc_ros.health import Health
from ep2ploc_ros.messages import nanoseconds, pose_from_message
from ep2ploc_ros.transforms import MissingTransformError, Transforms

_QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)  # takes every publisher


class OdometryInput:
    """Listens to `odom`, if somebody publishes it. Messages come in on the executor's thread; motions are asked for on
    the worker's."""

    def __init__(self, node: Node, transforms: Transforms, health: Health) -> None:
        self._topic = node.resolve_topic_name("odom")
        self._transforms = transforms
        self._health = health
        self._buffer = OdometryBuffer()
        self._base_frame = ""
        self._received = 0
        self._lock = threading.Lock()
        node.create_subscription(Odometry, "odom", self._on_odometry, _QOS)
        health.note(odometry="not used: no odometry has arrived", odometry_received=0)

    def camera_motion(self, span: tuple[int, int] | None, camera_frame: str) -> np.ndarray | None:
        """camera_then_from_camera_now `(4, 4)` from one stamp (ns) to another, or None where the odometry does not tell
        it; the diagnostics say why. To be called for each image, without a span where nothing is wanted: the transform
        that is needed may be in TF only until the localizer sends its own."""
        if not self._received:
            return None
        try:
            base_from_camera = self._transforms.base_from_camera(camera_frame, "odom", self._base_frame)
        except MissingTransformError as error:
            self._health.note(odometry=f"not used: {error}")
            if span is not None:
                self._health.remark(f"Odometry is not used: {error}")
            return None
        if span is None:
            self._health.note(odometry="not used: there is no pose of an image yet to go on from")
            return None
        try:
            with self._lock:
                base_then_from_base_now = self._buffer.motion(*span)
        except NoMotionError as error:
            self._health.note(odometry=f"not used: {error}")
            return None
        return np.linalg.inv(base_from_camera) @ base_then_from_base_now @ base_from_camera

    def _on_odometry(self, message: Odometry) -> None:
        try:
            odom_from_base = pose_from_message(message.pose.pose)
        except InputError as error:
            self._health.reject(f"A message on {self._topic} is left out: {error}")
            return
        self._base_frame = message.child_frame_id
        with self._lock:
            jump = self._buffer.add(nanoseconds(message.header.stamp), odom_from_base)
        self._received += 1
        self._health.note(odometry_received=self._received)
        if jump:
            self._health.note(last_odometry_jump=jump)
            self._health.remark(f"The odometry on {self._topic} begins anew, since {jump}.")
