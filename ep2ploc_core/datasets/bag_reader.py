"""A ROS 2 bag as posed scans and images, without a ROS installation."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader

from ep2ploc_core import se3
from ep2ploc_core.datasets.bag_file import decode, list_topics, open_bag, read_messages
from ep2ploc_core.datasets.bag_images import BagImage, ImageMessages
from ep2ploc_core.datasets.bag_poses import FIXED_FRAMES, PoseTopics, PoseTrack, header_seconds
from ep2ploc_core.datasets.hold_out import IMAGE_MARGIN, SCAN_MARGIN, far_from
from ep2ploc_core.datasets.point_cloud2 import intensity_scale, read_cloud, sensor_points
from ep2ploc_core.datasets.posed_image import PosedImage
from ep2ploc_core.datasets.trajectory import MAX_GAP, Trajectory, read_trajectory
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.posed_scan import PosedScan

CLOUD = "sensor_msgs/msg/PointCloud2"
# Scans whose intensities tell the sensor's scale.
_SCALE_SCANS = 10
# An image less far and less turned than that, metres and radians, from the one taken before it adds nothing: a camera
# that stands still sends thirty of them a second.
_SPACING, _TURN = 0.2, np.radians(3)
_BRIDGED = 3.0  # scan periods between two poses, within which images get one
_log = logging.getLogger(__name__)


class BagSource:
    """The posed scans of a bag directory, or of a single `.mcap` or `.db3` file.

    Scans are the messages of one PointCloud2 topic (by default the one with most messages), in the order in which they
    were recorded; a scan's time is that of its header, or of its recording where the header has none. Poses come from
    `poses` (map_from_lidar: TUM rows by time, or as many rows of 12 numbers as there are scans), else from `pose_topic`
    (Odometry, PoseStamped, PoseWithCovarianceStamped, or /tf), else from the first of these that gives poses to half
    the scans: Odometry in a frame `map`, TF from `map`, other Odometry, TF from `odom`, `world` or `camera_init`.
    The way from an odometry's child frame to the LiDAR is looked up in /tf_static; a PoseStamped is taken as the
    LiDAR's own. Scans without a pose are left out and counted. Opening reads the bag once.

    image_topic, camera: see `ImageMessages`. lidar_from_camera: x y z qx qy qz qw, where TF does not link the two.
    hold_out: numbers of images, counted as they come on their topic; the scans and images around them stay out.

    Raises InputError when it is no bag, is cut off, has no cloud that can be used, or the poses asked for are missing.
    """

    def __init__(
        self,
        path: Path,
        poses: Path | None = None,
        points_topic: str = "",
        pose_topic: str = "",
        image_topic: str = "",
        camera: Path | None = None,
        lidar_from_camera: list[float] | None = None,
        hold_out: list[int] | None = None,
    ) -> None:
        self.path = Path(path)
        self.poses = None if poses is None else Path(poses)
        self.pose_topic, self.image_topic = pose_topic, image_topic
        self.camera, self.lidar_from_camera = camera, lidar_from_camera
        self.hold_out = sorted(hold_out or [])
        with open_bag(self.path) as bag:
            self.points_topic = _choose_points_topic(self.path, bag, points_topic)
            self._pose_topics = PoseTopics(self.path, bag, pose_topic)
            self._clouds = clouds = _survey(self.path, bag, self.points_topic, self._pose_topics)
        self._path = self._find_path()
        self.has_poses = self._path is not None
        map_from_lidar = self._scan_poses()
        known = np.isfinite(map_from_lidar).all((1, 2))
        kept = known & self._far_from_held_out()
        self._numbers, self._stamps = clouds.numbers[kept], clouds.stamps[kept]
        self._poses = map_from_lidar[kept]
        self.scans_without_pose = int((~known).sum())
        if known.any() and not kept.any():
            raise InputError(f"{path} has no scan with a pose that is not held out; hold out less.")
        _log.info("Scans from %s, poses from %s.", self.points_topic, self.pose_source or "nowhere")
        if clouds.unusable:
            _log.warning(
                "%s: %d messages on %s are left out: %s", self.path, clouds.unusable, self.points_topic, clouds.reason
            )
        if self.scans_without_pose:
            _log.warning("%s: %d scans have no pose and are left out.", self.path, self.scans_without_pose)

    def __len__(self) -> int:
        return len(self._numbers)

    def scans(self, first: int = 0) -> Iterator[PosedScan]:
        """The scans from number `first` on. Messages before it are passed over by their time, and not decoded."""
        if first >= len(self):
            return
        # Bags are not strictly in the order of time, so what the time filter lets pass is worked out in the same way.
        start = int(self._clouds.bag_times[self._numbers[first] :].min())
        passing = np.flatnonzero(self._clouds.bag_times >= start)
        rows = {int(number): row for row, number in enumerate(self._numbers) if row >= first}
        with open_bag(self.path) as bag:
            connections = bag.topics[self.points_topic].connections
            messages = read_messages(self.path, bag, connections, start)
            for number, (connection, _, data) in zip(passing, messages, strict=False):
                row = rows.get(int(number))
                if row is not None:
                    points = sensor_points(read_cloud(decode(data, connection)), self._clouds.full_scale)
                    yield PosedScan(int(number), points, self._poses[row], float(self._stamps[row]))

    @property
    def pose_source(self) -> str:
        """Where the poses are from; "" where nothing tells them."""
        if self._path is None:
            return ""
        return str(self.poses) if isinstance(self._path, Trajectory) else self._path.name

    @cached_property
    def posed_images(self) -> list[BagImage]:
        """All images whose pose is known, however close together, and held out or not. Raises InputError with the
        reason where there is none. The first time the topic is read once."""
        if self._path is None:
            raise InputError(
                f"{self.path} has no poses, so it is not known where its images were taken; give them with --poses: "
                "those that `map build` finds by LiDAR odometry stay beside its map, in MAP.poses.txt."
            )
        messages, lidar = self._messages, self._clouds.frame
        lidar_from_camera = np.full((len(messages.stamps), 4, 4), np.nan)
        if self.lidar_from_camera is None and messages.frame != lidar:  # one frame for both is that of neither
            lidar_from_camera = self._pose_topics.between(lidar, messages.frame, messages.stamps)
        elif self.lidar_from_camera is not None:
            given = se3.from_quaternion(*np.split(np.array(self.lidar_from_camera), [3]))
            lidar_from_camera = np.tile(given, (len(messages.stamps), 1, 1))
        poses = self._lidar_at(messages.stamps) @ lidar_from_camera
        known = np.flatnonzero(np.isfinite(poses).all((1, 2)))
        if not np.isfinite(lidar_from_camera).any():
            raise InputError(
                f"The TF of {self.path} does not link the camera '{messages.frame}' of {messages.topic} to the LiDAR "
                f"'{lidar}', so it is not known where its images were taken; give --lidar-from-camera."
            )
        if not len(known):
            raise InputError(f"No image on {messages.topic} of {self.path} was taken while the LiDAR's pose is known.")
        stamps = messages.stamps[known]
        scans = self._clouds.numbers[_nearest(self._clouds.stamps, stamps)]
        return [
            BagImage(number, stamp, self.path, messages.camera, poses[number], int(scan), messages=messages)
            for number, stamp, scan in zip(known.tolist(), stamps.tolist(), scans, strict=True)
        ]

    @property
    def images(self) -> list[PosedImage]:
        """Of the images with a pose those that are not held out, and moved or turned from the one before."""
        chosen: list[PosedImage] = []
        for image in self.posed_images:
            is_new = not chosen or _has_moved(chosen[-1].map_from_camera, image.map_from_camera)
            if is_new and far_from(self.hold_out, image.frame, IMAGE_MARGIN):
                chosen.append(image)
        return chosen

    def describe(self) -> dict[str, Any]:
        """What the map remembers of its source, enough to open it again, and what was found in it."""
        return {
            "kind": "ros2_bag",
            "path": str(self.path.resolve()),
            "poses": None if self.poses is None else str(self.poses.resolve()),
            "points_topic": self.points_topic,
            "pose_topic": self.pose_topic,
            "image_topic": self.image_topic,
            "camera": None if self.camera is None else str(self.camera.resolve()),
            "lidar_from_camera": self.lidar_from_camera,
            "hold_out": self.hold_out,
            "pose_source": self.pose_source,
            "scans_without_pose": self.scans_without_pose,
            "unusable_messages": self._clouds.unusable,
        }

    @cached_property
    def _messages(self) -> ImageMessages:
        return ImageMessages(self.path, self.image_topic, self.camera)

    def _find_path(self) -> Trajectory | PoseTrack | None:
        """What tells the poses of the scans; None when nothing does."""
        clouds = self._clouds
        if self.poses is not None:
            return self._path_of_file(self.poses)
        found = self._pose_topics.find(clouds.frame, clouds.stamps)
        if found is not None:
            return found
        if self.pose_topic:
            raise InputError(
                f"{self.pose_topic} of {self.path} gives no scan on {self.points_topic} a pose: their times do not "
                f"meet, or /tf_static does not link its frame to '{clouds.frame}'; give --poses."
            )
        if clouds.frame.split("/")[-1] in FIXED_FRAMES:
            raise InputError(
                f"The clouds on {self.points_topic} of {self.path} are in the frame '{clouds.frame}', not in a "
                "sensor's; name the topic of the LiDAR's own scans with --points-topic."
            )
        return None

    def _path_of_file(self, file: Path) -> Trajectory:
        trajectory, stamps = read_trajectory(file), self._clouds.stamps
        if trajectory.stamps is None:
            if len(trajectory) != len(stamps):
                raise InputError(
                    f"{file} has {len(trajectory)} rows, and {self.path} has {len(stamps)} scans on "
                    f"{self.points_topic}; give a row for each, or TUM rows (time x y z qx qy qz qw)."
                )
            return trajectory
        if not np.isfinite(trajectory.at(stamps)).any():
            raise InputError(
                f"The times of {file} ({trajectory.stamps[0]:.1f} to {trajectory.stamps[-1]:.1f} s) meet none of the "
                f"scans of {self.path} ({stamps.min():.1f} to {stamps.max():.1f} s); give both in one clock."
            )
        return trajectory

    def _scan_poses(self) -> np.ndarray:
        """map_from_lidar `(N, 4, 4)` of all usable scans, NaN where unknown; identities when nothing tells."""
        if self._path is None:
            return np.tile(np.eye(4), (len(self._clouds.stamps), 1, 1))
        if isinstance(self._path, Trajectory) and self._path.stamps is None:
            return self._path.poses
        if isinstance(self._path, Trajectory):
            return self._path.at(self._clouds.stamps)
        return self._path.at(self._clouds.frame, self._clouds.stamps)

    def _lidar_at(self, stamps: np.ndarray) -> np.ndarray:
        """map_from_lidar `(M, 4, 4)` at the times of images `(M,)` in seconds, NaN where unknown."""
        path, clouds = self._path, self._clouds
        assert path is not None
        if isinstance(path, PoseTrack):
            return path.at(clouds.frame, stamps)
        times, first = np.unique(clouds.stamps if path.stamps is None else path.stamps, return_index=True)
        usual = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        return Trajectory(path.path, path.poses[first], times).at(stamps, max(MAX_GAP, _BRIDGED * usual))

    def _far_from_held_out(self) -> np.ndarray:
        """Which of the usable scans `(N,)` are no neighbours, in time, of images that are held out."""
        stamps = self._clouds.stamps
        far = np.ones(len(stamps), bool)
        if not self.hold_out:
            return far
        held = self._messages.stamps[[number for number in self.hold_out if number < len(self._messages.stamps)]]
        period = float(np.median(np.diff(np.sort(stamps)))) if len(stamps) > 1 else 0.0
        for stamp in held[np.isfinite(held)]:
            far &= np.abs(stamps - stamp) > (SCAN_MARGIN + 0.5) * period
        return far


def _nearest(known: np.ndarray, stamps: np.ndarray) -> np.ndarray:
    """Which of the times `(N,)`, in any order, is nearest to each of `(M,)`."""
    order = np.argsort(known)
    after = np.searchsorted(known[order], stamps).clip(1, max(1, len(known) - 1))
    before, after = order[after - 1], order[np.minimum(after, len(known) - 1)]
    return np.where(np.abs(known[before] - stamps) <= np.abs(known[after] - stamps), before, after)


def _has_moved(before: np.ndarray, now: np.ndarray) -> bool:
    metres, radians = se3.pose_error(before, now)
    return metres > _SPACING or radians > _TURN


@dataclass
class _Clouds:
    """The cloud messages of a topic: `bag_times` `(M,)` ns of all; `numbers` `(N,)` (among the M) and header `stamps`
    `(N,)` in seconds of those that can be used, which are all in `frame`; how many not, and why the first is not."""

    bag_times: np.ndarray
    numbers: np.ndarray
    stamps: np.ndarray
    frame: str
    full_scale: float
    unusable: int
    reason: str


def _survey(path: Path, bag: Reader, points_topic: str, pose_topics: PoseTopics) -> _Clouds:
    """Reads the bag once: checks the clouds without converting their points, and collects the poses."""
    bag_times: list[int] = []
    numbers: list[int] = []
    stamps: list[float] = []
    intensities: list[np.ndarray] = []
    frame, reason = "", ""
    connections: list[Connection] = [*bag.topics[points_topic].connections, *pose_topics.connections]
    for connection, bag_time, data in read_messages(path, bag, connections):
        is_cloud = connection.topic == points_topic
        if is_cloud:
            bag_times.append(bag_time)
        try:
            message = decode(data, connection)
            if not is_cloud:
                pose_topics.add(connection, bag_time, message)
                continue
            cloud = read_cloud(message)
        except InputError as error:
            reason = reason or (str(error) if is_cloud else "")
            continue
        frame = frame if numbers else message.header.frame_id.lstrip("/")
        if message.header.frame_id.lstrip("/") != frame:
            reason = reason or f"One is in the frame '{message.header.frame_id}', the first is in '{frame}'."
            continue
        numbers.append(len(bag_times) - 1)
        stamps.append(header_seconds(message.header, bag_time))
        if cloud.size and len(intensities) < _SCALE_SCANS and "intensity" in (cloud.dtype.names or ()):
            intensities.append(cloud["intensity"].ravel())
    if not numbers:
        reason = reason or "There is none; if its index should be wrong, give the .mcap or .db3 file itself."
        raise InputError(f"{path} has no cloud on {points_topic} that can be used. {reason}")
    full_scale = intensity_scale(np.concatenate(intensities)) if intensities else 1.0
    unusable = len(bag_times) - len(numbers)
    return _Clouds(
        np.array(bag_times, np.int64), np.array(numbers), np.array(stamps), frame, full_scale, unusable, reason
    )


def _choose_points_topic(path: Path, bag: Reader, asked: str) -> str:
    clouds = {name: info.msgcount for name, info in bag.topics.items() if info.msgtype == CLOUD}
    if asked and asked not in clouds:
        raise InputError(f"{path} has no PointCloud2 topic {asked}; it has {list_topics(bag)}.")
    if not clouds:
        raise InputError(f"{path} has no PointCloud2 topic, so no scans; it has {list_topics(bag)}.")
    chosen = asked or min(clouds, key=lambda name: (-clouds[name], name))
    if len(clouds) > 1 and not asked:
        _log.info("Of %s the scans are taken from %s.", ", ".join(sorted(clouds)), chosen)
    return chosen
