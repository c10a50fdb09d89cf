"""Writes down what the localizer says during a replay: one JSON object per line, in the order of arrival.

Every line has `kind`, `stamp` (ns) and `heard` (s, steady clock). Kinds: `image` (its camera_info was heard); `truth`
and `pose`, with a 4x4 `map_from_camera`; `tf`, also with `parent` and `child`; `diagnostic`, with `node`, `level`,
`message` and `values`; `ready`, once, at the start. What it says is also written as a bag beside the file:
`replay_bag` beside `replay.jsonl`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import Pose, PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Path as PathMessage
from rclpy.clock import Clock, ClockType
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo
from tf2_msgs.msg import TFMessage

from ep2ploc_core.errors import InputError
from ep2ploc_ros.bag_recorder import BagRecorder
from ep2ploc_ros.messages import nanoseconds, pose_from_message
from ep2ploc_ros.parameters import RecorderParameters, declare
from ep2ploc_ros.running import RunnableNode, run

_MANY = QoSProfile(depth=1000)
_IN_BAG = {
    "ground_truth/pose": PoseStamped,
    "pose": PoseStamped,
    "pose_with_covariance": PoseWithCovarianceStamped,
    "path": PathMessage,
    "/tf": TFMessage,
    "/tf_static": TFMessage,
    "/diagnostics": DiagnosticArray,
}


class RecorderNode(RunnableNode):
    """Subscribes to `camera_info`, `ground_truth/pose`, `pose`, `/tf` and `/diagnostics`."""

    def __init__(self) -> None:
        super().__init__("recorder")
        path = Path(declare(self, RecorderParameters).file)
        self._bag = BagRecorder(self, path.with_name(f"{path.stem}_bag"), _IN_BAG)  # first: it looks for its place
        try:
            self._file = open(path, "w", buffering=1)  # noqa: SIM115 (open as long as the node lives)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}.") from error
        self.create_subscription(CameraInfo, "camera_info", self._on_camera_info, _MANY)
        self.create_subscription(
            PoseStamped, "ground_truth/pose", lambda message: self._on_pose("truth", message), _MANY
        )
        self.create_subscription(PoseStamped, "pose", lambda message: self._on_pose("pose", message), _MANY)
        self.create_subscription(TFMessage, "/tf", self._on_tf, _MANY)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, _MANY)
        # A node without a timer may miss SIGTERM.
        self.create_timer(1.0, lambda: None, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._write("ready", 0)

    def stop(self) -> None:
        """Ends the bag."""
        self._bag.close()

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._write("image", nanoseconds(message.header.stamp))

    def _on_pose(self, kind: str, message: PoseStamped) -> None:
        self._write_pose(kind, message.header.stamp, message.pose)

    def _on_tf(self, message: TFMessage) -> None:
        for one in message.transforms:
            pose, place = Pose(orientation=one.transform.rotation), one.transform.translation
            pose.position.x, pose.position.y, pose.position.z = place.x, place.y, place.z
            self._write_pose("tf", one.header.stamp, pose, parent=one.header.frame_id, child=one.child_frame_id)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for one in message.status:
            self._write(
                "diagnostic",
                nanoseconds(message.header.stamp),
                node=one.name.split("/")[-1],
                level=one.level[0],
                message=one.message,
                values={value.key: value.value for value in one.values},
            )

    def _write_pose(self, kind: str, stamp: Time, pose: Pose, **what: str) -> None:
        try:
            target_from_source: np.ndarray = pose_from_message(pose)
        except InputError as error:
            self.get_logger().warning(f"not written down: {kind}: {error}", throttle_duration_sec=5.0)
            return
        self._write(kind, nanoseconds(stamp), **what, map_from_camera=target_from_source.tolist())

    def _write(self, kind: str, stamp: int, **what: Any) -> None:
        self._file.write(json.dumps({"kind": kind, "stamp": stamp, "heard": time.monotonic(), **what}) + "\n")


def main() -> int:
    """Entry point of the executable."""
    return run(RecorderNode)


if __name__ == "__main__":
    sys.exit(main())
