"""Messages of a robot that drives an even turn, and bags of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from scipy.spatial.transform import Rotation

from ep2ploc_core import se3

START = 1_700_000_000_000_000_000  # ns
STORE = get_typestore(Stores.ROS2_HUMBLE)
STORE.register(get_types_from_msg("float64 wheel\nstring[] names", "robot_msgs/msg/Private"))
TYPES = {
    "Odometry": "nav_msgs/msg/Odometry",
    "TFMessage": "tf2_msgs/msg/TFMessage",
    "PoseStamped": "geometry_msgs/msg/PoseStamped",
    "PoseWithCovarianceStamped": "geometry_msgs/msg/PoseWithCovarianceStamped",
    "PointCloud2": "sensor_msgs/msg/PointCloud2",
    "Image": "sensor_msgs/msg/Image",
    "CompressedImage": "sensor_msgs/msg/CompressedImage",
    "CameraInfo": "sensor_msgs/msg/CameraInfo",
    "Private": "robot_msgs/msg/Private",
}
STORAGES = ("mcap", "sqlite3")
Messages = list[tuple[str, float, Any]]  # topic, seconds after the start, message

BASE_FROM_LIDAR = se3.from_quaternion(
    np.array([1.2, -0.3, 0.9]), Rotation.from_euler("ZYX", [100, 20, -5], degrees=True).as_quat()
)


def make(kind: str) -> Any:
    return STORE.types[kind]


def header(seconds: float, frame: str) -> Any:
    stamp = START + round(seconds * 1e9)
    time = make("builtin_interfaces/msg/Time")(sec=stamp // 10**9, nanosec=stamp % 10**9)
    return make("std_msgs/msg/Header")(stamp=time, frame_id=frame)


def pose(transform: np.ndarray) -> Any:
    position = make("geometry_msgs/msg/Point")(*map(float, transform[:3, 3]))
    quaternion = make("geometry_msgs/msg/Quaternion")(*map(float, se3.to_quaternion(transform)))
    return make("geometry_msgs/msg/Pose")(position=position, orientation=quaternion)


def transform_message(seconds: float, parent: str, child: str, transform: np.ndarray) -> Any:
    vector = make("geometry_msgs/msg/Vector3")(*map(float, transform[:3, 3]))
    quaternion = make("geometry_msgs/msg/Quaternion")(*map(float, se3.to_quaternion(transform)))
    place = make("geometry_msgs/msg/Transform")(translation=vector, rotation=quaternion)
    stamped = make("geometry_msgs/msg/TransformStamped")
    each = stamped(header=header(seconds, parent), child_frame_id=child, transform=place)
    return make(TYPES["TFMessage"])(transforms=[each])


def odometry(seconds: float, parent: str, child: str, transform: np.ndarray) -> Any:
    zero = make("geometry_msgs/msg/Vector3")(0.0, 0.0, 0.0)
    twist = make("geometry_msgs/msg/Twist")(linear=zero, angular=zero)
    return make(TYPES["Odometry"])(
        header=header(seconds, parent),
        child_frame_id=child,
        pose=make("geometry_msgs/msg/PoseWithCovariance")(pose=pose(transform), covariance=np.zeros(36)),
        twist=make("geometry_msgs/msg/TwistWithCovariance")(twist=twist, covariance=np.zeros(36)),
    )


def cloud(seconds: float, points: np.ndarray, frame: str = "lidar", **changes: Any) -> Any:
    field = make("sensor_msgs/msg/PointField")
    names = ("x", "y", "z", "intensity")
    message = make(TYPES["PointCloud2"])(
        header=header(seconds, frame),
        height=1,
        width=len(points),
        fields=[field(name=name, offset=4 * k, datatype=7, count=1) for k, name in enumerate(names)],
        is_bigendian=False,
        point_step=16,
        row_step=16 * len(points),
        data=np.ascontiguousarray(points, np.float32).view(np.uint8).ravel(),
        is_dense=True,
    )
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def write_bag(
    path: Path, messages: Messages, storage: str = "mcap", compression: CompressionMode = CompressionMode.NONE
) -> Path:
    writer = Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()])
    if compression != CompressionMode.NONE:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        connections: dict[str, Any] = {}
        for topic, seconds, message in sorted(messages, key=lambda each: each[1]):
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            data = STORE.serialize_cdr(message, kind)
            writer.write(connections[topic], START + round(seconds * 1e9), data)
    return path


def scans(count: int = 6, points: int = 50, seed: int = 0) -> list[tuple[float, np.ndarray]]:
    """Times (off the 20 ms raster of the poses) and points 1 to 30 m away."""
    random = np.random.default_rng(seed)
    out = []
    for k in range(count):
        direction = random.normal(size=(points, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        xyz = direction * random.uniform(1, 30, (points, 1))
        out.append((0.107 + 0.1 * k, np.c_[xyz, random.uniform(0, 1, points)].astype(np.float32)))
    return out


def cloud_messages(**changes: Any) -> Messages:
    return [("/points", seconds, cloud(seconds, points, **changes)) for seconds, points in scans()]


def odom_from_base(seconds: float) -> np.ndarray:
    """Straight and at an even turn, so that linear and spherical interpolation are exact."""
    place = np.array([3, 4, 0.2]) + np.array([5, -1, 0.1]) * seconds
    return se3.from_quaternion(place, Rotation.from_rotvec([0.02, 0.1, 0.9 * seconds]).as_quat())


def even_turn(seconds: float) -> np.ndarray:
    """As above, about one axis."""
    out = odom_from_base(seconds)
    out[:3, :3] = Rotation.from_rotvec([0, 0, 0.9 * seconds]).as_matrix()
    return out


def map_from_odom(seconds: float) -> np.ndarray:
    turn = Rotation.from_euler("z", 0.5 + 0.03 * seconds)
    return se3.from_quaternion(np.array([1e5 + 0.2 * seconds, -2e5, 30]), turn.as_quat())


STATIC: Messages = [("/tf_static", 0.0, transform_message(0.0, "base", "lidar", BASE_FROM_LIDAR))]


def odometry_messages(parent: str = "odom", child: str = "base", topic: str = "/odometry") -> Messages:
    return [(topic, 0.02 * k, odometry(0.02 * k, parent, child, even_turn(0.02 * k))) for k in range(1, 40)]


def tf_messages(function: Callable[[float], np.ndarray], parent: str, child: str, period: float) -> Messages:
    times = np.arange(0, 1.01 + period, period)
    return [("/tf", seconds, transform_message(seconds, parent, child, function(seconds))) for seconds in times]


def image(seconds: float, pixels: np.ndarray, frame: str = "camera", encoding: str = "rgb8") -> Any:
    """An Image of pixels `(H, W)` or `(H, W, C)`."""
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(len(pixels), -1)
    return make(TYPES["Image"])(
        header=header(seconds, frame), height=pixels.shape[0], width=pixels.shape[1], encoding=encoding,
        is_bigendian=0, step=rows.shape[1], data=rows.ravel(),
    )  # fmt: skip


def compressed(seconds: float, pixels: np.ndarray, frame: str = "camera") -> Any:
    """A CompressedImage, PNG, of RGB pixels `(H, W, 3)`."""
    data = cv2.imencode(".png", pixels[..., ::-1])[1].ravel()
    return make(TYPES["CompressedImage"])(header=header(seconds, frame), format="rgb8; png compressed", data=data)


def camera_info(seconds: float, width: int, height: int, focal: float = 40.0) -> Any:
    """Of a camera without distortion, its middle that of the image."""
    matrix = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    region = make("sensor_msgs/msg/RegionOfInterest")(x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    return make(TYPES["CameraInfo"])(
        header=header(seconds, "camera"), height=height, width=width, distortion_model="plumb_bob", d=np.zeros(5),
        k=matrix.ravel(), r=np.eye(3).ravel(), p=np.hstack([matrix, np.zeros((3, 1))]).ravel(), binning_x=0,
        binning_y=0, roi=region,
    )  # fmt: skip
