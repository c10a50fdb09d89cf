"""The part of cv_bridge that the nodes use: images between messages and numpy."""

from __future__ import annotations

import array

import cv2
import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import Header

# What OpenCV calls the encodings, without their bits, and how many channels they have. OpenCV names a Bayer pattern
# after its second row and column, ROS after the first.
_COLOURS = {
    "mono": ("GRAY", 1),
    "rgb": ("RGB", 3),
    "bgr": ("BGR", 3),
    "rgba": ("RGBA", 4),
    "bgra": ("BGRA", 4),
    "bayer_rggb": ("BayerBG", 1),
    "bayer_bggr": ("BayerRG", 1),
    "bayer_gbrg": ("BayerGR", 1),
    "bayer_grbg": ("BayerGB", 1),
}
_YUV = {"yuv422": "UYVY", "yuv422_yuy2": "YUY2"}


class CvBridgeError(TypeError):
    """An encoding that is not known, or an image that does not fit the encoding."""


class CvBridge:
    """Converts `sensor_msgs` images from and to numpy arrays `(H, W)` or `(H, W, C)`, uint8 or uint16."""

    def imgmsg_to_cv2(self, img_msg: Image, desired_encoding: str = "passthrough") -> np.ndarray:
        """The pixels of a message, without a copy where no conversion is asked for; 16 bits are scaled to 8."""
        _, channels, dtype = _layout(img_msg.encoding)
        row = img_msg.width * channels * dtype.itemsize
        rows = np.frombuffer(img_msg.data, np.uint8)[: img_msg.height * img_msg.step]
        rows = rows.reshape(img_msg.height, img_msg.step)[:, :row]
        if dtype.itemsize > 1:
            rows = np.ascontiguousarray(rows).view(dtype.newbyteorder(">" if img_msg.is_bigendian else "<"))
            rows = rows.astype(dtype, copy=False)
        pixels = rows if channels == 1 else rows.reshape(img_msg.height, img_msg.width, channels)
        return _convert(pixels, img_msg.encoding, desired_encoding)

    def cv2_to_imgmsg(self, cvim: np.ndarray, encoding: str = "passthrough", header: Header | None = None) -> Image:
        """A message of `(H, W)` or `(H, W, C)` pixels; the encoding says what the channels are."""
        channels = 1 if cvim.ndim == 2 else cvim.shape[2]
        _, wanted, dtype = _layout(encoding)
        if cvim.dtype != dtype or wanted != channels:
            raise CvBridgeError(f"pixels of type {cvim.dtype} with {channels} channels are no {encoding}")
        step = cvim.shape[1] * channels * dtype.itemsize
        message = Image(height=cvim.shape[0], width=cvim.shape[1], encoding=encoding, step=step)
        if header is not None:
            message.header = header
        data = array.array("B")
        data.frombytes(np.ascontiguousarray(cvim).data.cast("B"))
        message.data = data
        return message


def _layout(encoding: str) -> tuple[str, int, np.dtype]:
    """OpenCV's name of an encoding, its channels, and the type of one."""
    if encoding in _YUV:
        return f"YUV_{_YUV[encoding]}", 2, np.dtype(np.uint8)
    for bits, dtype in (("8", np.uint8), ("16", np.uint16)):
        colours = _COLOURS.get(encoding.removesuffix(bits))
        if encoding.endswith(bits) and colours is not None:
            return *colours, np.dtype(dtype)
    raise CvBridgeError(f"the encoding '{encoding}' is not known")


def _convert(pixels: np.ndarray, encoding: str, desired: str) -> np.ndarray:
    if desired in ("passthrough", encoding):
        return pixels
    (source, _, depth), (target, _, wanted) = _layout(encoding), _layout(desired)
    if source != target:
        name = f"YUV2{target}_{_YUV[encoding]}" if encoding in _YUV else f"{source}2{target}"
        code = getattr(cv2, f"COLOR_{name}", None)
        if code is None:
            raise CvBridgeError(f"there is no conversion from {encoding} to {desired}")
        pixels = cv2.cvtColor(pixels, code)
    if depth.itemsize < wanted.itemsize:
        raise CvBridgeError(f"there is no conversion from {encoding} to {desired}")
    return pixels if depth == wanted else cv2.convertScaleAbs(pixels, alpha=255 / 65535)
