"""The `map_server`: shows the map, and sends the localizer the part of it that it asks for.

Publishes `map_points` (PointCloud2, latched, thinned for display), `map_info` (String, latched: YAML), `map_places`
(PointCloud2, latched: where to look for a camera that is anywhere), and for each request, with its stamp, `submap`
(PointCloud2 with descriptors) and, where the map has landmarks, `submap_landmarks` (PointCloud2); subscribes
`submap_request` (PoseStamped).
"""

from __future__ import annotations

import contextlib
import sys

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header, String

from ep2ploc_core.errors import Ep2plocError, InputError, MapError
from ep2ploc_core.landmarks.store import LandmarkStore
from ep2ploc_core.map.place_index import NO_PLACES, places_to_search
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_ros.clouds import cloud_from_landmarks, cloud_from_places, cloud_from_points
from ep2ploc_ros.health import ERROR, OK, WARN, Health
from ep2ploc_ros.map_info import MapDescription
from ep2ploc_ros.parameters import MapServerParameters, declare, follow_changes
from ep2ploc_ros.running import RunnableNode, run

_LANDMARKS_SHARE = 0.7  # of the submap's radius: images from farther away show little of what is there
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class MapServerNode(RunnableNode):
    """Serves one map directory; another one when the parameter `map_path` changes."""

    def __init__(self) -> None:
        super().__init__("map_server")
        self._settings = declare(self, MapServerParameters)
        self._health = Health(self)
        self._map: PointMap | None = None
        self._landmarks: LandmarkStore | None = None
        self._info_publisher = self.create_publisher(String, "map_info", LATCHED)
        self._points_publisher = self.create_publisher(PointCloud2, "map_points", LATCHED)
        self._places_publisher = self.create_publisher(PointCloud2, "map_places", LATCHED)
        self._submap_publisher = self.create_publisher(PointCloud2, "submap", QoSProfile(depth=2))
        self._landmarks_publisher = self.create_publisher(PointCloud2, "submap_landmarks", QoSProfile(depth=2))
        self.create_subscription(PoseStamped, "submap_request", self._on_request, QoSProfile(depth=2))
        follow_changes(self, self._settings, self._take_settings)
        with contextlib.suppress(Ep2plocError):  # said already; a map may be given later
            self._load(self._settings.map_path)

    def _take_settings(self, changed: MapServerParameters, names: set[str]) -> None:
        before, self._settings = self._settings, changed
        try:
            if "map_path" in names:  # also when it is the same one: the map may have been built again
                self._load(changed.map_path)
            elif "display_points" in names and self._map is not None:
                self._publish_points(self._map)
        except Exception:
            self._settings = before
            raise

    def _load(self, path: str) -> None:
        """Puts another map in place of the old one; when that fails the old one stays. Raises MapError or InputError
        with the reason, after saying it."""
        try:
            if not path:
                raise InputError("No map is given; set the parameter map_path to a map directory.")
            self._serve(PointMap.open(path))
        except (Ep2plocError, OSError, ValueError) as error:
            kept = f" The map {self._map.path} stays." if self._map else ""
            self._health.report(ERROR, f"{error}{kept}")
            raise error if isinstance(error, Ep2plocError) else MapError(str(error)) from error

    def _publish_points(self, point_map: PointMap) -> None:
        points = point_map.thinned(int(self._settings.display_points))
        self._points_publisher.publish(cloud_from_points(points, self._header()))

    def _header(self) -> Header:
        return Header(frame_id=self._settings.map_frame, stamp=self.get_clock().now().to_msg())

    def _serve(self, point_map: PointMap) -> None:
        try:
            places = places_to_search(point_map) or NO_PLACES
        except MapError as error:
            self.get_logger().error(str(error))  # with a first guess the map serves all the same
            places = NO_PLACES
        try:
            landmarks = point_map.landmark_store
        except MapError as error:
            self.get_logger().error(str(error))
            landmarks = None
        described = MapDescription.of(point_map, len(places), len(landmarks) if landmarks else 0)
        self._publish_points(point_map)
        self._map, self._landmarks = point_map, landmarks
        self._places_publisher.publish(cloud_from_places(places, point_map.origin, self._header()))
        self._info_publisher.publish(described.to_message())
        self.get_logger().info(f"serving {point_map.path} with {len(point_map)} points")
        values = {"map": described.path, "num_points": described.num_points, "checkpoint": described.checkpoint}
        if point_map.checkpoint:
            self._health.report(OK, "serving the map", **values)
        else:
            self._health.report(
                WARN,
                f"The map {point_map.path} has no descriptors, so nothing can be localized in it; "
                "build it again with --checkpoint.",
                **values,
            )

    def _on_request(self, request: PoseStamped) -> None:
        try:
            point_map, centre = self._asked(request)
            header = Header(frame_id=self._settings.map_frame, stamp=request.header.stamp)
            points = point_map.query(centre, self._settings.submap_radius)
            self._submap_publisher.publish(cloud_from_points(points, header))
            if self._landmarks is not None:
                views = self._landmarks.near(centre, _LANDMARKS_SHARE * self._settings.submap_radius)
                self._landmarks_publisher.publish(cloud_from_landmarks(views, point_map.origin, header))
        except (Ep2plocError, OSError, ValueError) as error:
            self._health.reject(f"A submap was not sent: {error}")

    def _asked(self, request: PoseStamped) -> tuple[PointMap, np.ndarray]:
        """The map and the place in it `(3,)` around which a submap is asked for; InputError where there is none."""
        if self._map is None:
            raise InputError("no map is loaded; set the parameter map_path.")
        frame = self._settings.map_frame
        if request.header.frame_id != frame:
            raise InputError(f"it was asked for in the frame '{request.header.frame_id}' instead of '{frame}'.")
        position = request.pose.position
        centre = np.array([position.x, position.y, position.z])
        if not np.isfinite(centre).all():
            raise InputError("it was asked for at a position that is not a number.")
        return self._map, centre + self._map.origin


def main() -> int:
    """Entry point of the executable."""
    return run(MapServerNode)


if __name__ == "__main__":
    sys.exit(main())
