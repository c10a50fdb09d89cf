"""A KITTI drive as a ROS 2 bag, in the drive's own time, without a ROS installation.

| topic                 | type                      | what                                                       |
|-----------------------|---------------------------|------------------------------------------------------------|
| `/camera/image`       | Image (rgb8)              | rectified left colour image                                |
| `/camera/camera_info` | CameraInfo                | its calibration                                            |
| `/points`             | PointCloud2               | LiDAR scan: x y z intensity, in `lidar`                    |
| `/tf_static`          | TFMessage                 | `base_link` -> `lidar` (the same place), -> `camera`       |
| `/initialpose`        | PoseWithCovarianceStamped | poses to start from, just before the image of their frame  |
| `/ground_truth/pose`  | PoseStamped               | the drive's pose of the camera; no node listens to it      |
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from ep2ploc_core import se3
from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.kitti import Frame, KittiDrive
from ep2ploc_core.errors import InputError

CAMERA_FRAME, LIDAR_FRAME, BASE_FRAME, MAP_FRAME = "camera", "lidar", "base_link", "map"
BAG_VERSION: Literal[8] = (
    8  # of the metadata: the newest that Humble's rosbag2 reads too (in 9, QoS is no text any more)
)
INITIAL_POSE_LEAD = 20_000_000  # nanoseconds
_TOPICS = {
    "/tf_static": "tf2_msgs/msg/TFMessage",
    "/camera/camera_info": "sensor_msgs/msg/CameraInfo",
    "/camera/image": "sensor_msgs/msg/Image",
    "/points": "sensor_msgs/msg/PointCloud2",
    "/initialpose": "geometry_msgs/msg/PoseWithCovarianceStamped",
    "/ground_truth/pose": "geometry_msgs/msg/PoseStamped",
}


def write_kitti_bag(
    drive: KittiDrive,
    out: Path,
    frames: list[int] | None = None,
    initial_poses: dict[int, np.ndarray] | None = None,
    storage: str = "mcap",
) -> int:
    """Writes the frames of these numbers (all by default) into the bag directory `out`; returns how many.

    initial_poses: map_from_camera `(4, 4)` by frame number. storage: "mcap" or "sqlite3". A bag that is there already
    is replaced. Raises InputError when `out` is something else, or a frame cannot be read.
    """
    out = Path(out)
    if out.exists() and not (out / "metadata.yaml").exists():
        raise InputError(f"{out} exists and is not a bag, so it is left alone; give another directory.")
    try:
        plugin = StoragePlugin[storage.upper()]
    except KeyError as error:
        raise InputError(f"The bag storage '{storage}' is not known; use mcap or sqlite3.") from error
    chosen = drive.frames if frames is None else [drive.frame(index) for index in frames]
    if not chosen:
        raise InputError(f"No frame of {drive.path} is chosen for the bag {out}.")
    aside = out.with_name(f".{out.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with Writer(aside / out.name, version=BAG_VERSION, storage_plugin=plugin) as writer:
            recorder = _Recorder(writer)
            recorder.write("/tf_static", _nanoseconds(chosen[0]), recorder.static_transforms(drive, chosen[0]))
            for frame in chosen:
                recorder.write_frame(drive, frame, (initial_poses or {}).get(frame.index))
        shutil.rmtree(out, ignore_errors=True)
        (aside / out.name).rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return len(chosen)


def _nanoseconds(frame: Frame) -> int:
    return round(frame.stamp * 1e9)


class _Recorder:
    """Makes messages and writes them, each topic by its type."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._store = get_typestore(Stores.ROS2_JAZZY)
        self._connections = {
            topic: writer.add_connection(
                topic, kind, typestore=self._store, offered_qos_profiles=[bag_qos(topic == "/tf_static")]
            )
            for topic, kind in _TOPICS.items()
        }

    def write(self, topic: str, stamp: int, message: Any) -> None:
        """Writes a message received at `stamp` (ns)."""
        self._writer.write(self._connections[topic], stamp, self._store.serialize_cdr(message, _TOPICS[topic]))

    def write_frame(self, drive: KittiDrive, frame: Frame, initial_pose: np.ndarray | None) -> None:
        """Writes all that the drive has of one frame."""
        stamp = _nanoseconds(frame)
        if initial_pose is not None:
            self.write(
                "/initialpose", stamp - INITIAL_POSE_LEAD, self._initial_pose(stamp - INITIAL_POSE_LEAD, initial_pose)
            )
        if frame.map_from_lidar is not None:
            truth = self._make("geometry_msgs/msg/PoseStamped")
            pose = truth(header=self._header(stamp, MAP_FRAME), pose=self._pose(drive.map_from_camera(frame)))
            self.write("/ground_truth/pose", stamp, pose)
        if frame.image_path is not None:
            self.write("/camera/camera_info", stamp, self._camera_info(stamp, drive.camera))
            self.write("/camera/image", stamp, self._image(stamp, drive.read_image(frame)))
        if frame.scan_path is not None:
            self.write("/points", stamp, self._cloud(stamp, drive.read_scan(frame)))

    def static_transforms(self, drive: KittiDrive, first: Frame) -> Any:
        """Where LiDAR and camera sit on the robot, whose base is the LiDAR."""
        transform = self._make("geometry_msgs/msg/TransformStamped")
        places = {LIDAR_FRAME: np.eye(4), CAMERA_FRAME: np.linalg.inv(drive.camera_from_lidar)}
        header = self._header(_nanoseconds(first), BASE_FRAME)
        many = [
            transform(header=header, child_frame_id=child, transform=self._transform(base_from_child))
            for child, base_from_child in places.items()
        ]
        return self._make("tf2_msgs/msg/TFMessage")(transforms=many)

    def _make(self, kind: str) -> Any:
        return self._store.types[kind]

    def _header(self, stamp: int, frame_id: str) -> Any:
        time = self._make("builtin_interfaces/msg/Time")(sec=stamp // 10**9, nanosec=stamp % 10**9)
        return self._make("std_msgs/msg/Header")(stamp=time, frame_id=frame_id)

    def _quaternion(self, transform: np.ndarray) -> Any:
        return self._make("geometry_msgs/msg/Quaternion")(*map(float, se3.to_quaternion(transform)))

    def _pose(self, transform: np.ndarray) -> Any:
        position = self._make("geometry_msgs/msg/Point")(*map(float, transform[:3, 3]))
        return self._make("geometry_msgs/msg/Pose")(position=position, orientation=self._quaternion(transform))

    def _transform(self, transform: np.ndarray) -> Any:
        translation = self._make("geometry_msgs/msg/Vector3")(*map(float, transform[:3, 3]))
        return self._make("geometry_msgs/msg/Transform")(translation=translation, rotation=self._quaternion(transform))

    def _initial_pose(self, stamp: int, map_from_camera: np.ndarray) -> Any:
        uncertain = self._make("geometry_msgs/msg/PoseWithCovariance")(
            pose=self._pose(map_from_camera), covariance=np.diag([1.0, 1.0, 0.1, 0.01, 0.01, 0.01]).ravel()
        )
        kind = self._make("geometry_msgs/msg/PoseWithCovarianceStamped")
        return kind(header=self._header(stamp, MAP_FRAME), pose=uncertain)

    def _camera_info(self, stamp: int, camera: Camera) -> Any:
        region = self._make("sensor_msgs/msg/RegionOfInterest")(
            x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        )
        return self._make("sensor_msgs/msg/CameraInfo")(
            header=self._header(stamp, CAMERA_FRAME),
            height=camera.height,
            width=camera.width,
            distortion_model="plumb_bob",
            d=np.zeros(5),
            k=camera.matrix.ravel(),
            r=np.eye(3).ravel(),
            p=np.hstack([camera.matrix, np.zeros((3, 1))]).ravel(),
            binning_x=0,
            binning_y=0,
            roi=region,
        )

    def _image(self, stamp: int, image: np.ndarray) -> Any:
        height, width = image.shape[:2]
        return self._make("sensor_msgs/msg/Image")(
            header=self._header(stamp, CAMERA_FRAME),
            height=height,
            width=width,
            encoding="rgb8",
            is_bigendian=0,
            step=3 * width,
            data=np.ascontiguousarray(image).ravel(),
        )

    def _cloud(self, stamp: int, scan: np.ndarray) -> Any:
        field = self._make("sensor_msgs/msg/PointField")
        names = ("x", "y", "z", "intensity")
        return self._make("sensor_msgs/msg/PointCloud2")(
            header=self._header(stamp, LIDAR_FRAME),
            height=1,
            width=len(scan),
            fields=[field(name=name, offset=4 * k, datatype=field.FLOAT32, count=1) for k, name in enumerate(names)],
            is_bigendian=False,
            point_step=16,
            row_step=16 * len(scan),
            data=np.ascontiguousarray(scan, np.float32).view(np.uint8).ravel(),
            is_dense=True,
        )


def bag_qos(latched: bool) -> Qos:
    """What a bag says of the topic's publisher: players publish it again in this way."""
    durability = QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE
    never, liveliness = QosTime(0, 0), QosLiveliness.AUTOMATIC
    return Qos(QosHistory.KEEP_LAST, 10, QosReliability.RELIABLE, durability, never, never, liveliness, never, False)
