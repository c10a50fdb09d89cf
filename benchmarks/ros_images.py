"""How many images get lost between two processes that do nothing else, with the Fast DDS profile and without.

.venv/bin/python benchmarks/ros_images.py [--seconds 4] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros import PATIENCE, environment, pace, process  # the benchmark beside this one
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from support.table import show_table  # beside this benchmark

from ep2ploc_core.evaluation.report import Grid
from ep2ploc_core.machine import describe_machine, machine_caption
from ep2ploc_ros.messages import image_to_message

WIDTH, HEIGHT, SEED = 1241, 376, 0
COURSES = [(reliability, rate) for reliability in ("BEST_EFFORT", "RELIABLE") for rate in (10.0, 30.0)]


def run_counter(counted: Any) -> None:
    """Counts the images of each course until it is interrupted."""
    with suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.init()
        node = rclpy.create_node("counter")

        def listen(number: int, reliability: str) -> None:
            def count(_: Image) -> None:
                counted[number] += 1

            node.create_subscription(Image, f"image_{number}", count, image_qos(reliability))

        for number, (reliability, _) in enumerate(COURSES):
            listen(number, reliability)
        while True:
            rclpy.spin_once(node, timeout_sec=0.5)


def run_sender(seconds: float, sent: Any) -> None:
    """Sends the images of each course, one course after the other."""
    rclpy.init()
    node = rclpy.create_node("sender")
    pixels = np.random.default_rng(SEED).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image = image_to_message(pixels, Header(frame_id="camera"))
    publishers = [node.create_publisher(Image, f"image_{k}", image_qos(one)) for k, (one, _) in enumerate(COURSES)]
    end = time.monotonic() + PATIENCE
    while not all(one.get_subscription_count() for one in publishers) and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.5)  # it may not see us yet

    def course(number: int, rate: float) -> None:
        def send() -> None:
            publishers[number].publish(image)
            sent[number] += 1

        pace(node, seconds, rate, send)

    for number, (_, rate) in enumerate(COURSES):
        course(number, rate)
    time.sleep(1.0)


def image_qos(reliability: str) -> QoSProfile:
    return QoSProfile(depth=5, reliability=ReliabilityPolicy[reliability])


def main() -> None:
    """Measures with the profile and without, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each measurement")
    parser.add_argument("--markdown", type=Path, help="write the table here, too")
    arguments = parser.parse_args()
    note = machine_caption(describe_machine())  # with the load that others make
    rows = []
    for profile in (True, False):
        counted, sent = (multiprocessing.get_context("spawn").Array("i", len(COURSES)) for _ in range(2))
        run = (run_sender, arguments.seconds, sent)
        with environment(profile), process(run_counter, counted), process(*run) as sender:
            sender.join()
        cells = [f"{heard} of {all_of_them}" for heard, all_of_them in zip(counted, sent, strict=True)]
        for first in (0, 2):
            name = COURSES[first][0].lower().replace("_", " ")
            rows.append(["`config/fastdds_shm.xml`" if profile else "none", name, *cells[first : first + 2]])
    title = f"Images of {WIDTH}x{HEIGHT} pixels (rgb8) that arrived, of those sent"
    show_table(title, Grid(["Fast DDS profile", "QoS", "10 Hz", "30 Hz"], rows), arguments.markdown, note)


if __name__ == "__main__":
    main()
