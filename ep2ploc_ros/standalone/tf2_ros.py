"""The part of tf2_ros that the nodes use: broadcasters, and a buffer that answers look-ups at a time."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterable

import numpy as np
from geometry_msgs.msg import Transform, TransformStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time
from scipy.spatial.transform import Rotation, Slerp
from tf2_msgs.msg import TFMessage

_KEPT_NANOSECONDS = 10_000_000_000
_STATIC = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class TransformException(Exception):  # noqa: N818 (tf2's name)
    """A look-up that cannot be answered."""


class LookupException(TransformException):
    """A frame is not known."""


class ConnectivityException(TransformException):
    """Two frames have no common parent."""


class ExtrapolationException(TransformException):
    """The time asked for is outside what was received."""


class TransformBroadcaster:
    """Publishes transforms on /tf."""

    def __init__(self, node: Node) -> None:
        self._publisher = node.create_publisher(TFMessage, "/tf", QoSProfile(depth=100))

    def sendTransform(self, transform: TransformStamped | Iterable[TransformStamped]) -> None:  # noqa: N802
        """Sends one transform or several."""
        many = [transform] if isinstance(transform, TransformStamped) else list(transform)
        self._publisher.publish(TFMessage(transforms=many))


class StaticTransformBroadcaster:
    """Publishes transforms that never change on /tf_static, also for those who join later."""

    def __init__(self, node: Node) -> None:
        self._publisher = node.create_publisher(TFMessage, "/tf_static", _STATIC)
        self._sent: dict[str, TransformStamped] = {}

    def sendTransform(self, transform: TransformStamped | Iterable[TransformStamped]) -> None:  # noqa: N802
        """Sends one transform or several, together with all that were sent before."""
        many = [transform] if isinstance(transform, TransformStamped) else list(transform)
        self._sent.update({one.child_frame_id: one for one in many})
        self._publisher.publish(TFMessage(transforms=list(self._sent.values())))


class _Edge:
    """The transforms from one frame to its parent over time; a static one holds a single entry."""

    def __init__(self, parent: str, is_static: bool) -> None:
        self.parent = parent
        self.is_static = is_static
        self.stamps: list[int] = []
        self.transforms: list[np.ndarray] = []

    def add(self, stamp: int, parent_from_child: np.ndarray) -> None:
        if self.is_static or (self.stamps and stamp < self.stamps[-1] - _KEPT_NANOSECONDS):
            self.stamps, self.transforms = [], []  # a new static value, or time jumped back
        at = bisect.bisect_right(self.stamps, stamp)
        self.stamps.insert(at, stamp)
        self.transforms.insert(at, parent_from_child)
        old = bisect.bisect_left(self.stamps, self.stamps[-1] - _KEPT_NANOSECONDS)
        del self.stamps[:old], self.transforms[:old]

    def at(self, stamp: int, child: str) -> np.ndarray:
        """parent_from_child at a time in nanoseconds; 0 means the newest."""
        if self.is_static or stamp == 0:
            return self.transforms[-1]
        if not self.stamps[0] <= stamp <= self.stamps[-1]:
            raise ExtrapolationException(
                f"the transform {self.parent} -> {child} is known from {self.stamps[0] / 1e9:.3f} s to "
                f"{self.stamps[-1] / 1e9:.3f} s, not at {stamp / 1e9:.3f} s"
            )
        right = bisect.bisect_left(self.stamps, stamp)
        if self.stamps[right] == stamp:
            return self.transforms[right]
        before, after = self.transforms[right - 1], self.transforms[right]
        part = (stamp - self.stamps[right - 1]) / (self.stamps[right] - self.stamps[right - 1])
        between = np.eye(4)
        rotations = Rotation.from_matrix([before[:3, :3], after[:3, :3]])
        between[:3, :3] = Slerp([0.0, 1.0], rotations)(part).as_matrix()
        between[:3, 3] = (1 - part) * before[:3, 3] + part * after[:3, 3]
        return between


class Buffer:
    """Remembers the last ten seconds of transforms and joins them along the tree of frames."""

    def __init__(self) -> None:
        self._edges: dict[str, _Edge] = {}
        self._lock = threading.Lock()

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        """Adds a transform that changes with time."""
        self._set(transform, is_static=False)

    def set_transform_static(self, transform: TransformStamped, authority: str) -> None:
        """Adds a transform that holds for ever."""
        self._set(transform, is_static=True)

    def clear(self) -> None:
        """Forgets what changes with time."""
        with self._lock:
            self._edges = {child: edge for child, edge in self._edges.items() if edge.is_static}

    def lookup_transform(self, target_frame: str, source_frame: str, time: Time) -> TransformStamped:
        """target_from_source at a time (zero: the newest). Raises TransformException, which says what is missing."""
        stamp = time.nanoseconds
        with self._lock:
            target, source = self._to_root(target_frame), self._to_root(source_frame)
            shared = next((frame for frame in source if frame in target), None)
            if shared is None:
                known = self._edges.keys() | {edge.parent for edge in self._edges.values()}
                for frame in (target_frame, source_frame):
                    if frame not in known:
                        raise LookupException(f"the frame '{frame}' is not known to TF")
                raise ConnectivityException(f"TF has no chain between '{target_frame}' and '{source_frame}'")
            shared_from_target = self._chain(target[: target.index(shared)], stamp)
            shared_from_source = self._chain(source[: source.index(shared)], stamp)
        return _to_message(np.linalg.inv(shared_from_target) @ shared_from_source, target_frame, source_frame, time)

    def _set(self, message: TransformStamped, is_static: bool) -> None:
        parent_from_child = _to_matrix(message.transform)
        if parent_from_child is None:
            return
        parent, child = message.header.frame_id.lstrip("/"), message.child_frame_id.lstrip("/")
        stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        with self._lock:
            edge = self._edges.get(child)
            if edge is None or edge.parent != parent or edge.is_static != is_static:
                edge = self._edges[child] = _Edge(parent, is_static)
            edge.add(stamp, parent_from_child)

    def _to_root(self, frame: str) -> list[str]:
        """The frame, its parent, and so on; a loop in the tree ends it."""
        chain = [frame]
        while chain[-1] in self._edges and self._edges[chain[-1]].parent not in chain:
            chain.append(self._edges[chain[-1]].parent)
        return chain

    def _chain(self, frames: list[str], stamp: int) -> np.ndarray:
        product = np.eye(4)
        for frame in frames:
            product = self._edges[frame].at(stamp, frame) @ product
        return product


class TransformListener:
    """Fills a buffer from /tf and /tf_static."""

    def __init__(self, buffer: Buffer, node: Node) -> None:
        self._buffer = buffer
        node.create_subscription(TFMessage, "/tf", self._moving, QoSProfile(depth=100))
        node.create_subscription(TFMessage, "/tf_static", self._static, _STATIC)

    def _moving(self, message: TFMessage) -> None:
        for transform in message.transforms:
            self._buffer.set_transform(transform, "")

    def _static(self, message: TFMessage) -> None:
        for transform in message.transforms:
            self._buffer.set_transform_static(transform, "")


def _to_matrix(message: Transform) -> np.ndarray | None:
    """The transform `(4, 4)`, or None when it holds no rotation (TF drops such messages too)."""
    translation, rotation = message.translation, message.rotation
    quaternion = np.array([rotation.x, rotation.y, rotation.z, rotation.w])
    matrix = np.eye(4)
    matrix[:3, 3] = translation.x, translation.y, translation.z
    if not np.isfinite(matrix).all() or not np.isfinite(quaternion).all() or np.linalg.norm(quaternion) < 0.5:
        return None
    matrix[:3, :3] = Rotation.from_quat(quaternion).as_matrix()
    return matrix


def _to_message(target_from_source: np.ndarray, target: str, source: str, time: Time) -> TransformStamped:
    message = TransformStamped(child_frame_id=source)
    message.header.frame_id = target
    message.header.stamp = time.to_msg()
    quaternion = Rotation.from_matrix(target_from_source[:3, :3]).as_quat()
    translation = message.transform.translation
    translation.x, translation.y, translation.z = map(float, target_from_source[:3, 3])
    rotation = message.transform.rotation
    rotation.x, rotation.y, rotation.z, rotation.w = map(float, quaternion)
    return message
