"""Images and poses between ROS messages and numpy. What a message claims is checked, never trusted.

cv_bridge knows less than cameras send. What it does not take is brought into the form that it does: newer names, rows
padded to whole words, the other byte order. So the pixels are the same with the real cv_bridge and with the stand-in.
"""

from __future__ import annotations

import array

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from ep2ploc_core import se3
from ep2ploc_core.datasets.image_message import Encoding, encoding_of
from ep2ploc_core.errors import InputError
from ep2ploc_ros.ros_imports import CvBridge

_bridge = CvBridge()


def image_from_message(message: Image) -> np.ndarray:
    """Pixels `(H, W, 3)` uint8 RGB, or `(H, W)` uint8 of a grey image; 16 bits are scaled to 8.

    Raises InputError when the encoding cannot be read or the sizes do not fit the data.
    """
    encoding = encoding_of(message)
    try:
        return _bridge.imgmsg_to_cv2(_plain(message, encoding), encoding.target)
    except (TypeError, ValueError, cv2.error) as error:  # cv_bridge's own error is a TypeError
        raise InputError(
            f"The image of {message.width}x{message.height} {message.encoding} pixels cannot be converted: {error}."
        ) from error


def _plain(message: Image, encoding: Encoding) -> Image:
    """The image as cv_bridge reads it: its own name, rows without padding, little-endian. A copy only where needed.

    cv_bridge takes a row for a whole number of pixels, whatever `step` says, and under numpy 2 it cannot swap bytes.
    """
    row = message.width * encoding.channels * encoding.depth
    swapped = encoding.depth == 2 and message.is_bigendian
    data = message.data
    if message.step != row or swapped:
        rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)[:, :row]
        pixels = np.ascontiguousarray(rows)
        data = array.array("B")
        data.frombytes((pixels.view(np.uint16).byteswap() if swapped else pixels).data.cast("B"))
    return Image(height=message.height, width=message.width, encoding=encoding.name, step=row, data=data)


def image_to_message(image: np.ndarray, header: Header) -> Image:
    """An rgb8 message of pixels `(H, W, 3)` uint8."""
    return _bridge.cv2_to_imgmsg(np.ascontiguousarray(image), "rgb8", header=header)


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
