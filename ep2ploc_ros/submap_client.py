"""Keeps the part of the map around the camera at hand: asks the map_server for it, and holds what it sends."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header

from ep2ploc_core.errors import InputError, MapError
from ep2ploc_core.landmarks.landmark_view import LandmarkView
from ep2ploc_core.map.point_map import MapPoints
from ep2ploc_ros.clouds import landmarks_from_cloud, points_from_cloud
from ep2ploc_ros.messages import nanoseconds, pose_to_message

_ASK_AGAIN_SECONDS = 2.0
_PATIENCE_SECONDS = 6.0
_MOST_UNANSWERED = 10  # requests that are remembered while no map_server answers


class SubmapCache:
    """A MapSource that holds the last submap. Its coordinates are those of the ROS map frame, so its origin is zero."""

    def __init__(
        self, checkpoint: str, voxel_size: float, fetch: Callable[[np.ndarray], None] = lambda centre: None
    ) -> None:
        """checkpoint: fingerprint of the network that made the descriptors. voxel_size: of the map, in metres. fetch:
        called before points around a place `(3,)` are looked up; it may `hold` others first."""
        self.origin = np.zeros(3)
        self.checkpoint = checkpoint
        self.voxel_size = voxel_size
        self._fetch = fetch
        self._centre: np.ndarray | None = None
        self._views: list[LandmarkView] = []
        self._points = MapPoints.concatenate([])
        self._last_query: tuple[tuple[float, ...], MapPoints] | None = None  # a camera asks for the same points often
        self._held_at = 0.0

    def hold(self, centre: np.ndarray, points: MapPoints) -> None:
        """Replaces the submap by the points around `centre` `(3,)`, map frame; the landmarks stay until others come."""
        self._centre, self._points = np.asarray(centre, np.float64), points
        self._last_query = None
        self._held_at = time.monotonic()

    def hold_landmarks(self, views: list[LandmarkView]) -> None:
        """Replaces the landmarks."""
        self._views = views

    def distance(self, position: np.ndarray) -> float:
        """Metres (horizontally) from the centre of the submap; infinite while there is none."""
        if self._centre is None:
            return float("inf")
        return float(np.linalg.norm((np.asarray(position) - self._centre)[:2]))

    def age(self) -> float | None:
        """Seconds since the submap came; None while there is none."""
        return None if self._centre is None else time.monotonic() - self._held_at

    def query(self, centre: np.ndarray, radius: float) -> MapPoints:
        """The held points within `radius` metres (horizontally) of `centre` `(3,)`, map frame."""
        self._fetch(np.asarray(centre))
        asked = (*centre[:2], radius)
        if self._last_query is None or self._last_query[0] != asked:
            x, y = (self._points.xyz[:, axis] - np.float32(centre[axis]) for axis in (0, 1))
            self._last_query = asked, self._points.select(x * x + y * y < radius * radius)
        return self._last_query[1]

    def landmarks(self, centre: np.ndarray, radius: float) -> list[LandmarkView]:
        """The held landmarks of mapping images taken within `radius` metres (horizontally) of `centre` `(3,)`, map
        frame."""
        self._fetch(np.asarray(centre))
        return [
            view for view in self._views if np.linalg.norm((view.map_from_camera[:3, 3] - centre)[:2]) < radius
        ]  # fmt: skip


class SubmapClient:
    """Fills a SubmapCache. `refresh`: metres from its centre at which the next submap is asked for; may be changed.
    `receive`: waits up to so many seconds for a message of a topic, and gives None when none came."""

    def __init__(
        self, node: Node, map_frame: str, refresh: float, receive: Callable[[str, float], PointCloud2 | None]
    ) -> None:
        self.cache = SubmapCache("", voxel_size=0.2)
        self._node = node
        self._map_frame = map_frame
        self.refresh = refresh
        self._receive = receive
        self._asked: dict[int, np.ndarray] = {}  # centres, by the stamp of the request
        self._asked_at = 0.0
        self._waits_for_landmarks = False
        self._early: PointCloud2 | None = None
        self._landmarks_of: int | None = None  # the stamp of the submap whose landmarks are held
        self._stamp: int | None = None  # of the submap that is held
        self._publisher = node.create_publisher(PoseStamped, "submap_request", QoSProfile(depth=2))

    def begin(self, checkpoint: str, voxel_size: float, has_landmarks: bool) -> SubmapCache:
        """Starts with nothing at hand, for a map with voxels of this size, encoded by the network of this
        fingerprint, with landmarks or without."""
        self._waits_for_landmarks = has_landmarks
        self._early = self._landmarks_of = self._stamp = None
        self.cache = SubmapCache(checkpoint, voxel_size, self._fetch)
        self._asked.clear()
        return self.cache

    def ensure(self, header: Header, map_from_camera: np.ndarray) -> bool:
        """Asks for a submap around a pose `(4, 4)` where one is due. True when the one at hand will do for it, and its
        landmarks are here, or have failed to come."""
        distance = self.cache.distance(map_from_camera[:3, 3])
        if distance > self.refresh:
            self._ask(header, map_from_camera)
        return distance <= 2 * self.refresh and not self._landmarks_are_due()

    def _fetch(self, place: np.ndarray) -> None:
        """Waits for a submap around a place `(3,)` when the one at hand does not reach it: a search looks at many
        places. Raises MapError when none comes."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while self.cache.distance(place) > 2 * self.refresh:
            pose = np.eye(4)
            pose[:3, 3] = place
            stamp = time.time_ns()
            header = Header()
            header.stamp.sec, header.stamp.nanosec = stamp // 10**9, stamp % 10**9
            self._ask(header, pose)
            asked = time.monotonic()
            message = self._receive("submap", _ASK_AGAIN_SECONDS)
            if message is not None:
                self.take(message)
                self._await_landmarks()
            elif time.monotonic() > until or time.monotonic() < asked + _ASK_AGAIN_SECONDS / 2:  # the node is ending
                raise MapError("The map_server sends no submap; is it running, and is its topic submap connected?")

    def _landmarks_are_due(self) -> bool:
        """Whether the landmarks of the submap at hand are still to be expected."""
        age = self.cache.age()
        if not self._waits_for_landmarks or self._landmarks_of == self._stamp or age is None:
            return False
        self._waits_for_landmarks = age < _ASK_AGAIN_SECONDS
        return self._waits_for_landmarks

    def _await_landmarks(self) -> None:
        """Waits for the landmarks of the submap at hand; where they fail to come, not again until some came."""
        until = time.monotonic() + _ASK_AGAIN_SECONDS
        while self._waits_for_landmarks and self._landmarks_of != self._stamp:
            message = self._receive("submap_landmarks", max(0.0, until - time.monotonic()))
            if message is None:
                self._waits_for_landmarks = False
                return
            try:
                self.take_landmarks(message)
            except InputError as error:  # a search can do without
                self._node.get_logger().warning(str(error))
                self._waits_for_landmarks = False

    def take(self, message: PointCloud2) -> None:
        """Holds a submap that was asked for; others are none of ours. Raises InputError when it cannot be used."""
        centre = self._asked.pop(nanoseconds(message.header.stamp), None)
        if centre is None:
            return
        points = points_from_cloud(message)
        if message.header.frame_id != self._map_frame or points.descriptors is None:
            raise InputError(
                f"The submap comes in the frame '{message.header.frame_id}' or without descriptors; give map_server "
                "and localizer the same map_frame, and an encoded map."
            )
        points.descriptors = np.ascontiguousarray(points.descriptors)  # once, for every image selects from them
        self.cache.hold(centre, points)
        self._stamp = nanoseconds(message.header.stamp)
        self._asked.clear()
        early, self._early = self._early, None
        if early is not None:
            self.take_landmarks(early)

    def take_landmarks(self, message: PointCloud2) -> None:
        """Holds the landmarks of the submap at hand, behind which they come. Raises InputError when they cannot be
        used."""
        stamp = nanoseconds(message.header.stamp)
        if stamp in self._asked:  # they came first
            self._early = message
        if stamp != self._stamp:
            return
        views = landmarks_from_cloud(message)
        if message.header.frame_id != self._map_frame:
            raise InputError(f"The landmarks come in the frame '{message.header.frame_id}'.")
        self.cache.hold_landmarks(views)
        self._landmarks_of, self._waits_for_landmarks = stamp, True

    def _ask(self, header: Header, map_from_camera: np.ndarray) -> None:
        now, position = time.monotonic(), map_from_camera[:3, 3]
        near = any(np.linalg.norm(centre - position) < self.refresh for centre in self._asked.values())
        if near and now - self._asked_at < _ASK_AGAIN_SECONDS:
            return
        self._asked_at = now
        if len(self._asked) >= _MOST_UNANSWERED:
            self._asked.pop(next(iter(self._asked)))  # the oldest
        self._asked[nanoseconds(header.stamp)] = position
        request = PoseStamped(pose=pose_to_message(map_from_camera))
        request.header.stamp, request.header.frame_id = header.stamp, self._map_frame
        self._publisher.publish(request)
