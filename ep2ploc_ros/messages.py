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
from ep2ploc_ros.encodings import DEPTH_IMAGES, encoding_of, plain
from ep2ploc_ros.ros_imports import CvBridge

_bridge = CvBridge()


def image_from_message(message: Image) -> np.ndarray:
    """Pixels `(H, W, 3)` uint8 RGB, or `(H, W)` uint8 of a grey image; 16 bits are scaled to 8.

    Raises InputError when the encoding cannot be read or the sizes do not fit the data.
    """
    encoding = encoding_of(message)
    try:
        return _bridge.imgmsg_to_cv2(plain(message, encoding), encoding.target)
    except (TypeError, ValueError, cv2.error) as error:  # cv_bridge's own error is a TypeError
        raise InputError(
            f"The image of {message.width}x{message.height} {message.encoding} pixels cannot be converted: {error}."
        ) from error


def image_from_compressed(message: CompressedImage) -> np.ndarray:
    """Pixels `(H, W, 3)` uint8 RGB of a JPEG or PNG message; raises InputError when it cannot be decoded.

    By OpenCV alone: cv_bridge takes every picture for one of three channels, which grey ones are not. A picture that
    says it should be turned is not, since the calibration is of the pixels as the camera sent them.
    """
    if "compressedDepth" in message.format or message.format.startswith(DEPTH_IMAGES):
        raise InputError(
            f"The compressed image ('{message.format}') is a depth image; give the colour or grey image of the camera."
        )
    try:
        pixels = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise InputError(
            f"The compressed image ('{message.format}', {len(message.data)} bytes) cannot be decoded; "
            "send whole JPEG or PNG images."
        )
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


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
