"""TF: what the localizer sends by its `tf_mode`, and what it needs to know for that.

| tf_mode         | sent                       | needed in TF                       |
|-----------------|----------------------------|------------------------------------|
| `map_to_camera` | map -> camera              | nothing                            |
| `map_to_base`   | map -> base                | base -> camera                     |
| `map_to_odom`   | map -> odom (REP-105)      | base -> camera, odom -> base       |

The topic `odom` and initial poses of the base need base -> camera too: without it odometry is not used, and for initial
poses the camera is taken to look along the base's x axis. A frame has one parent in TF, so map_to_camera is for a
camera that has none: where base -> camera is known it hides that, and what was known before is used.
"""

from __future__ import annotations

import contextlib

import numpy as np
from builtin_interfaces.msg import Time as Stamp
from geometry_msgs.msg import TransformStamped
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time

from ep2ploc_core import se3
from ep2ploc_core.errors import Ep2plocError
from ep2ploc_ros.ros_imports import Buffer, TransformBroadcaster, TransformException, TransformListener

# A camera at the robot's origin that looks along the robot's x axis (REP-103).
FORWARD_BASE_FROM_CAMERA = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])


class MissingTransformError(Ep2plocError):
    """TF does not know a transform that is needed."""


class Transforms:
    """Looks up what TF knows of the robot, and sends where it is in the map."""

    def __init__(self, node: Node, mode: str, map_frame: str, odom_frame: str, base_frame: str) -> None:
        self._mode = mode
        self._map, self._odom, self._base = map_frame, odom_frame, base_frame
        self._mounts: dict[tuple[str, str], np.ndarray] = {}  # base_from_camera by both frames, as last looked up
        self._hidden: set[str] = set()  # cameras that have got map as their parent from here
        self._buffer = Buffer()
        self._listener = TransformListener(self._buffer, node)
        self._broadcaster = TransformBroadcaster(node)
        # When simulated time jumps back (a bag in a loop) the buffer would take what comes now for old, and drop it.
        back = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1))
        clear = self._buffer.clear
        self._jump = node.get_clock().create_jump_callback(back, post_callback=lambda _: clear())

    def base_from_camera(self, camera_frame: str, needed_by: str, base_frame: str = "") -> np.ndarray:
        """Where the camera sits on the robot `(4, 4)`, now or as it was known last; raises MissingTransformError where
        it never was. `base_frame`: where it is not that of the parameters; visual odometry may name the camera's own.
        """
        base_frame = base_frame or self._base
        if base_frame == camera_frame:
            return np.eye(4)
        frames = (base_frame, camera_frame)
        if camera_frame in self._hidden:
            if frames not in self._mounts:
                raise MissingTransformError(
                    f"{needed_by} needs the transform {base_frame} -> {camera_frame} in TF, where it was not known "
                    "before tf_mode map_to_camera hid it; set tf_mode to map_to_base or map_to_odom."
                )
            return self._mounts[frames]
        try:
            self._mounts[frames] = self._lookup(base_frame, camera_frame, Time(), needed_by)
        except MissingTransformError:
            if frames not in self._mounts:
                raise
        return self._mounts[frames]

    def send(self, stamp: Stamp, map_from_camera: np.ndarray, camera_frame: str) -> None:
        """Sends the transform of the mode, with the image's stamp; raises MissingTransformError."""
        if self._mode == "map_to_camera":
            if camera_frame not in self._hidden:
                with contextlib.suppress(MissingTransformError):
                    self.base_from_camera(camera_frame, "")
                self._hidden.add(camera_frame)
            self._send(stamp, camera_frame, map_from_camera)
            return
        needed_by = f"tf_mode {self._mode}"
        map_from_base = map_from_camera @ np.linalg.inv(self._lookup(self._base, camera_frame, Time(), needed_by))
        if self._mode == "map_to_base":
            self._send(stamp, self._base, map_from_base)
            return
        odom_from_base = self._lookup(self._odom, self._base, Time.from_msg(stamp), needed_by)
        self._send(stamp, self._odom, map_from_base @ np.linalg.inv(odom_from_base))

    def _lookup(self, target: str, source: str, time: Time, needed_by: str) -> np.ndarray:
        try:
            found = self._buffer.lookup_transform(target, source, time).transform
        except TransformException as error:
            raise MissingTransformError(
                f"{needed_by} needs the transform {target} -> {source} in TF ({error}); "
                "publish it, or set the frame parameters to the names your robot uses."
            ) from error
        translation, rotation = found.translation, found.rotation
        return se3.from_quaternion(
            np.array([translation.x, translation.y, translation.z]),
            np.array([rotation.x, rotation.y, rotation.z, rotation.w]),
        )

    def _send(self, stamp: Stamp, child: str, map_from_child: np.ndarray) -> None:
        message = TransformStamped(child_frame_id=child)
        message.header.stamp = stamp
        message.header.frame_id = self._map
        translation, rotation = message.transform.translation, message.transform.rotation
        translation.x, translation.y, translation.z = map(float, map_from_child[:3, 3])
        rotation.x, rotation.y, rotation.z, rotation.w = map(float, se3.to_quaternion(map_from_child))
        self._broadcaster.sendTransform(message)
