"""Image encodings: which of the names in `sensor_msgs/image_encodings` can be read, and how their pixels lie in memory.

cv_bridge knows less than cameras send. What it does not take is brought into the form that it does: newer names, rows
padded to whole words, the other byte order. So the pixels are the same with the real cv_bridge and with the stand-in.
"""

from __future__ import annotations

import array
from dataclasses import dataclass

import numpy as np
from sensor_msgs.msg import Image

from ep2ploc_core.errors import InputError


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


def encoding_of(message: Image) -> Encoding:
    """The encoding of a message whose sizes are right; raises InputError when it cannot be read or they are wrong."""
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


def plain(message: Image, encoding: Encoding) -> Image:
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
