"""Images and calibrations in ROS messages, whichever library has decoded them: what a message claims is checked.

Of the names in `sensor_msgs/image_encodings` all that a camera sends are known: grey and colours of 8 and 16 bits,
Bayer patterns, YUV 4:2:2. Depth images are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ep2ploc_core.camera import Camera
from ep2ploc_core.errors import InputError

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


@dataclass(frozen=True)
class Encoding:
    """`name`: what cv_bridge calls it; `channels` per pixel of `depth` bytes each; `target`: mono8 or rgb8."""

    name: str
    channels: int
    depth: int = 1
    target: str = "rgb8"


def _known() -> dict[str, Encoding]:
    known = {}
    for bits, depth in ((8, 1), (16, 2)):
        known[f"mono{bits}"] = Encoding(f"mono{bits}", 1, depth, "mono8")
        for channels, orders in ((3, ("rgb", "bgr")), (4, ("rgba", "bgra"))):
            known.update({f"{order}{bits}": Encoding(f"{order}{bits}", channels, depth) for order in orders})
        for pattern in ("rggb", "bggr", "gbrg", "grbg"):
            known[f"bayer_{pattern}{bits}"] = Encoding(f"bayer_{pattern}{bits}", 1, depth)
    # Two pixels in four bytes. The plain names came with Jazzy; `yuv422` has always been U Y V Y.
    known["yuv422"] = known["uyvy"] = Encoding("yuv422", 2)
    known["yuv422_yuy2"] = known["yuyv"] = Encoding("yuv422_yuy2", 2)
    # Without names of their channels: so cv_bridge calls OpenCV's pictures, which are BGR, where no encoding is given.
    known["8UC1"], known["8UC3"], known["8UC4"] = known["mono8"], known["bgr8"], known["bgra8"]
    return known


ENCODINGS = _known()
DEPTH_IMAGES = ("16UC1", "16SC1", "32FC1", "64FC1")


def encoding_of(message: Any) -> Encoding:
    """The encoding of an Image whose sizes are right; raises InputError when it cannot be read or they are wrong."""
    if message.encoding in DEPTH_IMAGES:
        raise InputError(
            f"The image has the encoding '{message.encoding}', which is that of a depth image; "
            "give the colour or grey image of the camera."
        )
    encoding = ENCODINGS.get(message.encoding)
    if encoding is None:
        raise InputError(
            f"The image has the encoding '{message.encoding}', which is none of {', '.join(ENCODINGS)}; "
            "convert it first, for example with image_proc."
        )
    least = message.width * encoding.channels * encoding.depth
    odd = encoding.channels == 2 and message.width % 2
    if message.height < 1 or message.width < 1 or message.step < least or odd:
        raise InputError(
            f"The image claims {message.width}x{message.height} {message.encoding} pixels in rows of {message.step} "
            "bytes, which cannot be; check the camera driver."
        )
    if len(message.data) != message.step * message.height:
        raise InputError(
            f"The image carries {len(message.data)} bytes where {message.height} rows of {message.step} are claimed; "
            "check the camera driver."
        )
    return encoding


def image_from_message(message: Any) -> np.ndarray:
    """Pixels `(H, W, 3)` uint8 RGB of an Image, or `(H, W)` uint8 of a grey one; 16 bits are scaled to 8. Raises
    InputError when the encoding cannot be read or the sizes do not fit the data."""
    encoding = encoding_of(message)
    pixels = pixels_as_sent(message, encoding.name)
    try:
        return convert(pixels, encoding.name, encoding.target)
    except cv2.error as error:
        raise InputError(f"The image of {message.encoding} pixels cannot be converted: {error}.") from error


def image_from_compressed(message: Any) -> np.ndarray:
    """Pixels `(H, W, 3)` uint8 RGB of a CompressedImage, JPEG or PNG; raises InputError when it cannot be decoded.

    A picture that says it should be turned is not, since the calibration is of the pixels as the camera sent them.
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


def camera_from_message(message: Any) -> Camera:
    """The camera of a CameraInfo (`Camera.from_camera_info`); raises InputError when that cannot be used."""
    roi = message.roi
    return Camera.from_camera_info(
        message.width, message.height, message.k, message.d, message.distortion_model, message.p,
        (message.binning_x, message.binning_y), (roi.x_offset, roi.y_offset, roi.width, roi.height),
    )  # fmt: skip


def pixels_as_sent(message: Any, encoding: str) -> np.ndarray:
    """The pixels `(H, W)` or `(H, W, C)` of an Image in an encoding, without a copy where its bytes lie right."""
    _, channels, dtype = layout(encoding)
    row = message.width * channels * dtype.itemsize
    rows = np.frombuffer(message.data, np.uint8)[: message.height * message.step]
    rows = rows.reshape(message.height, message.step)[:, :row]
    if dtype.itemsize > 1:
        rows = np.ascontiguousarray(rows).view(dtype.newbyteorder(">" if message.is_bigendian else "<"))
        rows = rows.astype(dtype, copy=False)
    return rows if channels == 1 else rows.reshape(message.height, message.width, channels)


def layout(encoding: str) -> tuple[str, int, np.dtype]:
    """OpenCV's name of an encoding, its channels, and the type of one."""
    if encoding in _YUV:
        return f"YUV_{_YUV[encoding]}", 2, np.dtype(np.uint8)
    for bits, dtype in (("8", np.uint8), ("16", np.uint16)):
        colours = _COLOURS.get(encoding.removesuffix(bits))
        if encoding.endswith(bits) and colours is not None:
            return *colours, np.dtype(dtype)
    raise InputError(f"the encoding '{encoding}' is not known")


def convert(pixels: np.ndarray, encoding: str, desired: str) -> np.ndarray:
    """Pixels as another encoding has them; 16 bits are scaled to 8. Raises InputError where there is no way."""
    if desired in ("passthrough", encoding):
        return pixels
    (source, _, depth), (target, _, wanted) = layout(encoding), layout(desired)
    if source != target:
        name = f"YUV2{target}_{_YUV[encoding]}" if encoding in _YUV else f"{source}2{target}"
        code = getattr(cv2, f"COLOR_{name}", None)
        if code is None:
            raise InputError(f"there is no conversion from {encoding} to {desired}")
        pixels = cv2.cvtColor(pixels, code)
    if depth.itemsize < wanted.itemsize:
        raise InputError(f"there is no conversion from {encoding} to {desired}")
    return pixels if depth == wanted else cv2.convertScaleAbs(pixels, alpha=255 / 65535)
