"""What the localizer publishes of a pose. Everything carries the stamp of its image."""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Path
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header

from ep2ploc_core.camera import Camera
from ep2ploc_core.localization import Localization
from ep2ploc_core.map.point_map import MapSource
from ep2ploc_core.visualization.overlay import draw_overlay
from ep2ploc_ros.clouds import cloud_from_matches
from ep2ploc_ros.messages import image_to_message, nanoseconds, pose_to_message
from ep2ploc_ros.transforms import Transforms

_PATH_LENGTH = 5000
_OVERLAY_RADIUS = 60.0  # metres


class Outputs:
    """The localizer's publishers: `pose`, `pose_with_covariance`, `path`, `matched_points`, `overlay`, and TF.

    What costs time to make (the last three topics) is made only while somebody listens.
    """

    def __init__(self, node: Node, map_frame: str, transforms: Transforms) -> None:
        self._map_frame = map_frame
        self._transforms = transforms
        self._pose = node.create_publisher(PoseStamped, "pose", QoSProfile(depth=10))
        self._uncertain = node.create_publisher(PoseWithCovarianceStamped, "pose_with_covariance", QoSProfile(depth=10))
        self._path = node.create_publisher(Path, "path", QoSProfile(depth=1))
        self._matches = node.create_publisher(PointCloud2, "matched_points", QoSProfile(depth=1))
        self._overlay = node.create_publisher(Image, "overlay", QoSProfile(depth=1))
        self._poses: deque[PoseStamped] = deque(maxlen=_PATH_LENGTH)

    def clear_path(self) -> None:
        """Begins a new path."""
        self._poses.clear()

    def publish(
        self, source: Header, image: np.ndarray, camera: Camera, found: Localization, point_map: MapSource
    ) -> None:
        """Publishes a pose that is believed. Raises MissingTransformError when TF lacks what its mode needs; all else
        is published all the same."""
        assert found.map_from_camera is not None
        header = Header(stamp=source.stamp, frame_id=self._map_frame)
        pose = PoseStamped(header=header, pose=pose_to_message(found.map_from_camera))
        self._pose.publish(pose)
        if found.covariance is not None:
            message = PoseWithCovarianceStamped(header=header)
            message.pose.pose = pose.pose
            message.pose.covariance = np.asarray(found.covariance, np.float64).ravel()
            self._uncertain.publish(message)
        try:
            self._transforms.send(source.stamp, found.map_from_camera, source.frame_id)
        finally:
            self._publish_path(pose)
            if self._matches.get_subscription_count():
                self._matches.publish(cloud_from_matches(found.points_map, found.pixels, header))
            if self._overlay.get_subscription_count():
                colours = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image
                points = point_map.query(found.map_from_camera[:3, 3], _OVERLAY_RADIUS)
                drawn = draw_overlay(
                    colours, camera, points, point_map.origin, found.map_from_camera, point_map.voxel_size
                )
                self._overlay.publish(image_to_message(drawn, source))

    def _publish_path(self, pose: PoseStamped) -> None:
        while self._poses and nanoseconds(self._poses[-1].header.stamp) >= nanoseconds(pose.header.stamp):
            self._poses.pop()  # time jumped back
        self._poses.append(pose)
        if self._path.get_subscription_count():
            self._path.publish(Path(header=pose.header, poses=list(self._poses)))
