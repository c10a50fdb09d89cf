"""The part of cv_bridge that the nodes use: 8-bit images between messages and numpy."""

from __future__ import annotations

import array

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

CHANNELS = {"mono8": 1, "rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4}
_OPENCV_NAME = {"mono8": "GRAY", "rgb8": "RGB", "bgr8": "BGR", "rgba8": "RGBA", "bgra8": "BGRA"}


class CvBridgeError(TypeError):
    """An encoding that is not known, or an image that does not fit the encoding."""


class CvBridge:
    """Converts `sensor_msgs` images from and to numpy arrays `(H, W)` or `(H, W, C)` uint8."""

    def imgmsg_to_cv2(self, img_msg: Image, desired_encoding: str = "passthrough") -> np.ndarray:
        """The pixels of a message, without a copy where no conversion is asked for."""
        channels = _channels(img_msg.encoding)
        rows = np.frombuffer(img_msg.data, np.uint8)[: img_msg.height * img_msg.step]
        pixels = rows.reshape(img_msg.height, img_msg.step)[:, : img_msg.width * channels]
        if channels > 1:
            pixels = pixels.reshape(img_msg.height, img_msg.width, channels)
        return _convert(pixels, img_msg.encoding, desired_encoding)

    def compressed_imgmsg_to_cv2(
        self, cmprs_img_msg: CompressedImage, desired_encoding: str = "passthrough"
    ) -> np.ndarray:
        """The pixels of a JPEG or PNG message; "passthrough" gives BGR."""
        pixels = cv2.imdecode(np.frombuffer(cmprs_img_msg.data, np.uint8), cv2.IMREAD_COLOR)
        if pixels is None:
            raise CvBridgeError("the data is no JPEG or PNG image")
        return _convert(pixels, "bgr8", desired_encoding)

    def cv2_to_imgmsg(self, cvim: np.ndarray, encoding: str = "passthrough", header: Header | None = None) -> Image:
        """A message of `(H, W)` or `(H, W, C)` uint8 pixels; the encoding says what the channels are."""
        channels = 1 if cvim.ndim == 2 else cvim.shape[2]
        if cvim.dtype != np.uint8 or _channels(encoding) != channels:
            raise CvBridgeError(f"pixels of type {cvim.dtype} with {channels} channels are no {encoding}")
        message = Image(height=cvim.shape[0], width=cvim.shape[1], encoding=encoding, step=cvim.shape[1] * channels)
        if header is not None:
            message.header = header
        data = array.array("B")
        data.frombytes(np.ascontiguousarray(cvim).data.cast("B"))
        message.data = data
        return message


def _channels(encoding: str) -> int:
    if encoding not in CHANNELS:
        raise CvBridgeError(f"the encoding '{encoding}' is none of {', '.join(CHANNELS)}")
    return CHANNELS[encoding]


def _convert(pixels: np.ndarray, encoding: str, desired: str) -> np.ndarray:
    if desired in ("passthrough", encoding):
        return pixels
    _channels(desired)
    return cv2.cvtColor(pixels, getattr(cv2, f"COLOR_{_OPENCV_NAME[encoding]}2{_OPENCV_NAME[desired]}"))
