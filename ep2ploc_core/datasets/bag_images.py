"""The images of a ROS 2 bag: which topic they are taken from, with which calibration, and their pixels one by one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.bag_file import decode, list_topics, open_bag, read_messages
from ep2ploc_core.datasets.bag_poses import header_seconds
from ep2ploc_core.datasets.image_message import camera_from_message, image_from_compressed, image_from_message
from ep2ploc_core.datasets.kitti import read_camera_file
from ep2ploc_core.datasets.posed_image import PosedImage
from ep2ploc_core.errors import InputError
from ep2ploc_core.written_file import written_directory

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
_log = logging.getLogger(__name__)


class ImageMessages:
    """The images of one topic of a bag. `times` `(M,)`: when each message was recorded, ns; `stamps` `(M,)`: seconds of
    its header, NaN where it cannot be used; `frame`: the camera's; `camera`: its calibration.

    By default the topic is, of those whose first image is one of colours or greys, one with a camera_info beside it,
    and of these the one with most messages. The calibration is the first camera_info that can be used, or the file
    `camera`. Opening reads the topic once. Raises InputError where there is no such topic or calibration.
    """

    def __init__(self, path: Path, topic: str = "", camera: Path | None = None) -> None:
        self.path = path
        with open_bag(path) as bag:
            self.topic, first = _choose(path, bag, topic)
            self.camera = _calibration(path, bag, self.topic, first.shape[:2], camera)
            self.times, self.stamps, self.frame = _survey(path, bag, self.topic)
        self._readers: dict[int, _Reading] = {}  # by process: those that share one would share its place in the file
        _log.info("Images from %s.", self.topic)

    def read(self, number: int) -> np.ndarray:
        """Pixels `(H, W, 3)` uint8 RGB of a message; raises InputError when it cannot be used."""
        reading = self._readers.get(os.getpid())
        if reading is None:
            reading = self._readers[os.getpid()] = _Reading(self.path, self.topic, self.times)
        return reading.image(number)


class _Reading:
    """An open bag, and how far the images of a topic were read: those who ask for one after the other need one pass."""

    def __init__(self, path: Path, topic: str, times: np.ndarray) -> None:
        self._path, self._topic, self._times = path, topic, times
        self._closing = ExitStack()
        self._bag = self._closing.enter_context(open_bag(path))
        self._ahead: Iterator[tuple[int, tuple[Connection, int, bytes]]] = iter(())
        self._next = -1

    def image(self, number: int) -> np.ndarray:
        """Pixels `(H, W, 3)` uint8 RGB."""
        if number != self._next:
            start = int(self._times[number])
            # Bags are not strictly in the order of time, so it is worked out what the time filter lets pass.
            passing = np.flatnonzero(self._times >= start)
            connections = self._bag.topics[self._topic].connections
            self._ahead = zip(passing, read_messages(self._path, self._bag, connections, start), strict=False)
        for found, (connection, _, data) in self._ahead:
            if found == number:
                self._next = number + 1 if (self._times[number + 1 :] >= self._times[number]).all() else -1
                return _rgb(decode(data, connection))
        raise InputError(f"The image {number} on {self._topic} of {self._path} is gone; the bag was changed.")


@dataclass(frozen=True, kw_only=True)
class BagImage(PosedImage):
    """An image that lies in a bag, `path`; `frame` is its number among the `messages` of its topic."""

    messages: ImageMessages

    def read(self) -> np.ndarray:
        """Its pixels `(H, W, 3)` uint8 RGB."""
        return self.messages.read(self.frame)

    def copy_to(self, folder: Path) -> None:
        """Puts it into a folder, as a PNG file named after its frame."""
        _write_png(self.read(), folder, self.frame)


def write_images(
    messages: ImageMessages,
    numbers: list[int] | None,
    out: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, int]:
    """Writes images of these numbers, all by default, as `out`/images/NUMBER.png, `out`/camera.yaml, and the number and
    stamp of each in `out`/stamps.txt. Returns how many, and how many of those asked for could not be used. Raises
    InputError where `out` holds something else, or not one could be."""
    known = set(np.flatnonzero(np.isfinite(messages.stamps)).tolist())
    asked = list(range(len(messages.stamps))) if numbers is None else numbers
    rows = []
    with written_directory(out, "stamps.txt", "directory of images") as aside:
        (aside / "images").mkdir()
        messages.camera.to_yaml(aside / "camera.yaml")
        for done, number in enumerate(asked, 1):
            try:
                if number in known:
                    _write_png(messages.read(number), aside / "images", number)
                    rows.append((number, messages.stamps[number]))
            except InputError as error:
                _log.warning("Image %d: %s", number, error)
            progress(done, len(asked))
        if not rows:
            raise InputError(
                f"{messages.topic} of {messages.path} has none of these images; it has {len(messages.stamps)}."
            )
        np.savetxt(aside / "stamps.txt", rows, fmt="%d %.9f", header="number, seconds")
    return len(rows), len(asked) - len(rows)


def _write_png(image: np.ndarray, folder: Path, number: int) -> None:
    data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    (folder / f"{number:010d}.png").write_bytes(data.tobytes())


def _choose(path: Path, bag: Reader, asked: str) -> tuple[str, np.ndarray]:
    """The topic, and its first image."""
    counts = {name: info.msgcount for name, info in bag.topics.items() if info.msgtype in (IMAGE, COMPRESSED)}
    if asked:
        if asked not in counts:
            raise InputError(f"{path} has no image topic {asked}; it has {list_topics(bag)}.")
        return asked, next(_images(path, bag, asked))
    if not counts:
        raise InputError(f"{path} has no image topic, so no images; it has {list_topics(bag)}.")
    reason = ""
    for name in sorted(counts, key=lambda name: (_info_topic(bag, name) == "", -counts[name], name)):
        try:
            return name, next(_images(path, bag, name))
        except InputError as error:  # a depth camera's
            reason = reason or str(error)
    raise InputError(f"{path} has no image that can be used. {reason}")


def _images(path: Path, bag: Reader, topic: str) -> Iterator[np.ndarray]:
    """All images of a topic; raises InputError for one that cannot be used, and where there is none."""
    for connection, _, data in read_messages(path, bag, bag.topics[topic].connections):
        yield _rgb(decode(data, connection))
    raise InputError(f"There is no image on {topic}.")


def _rgb(message: Any) -> np.ndarray:
    pixels = image_from_compressed(message) if hasattr(message, "format") else image_from_message(message)
    return pixels if pixels.ndim == 3 else cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)


def _info_topic(bag: Reader, topic: str) -> str:
    """The camera_info of an image topic, beside it as image_transport has it; "" where there is none."""
    compressed = bag.topics[topic].msgtype == COMPRESSED
    base = topic.rsplit("/", 1)[0] if compressed else topic  # of /camera/image/compressed
    beside = f"{base.rsplit('/', 1)[0]}/camera_info"
    info = bag.topics.get(beside)
    return beside if info is not None and info.msgtype == CAMERA_INFO else ""


def _calibration(path: Path, bag: Reader, topic: str, size: tuple[int, int], file: Path | None) -> Camera:
    height, width = size
    if file is not None:
        camera = read_camera_file(file, width, height)
        if (camera.width, camera.height) != size[::-1]:
            raise InputError(
                f"The calibration {file} is for images of {camera.width}x{camera.height} pixels, and those on {topic} "
                f"have {width}x{height}."
            )
        return camera
    info, reason = _info_topic(bag, topic), "There is none."
    connections = bag.topics[info].connections if info else []
    for connection, _, data in read_messages(path, bag, connections):
        try:
            camera = camera_from_message(decode(data, connection))
        except InputError as error:
            reason = str(error)
            continue
        if (camera.width, camera.height) == (width, height):
            return camera
        reason = f"It is for images of {camera.width}x{camera.height} pixels, and these have {width}x{height}."
    raise InputError(
        f"{path} has no camera_info for {topic} that can be used. {reason} Give the calibration with --camera."
    )


def _survey(path: Path, bag: Reader, topic: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Times and stamps of all messages, and the frame of those that can be used: that of the first."""
    times, stamps, frame = [], [], ""
    for connection, time, data in read_messages(path, bag, bag.topics[topic].connections):
        times.append(time)
        try:
            header = decode(data, connection).header
        except InputError:
            stamps.append(np.nan)
            continue
        frame = frame or header.frame_id.lstrip("/")
        stamps.append(header_seconds(header, time) if header.frame_id.lstrip("/") == frame else np.nan)
    return np.array(times, np.int64), np.array(stamps), frame
