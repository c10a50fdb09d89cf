"""Where a LiDAR was, from what a ROS 2 bag brings: odometry, poses or TF, and which of them to trust first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader

from ep2ploc_core.datasets.bag_file import list_topics
from ep2ploc_core.datasets.frame_motion import FrameMotion
from ep2ploc_core.errors import InputError

TF = "tf2_msgs/msg/TFMessage"
ODOMETRY = "nav_msgs/msg/Odometry"
POSES = (ODOMETRY, "geometry_msgs/msg/PoseStamped", "geometry_msgs/msg/PoseWithCovarianceStamped")
# Frames that stand still, best first: a map is corrected, odometry drifts. A name may follow a namespace.
FIXED_FRAMES = ("map", "odom", "world", "camera_init")


@dataclass
class PoseTrack:
    """One way to know the poses: the motion of the LiDAR in `fixed_frame`. `name`: its topic, for TF the frame too."""

    topic: str
    name: str
    fixed_frame: str
    motion: FrameMotion

    def at(self, lidar_frame: str, stamps: np.ndarray) -> np.ndarray:
        """Poses `(N, 4, 4)` map_from_lidar at times `(N,)` in seconds, NaN where unknown."""
        return self.motion.at(self.fixed_frame, lidar_frame, stamps)


class PoseTopics:
    """Collects the messages of a bag that tell poses. `asked`: the only topic to take them from; "" takes what is
    there. /tf_static is always collected: it leads from an odometry's child frame to the LiDAR."""

    def __init__(self, path: Path, bag: Reader, asked: str = "") -> None:
        self._path = path
        self.asked = asked
        self.connections = [
            connection
            for connection in bag.connections
            if connection.msgtype == TF or connection.topic == asked or (not asked and connection.msgtype == ODOMETRY)
        ]
        if asked:
            self._check(bag)
        self._transforms = FrameMotion(path)
        self._by_topic: dict[str, FrameMotion] = {}

    def add(self, connection: Connection, bag_time: int, message: Any) -> None:
        """One message of these connections, recorded at `bag_time` (ns)."""
        if connection.msgtype == TF:
            static = connection.topic.endswith("tf_static")
            for each in message.transforms:
                place = _place(each.transform.translation, each.transform.rotation)
                stamp = header_seconds(each.header, bag_time)
                self._transforms.add(each.header.frame_id, each.child_frame_id, stamp, place, static)
            return
        pose = message.pose.pose if hasattr(message.pose, "pose") else message.pose
        motion = self._by_topic.setdefault(connection.topic, FrameMotion(self._path))
        # A frame that odometry leaves unnamed must still be another than that of the child.
        parent, child = message.header.frame_id or FIXED_FRAMES[1], getattr(message, "child_frame_id", "")
        place = _place(pose.position, pose.orientation)
        motion.add(parent, child, header_seconds(message.header, bag_time), place)

    def tracks(self, lidar_frame: str) -> list[PoseTrack]:
        """All ways to know the poses of this frame, the best first: odometry in a map frame, TF from a map, other
        odometry (that with most messages first), TF from other fixed frames."""
        ranked: list[tuple[tuple, PoseTrack]] = []
        for topic, motion in self._by_topic.items():
            whole = motion.renamed("", lidar_frame).with_statics_of(self._transforms)
            for (parent, _), count in motion.moving_edges().items():
                if not whole.moves(parent, lidar_frame):
                    continue  # not linked, or the clouds are in the fixed frame already
                drifts = parent.split("/")[-1] != FIXED_FRAMES[0]
                ranked.append(((drifts, 0, -count, topic), PoseTrack(topic, topic, parent, whole)))
        for frame in self._transforms.frames():
            name = frame.split("/")[-1]
            if name in FIXED_FRAMES and self._transforms.moves(frame, lidar_frame):
                order = FIXED_FRAMES.index(name)
                track = PoseTrack("/tf", f"/tf (from {frame})", frame, self._transforms)
                ranked.append(((order > 0, 1, order, frame), track))
        tracks = [track for _, track in sorted(ranked, key=lambda pair: pair[0])]
        return [track for track in tracks if self.asked in ("", track.topic)]

    def find(self, lidar_frame: str, stamps: np.ndarray) -> PoseTrack | None:
        """The best track that knows the pose at half of these times `(N,)` in seconds, else the one that knows it at
        most; None where none knows any."""
        best, most = None, 0.0
        for track in self.tracks(lidar_frame):
            share = float(np.isfinite(track.at(lidar_frame, stamps)).all((1, 2)).mean())
            if share > most:
                best, most = track, share
            if most >= 0.5:
                break
        return best

    def between(self, target: str, source: str, stamps: np.ndarray) -> np.ndarray:
        """Poses `(N, 4, 4)` target_from_source of two frames by TF, NaN where unknown."""
        return self._transforms.at(target, source, stamps)

    def _check(self, bag: Reader) -> None:
        if self.asked not in bag.topics:
            raise InputError(f"{self._path} has no topic {self.asked}; it has {list_topics(bag)}.")
        kind = bag.topics[self.asked].msgtype
        if kind not in POSES and self.asked != "/tf":
            raise InputError(
                f"The topic {self.asked} of {self._path} is a {kind}, which tells no pose; give an Odometry, a "
                "PoseStamped, a PoseWithCovarianceStamped or /tf."
            )


def header_seconds(header: Any, bag_time: int) -> float:
    """The time of a message: that of its header, or that of its recording (ns) where the driver left the header 0."""
    return (header.stamp.sec * 1_000_000_000 + header.stamp.nanosec or bag_time) / 1e9


def _place(translation: Any, rotation: Any) -> tuple[float, ...]:
    return (translation.x, translation.y, translation.z, rotation.x, rotation.y, rotation.z, rotation.w)
