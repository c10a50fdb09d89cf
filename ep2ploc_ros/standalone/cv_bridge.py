"""The part of cv_bridge that the nodes use: images between messages and numpy."""

from __future__ import annotations

import array
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from ep2ploc_core.datasets.image_message import convert, layout, pixels_as_sent
from ep2ploc_core.errors import InputError


class CvBridgeError(TypeError):
    """An encoding that is not known, or an image that does not fit the encoding."""


class CvBridge:
    """Converts `sensor_msgs` images from and to numpy arrays `(H, W)` or `(H, W, C)`, uint8 or uint16."""

    def imgmsg_to_cv2(self, img_msg: Image, desired_encoding: str = "passthrough") -> np.ndarray:
        """The pixels of a message, without a copy where no conversion is asked for; 16 bits are scaled to 8."""
        with _bridge_errors():
            return convert(pixels_as_sent(img_msg, img_msg.encoding), img_msg.encoding, desired_encoding)

    def cv2_to_imgmsg(self, cvim: np.ndarray, encoding: str = "passthrough", header: Header | None = None) -> Image:
        """A message of `(H, W)` or `(H, W, C)` pixels; the encoding says what the channels are."""
        channels = 1 if cvim.ndim == 2 else cvim.shape[2]
        with _bridge_errors():
            _, wanted, dtype = layout(encoding)
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


@contextmanager
def _bridge_errors() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise CvBridgeError(str(error)) from error
