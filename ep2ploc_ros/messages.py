"""Images, calibrations and poses between ROS messages and numpy. What a message claims is checked, never trusted."""

from __future__ import annotations

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from ep2ploc_core import se3
from ep2ploc_core.camera import Camera
from ep2ploc_core.errors import InputError
from ep2ploc_ros.ros_imports import CvBridge

CHANNELS = {"mono8": 1, "8UC1": 1, "rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4}
_bridge = CvBridge()


def image_from_message(message: Image) -> np.ndarray:
    """Pixels `(H, W, 3)` uint8 RGB, or `(H, W)` uint8 of a grey image.

    Raises InputError when the encoding is not known or the sizes do not fit the data.
    """
    channels = CHANNELS.get(message.encoding)
    if channels is None:
        raise InputError(
            f"The image has the encoding '{message.encoding}', which is none of {', '.join(CHANNELS)}; "
            "convert it first, for example with image_proc."
        )
    if message.height < 1 or message.width < 1 or message.step < message.width * channels:
        raise InputError(
            f"The image claims {message.width}x{message.height} {message.encoding} pixels in rows of {message.step} "
            "bytes, which cannot be; check the camera driver."
        )
    if len(message.data) != message.step * message.height:
        raise InputError(
            f"The image carries {len(message.data)} bytes where {message.height} rows of {message.step} are claimed; "
            "check the camera driver."
        )
    if channels == 1:
        return np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)[:, : message.width]
    return _bridge.imgmsg_to_cv2(message, "rgb8")


def image_from_compressed(message: CompressedImage) -> np.ndarray:
    """Pixels `(H, W, 3)` uint8 RGB of a JPEG or PNG message; raises InputError when it cannot be decoded."""
    try:
        return _bridge.compressed_imgmsg_to_cv2(message, "rgb8")
    except (TypeError, ValueError, cv2.error) as error:  # cv_bridge's own error is a TypeError
        raise InputError(
            f"The compressed image ('{message.format}', {len(message.data)} bytes) cannot be decoded; "
            "send whole JPEG or PNG images."
        ) from error


def image_to_message(image: np.ndarray, header: Header) -> Image:
    """An rgb8 message of pixels `(H, W, 3)` uint8."""
    return _bridge.cv2_to_imgmsg(np.ascontiguousarray(image), "rgb8", header=header)


def camera_from_message(message: CameraInfo) -> Camera:
    """The calibration of the images it comes with (`Camera.from_camera_info`); raises InputError when not usable."""
    roi = message.roi
    return Camera.from_camera_info(
        message.width, message.height, message.k, message.d, message.distortion_model, message.p,
        (message.binning_x, message.binning_y), (roi.x_offset, roi.y_offset, roi.width, roi.height),
    )  # fmt: skip


def pose_from_message(message: Pose) -> np.ndarray:
    """A pose `(4, 4)`; raises InputError when it holds no numbers or no rotation."""
    position, rotation = message.position, message.orientation
    translation = np.array([position.x, position.y, position.z])
    quaternion = np.array([rotation.x, rotation.y, rotation.z, rotation.w])
    if not np.isfinite(translation).all() or not np.isfinite(quaternion).all():
        raise InputError("The pose holds a value that is not a number.")
    if abs(np.linalg.norm(quaternion) - 1) > 0.1:
        raise InputError(f"The pose's quaternion has the length {np.linalg.norm(quaternion):.3g} instead of 1.")
    return se3.from_quaternion(translation, quaternion)


def pose_to_message(target_from_source: np.ndarray) -> Pose:
    """The message of a pose `(4, 4)`."""
    message = Pose()
    position, rotation = message.position, message.orientation
    position.x, position.y, position.z = map(float, target_from_source[:3, 3])
    rotation.x, rotation.y, rotation.z, rotation.w = map(float, se3.to_quaternion(target_from_source))
    return message


def nanoseconds(stamp: Time) -> int:
    """A stamp in nanoseconds, exactly."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec
