"""How old a pose is when it is heard, and why: with a map_server and a localizer as processes of their own.

    .venv/bin/python benchmarks/ros.py [--seconds 8] [--minutes 5] [--markdown FILE]

A map_server and a localizer track a camera that stands in a synthetic street, with the weights as shipped, while images
come at 2, 10 and 30 Hz. Moments are taken by the system's monotonic clock, at the camera and inside the localizer, for
each image that gets a pose; p50 / p95 of the parts do not add up to those of the whole. `--minutes` runs nothing but
the 30 Hz, for so long, and shows whether delay or memory grow.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import torch
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from support.table import show_table  # beside this benchmark

from ep2ploc_core import se3
from ep2ploc_core.datasets.queries import Queries
from ep2ploc_core.datasets.sampling import draw_start
from ep2ploc_core.evaluation.report import Grid
from ep2ploc_core.localizer import Localizer
from ep2ploc_core.machine import describe_machine, machine_caption
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_core.model.checkpoint import load_network
from ep2ploc_ros.messages import image_to_message, nanoseconds, pose_to_message

PROFILE = Path(__file__).resolve().parents[1] / "config" / "fastdds_shm.xml"
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
PATIENCE, SETTLE, SEED = 120.0, 2.0, 0
PARTS = {
    "camera to node": ("sent", "arrived"),
    "waits for the image before": ("arrived", "taken"),
    "reading the image, predicting the pose": ("taken", "begun"),
    "localizing": ("begun", "found"),
    "publishing, node to listener": ("found", "heard"),
    "image to pose": ("sent", "heard"),
}


# ---- processes of their own


def run_map_server(path: Path) -> None:
    from ep2ploc_ros.map_server_node import main

    sys.argv = ["map_server", "--ros-args", "-p", f"map_path:={path}"]
    main()


def run_localizer(log: Path) -> None:
    """The node as it is, but it writes down when each image arrives, is taken and is localized."""
    import ep2ploc_ros.localizer_node as module

    file = log.open("w", buffering=1)
    last: dict[str, float] = {}

    def watch(owner: type, name: str, moment: str, end: str = "", stamp_of: Callable[..., int] | None = None) -> None:
        original = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            begun = time.monotonic()
            if stamp_of is None:
                last[moment] = begun
            elif stamp := stamp_of(*arguments):
                file.write(json.dumps({"stamp": stamp, moment: begun}) + "\n")
            result = original(*arguments)
            if end:
                last[end] = time.monotonic()
            return result

        setattr(owner, name, watched)

    def image_stamp(_: object, kind: str, message: Any) -> int:
        return nanoseconds(message.header.stamp) if kind == "image" else 0

    watch(module.Inbox, "put", "arrived", stamp_of=image_stamp)
    watch(module.LocalizerNode, "_advance", "taken")
    watch(module.Localizer, "localize", "begun", "found")
    publish = module.Outputs.publish

    def published(self: Any, source: Header, *arguments: Any) -> None:
        publish(self, source, *arguments)
        file.write(json.dumps({"stamp": nanoseconds(source.stamp), **last}) + "\n")

    module.Outputs.publish = published  # type: ignore[method-assign]
    sys.argv = ["localizer", "--ros-args", "-p", "image_reliability:=reliable"]
    module.main()


@contextmanager
def process(work: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """Runs a function in a process of its own, and ends it with Ctrl-C."""
    started = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    started.start()
    try:
        yield started
    finally:
        if started.pid is not None and started.is_alive():
            os.kill(started.pid, signal.SIGINT)
        started.join(10)
        started.kill()


@contextmanager
def environment(profile: bool) -> Iterator[None]:
    """A random ROS domain on this machine alone, with the Fast DDS profile that is shipped or without."""
    kept = dict(os.environ)
    os.environ.update(ROS_DOMAIN_ID=str(random.SystemRandom().randint(1, 101)))
    os.environ.update(ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST", OMP_NUM_THREADS="1")
    for variable in PROFILE_VARIABLES:
        os.environ.pop(variable, None)
        if profile:
            os.environ[variable] = str(PROFILE)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


# ---- from image to pose


class Camera:
    """A camera that stands in the street; it hears the poses of its images."""

    def __init__(self, queries: Queries, index: int) -> None:
        assert queries.map_from_camera is not None
        self.node = rclpy.create_node("camera")
        self.pixels, self.camera, self.truth = queries.image(index), queries.camera, queries.map_from_camera[index]
        self.images = self.node.create_publisher(Image, "image", QoSProfile(depth=5))
        self.infos = self.node.create_publisher(CameraInfo, "camera_info", QoSProfile(depth=5))
        self.starts = self.node.create_publisher(PoseWithCovarianceStamped, "/initialpose", QoSProfile(depth=1))
        self.node.create_subscription(PoseStamped, "pose", self.hear, QoSProfile(depth=100))
        self.sent: dict[int, float] = {}
        self.heard: dict[int, float] = {}

    def hear(self, message: PoseStamped) -> None:
        self.heard[nanoseconds(message.header.stamp)] = time.monotonic()

    def give_start(self) -> None:
        """A first guess that is off as one from a hand is."""
        message = PoseWithCovarianceStamped(header=Header(frame_id="map"))
        error = se3.exp(torch.from_numpy(draw_start(np.random.default_rng(SEED), 0.3))).numpy()
        message.pose.pose = pose_to_message(self.truth @ error)
        self.starts.publish(message)

    def send(self) -> None:
        header = Header(frame_id="camera", stamp=self.node.get_clock().now().to_msg())
        info = CameraInfo(header=header, width=self.camera.width, height=self.camera.height)
        info.k = self.camera.matrix.ravel().tolist()
        image = image_to_message(self.pixels, header)
        self.sent[nanoseconds(header.stamp)] = time.monotonic()
        self.infos.publish(info)
        self.images.publish(image)

    def start(self) -> None:
        """Sends images until the first pose comes."""
        end = time.monotonic() + PATIENCE
        while not self.heard:
            if time.monotonic() > end:
                raise SystemExit(f"No pose came in {PATIENCE:.0f} s; what the nodes say is above.")
            if self.starts.get_subscription_count():
                self.give_start()
                self.send()
            pace(self.node, 1.0, 1.0, lambda: None)
        pace(self.node, SETTLE, 1.0, lambda: None)
        self.sent.clear()
        self.heard.clear()


def steady_image(map_path: Path, queries: Queries) -> int:
    """The first query whose pose is found again and again when each search begins where the last one ended."""
    localizer = Localizer(load_network("edge"), PointMap.open(map_path))
    assert queries.map_from_camera is not None
    for index, truth in enumerate(queries.map_from_camera):
        prior: np.ndarray | None = truth
        for _ in range(4):
            if prior is not None:
                prior = localizer.localize(queries.image(index), queries.camera, prior).map_from_camera
        if prior is not None:
            return index
    raise SystemExit("None of the street's images is localized; is the network the one that is shipped?")


def pace(node: Node, seconds: float, rate: float, work: Callable[[], None]) -> None:
    """Calls `work` `rate` times a second, and lets the node hear in between."""
    begun = due = time.monotonic()
    while time.monotonic() < begun + seconds:
        if time.monotonic() >= due:
            due += 1 / rate
            work()
        rclpy.spin_once(node, timeout_sec=max(0.0, due - time.monotonic()))


def moments(log: Path, camera: Camera) -> list[dict[str, float]]:
    """What is known of each image that got a pose, in the order of the images."""
    known = {stamp: {"sent": sent} for stamp, sent in camera.sent.items()}
    for line in log.read_text().splitlines(keepends=True):
        if line.endswith("\n") and (entry := json.loads(line)).pop("stamp") in known:
            known[json.loads(line)["stamp"]].update(entry)
    for stamp, heard in camera.heard.items():
        if stamp in known:
            known[stamp]["heard"] = heard
    wanted = {moment for part in PARTS.values() for moment in part}
    return [one for one in known.values() if wanted <= one.keys()]


class Threads:
    """Share of a core that the threads of a process use: the localizer's Python runs on two of them, its executor's
    (the first of the process) and its worker's."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.before, self.at = self._read(), time.monotonic()

    def _read(self) -> dict[int, float]:
        ticks = os.sysconf("SC_CLK_TCK")
        used: dict[int, float] = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            used[int(task.name)] = (int(fields[11]) + int(fields[12])) / ticks
        return used

    def executor_and_rest(self) -> tuple[float, float]:
        """Since this was made."""
        seconds = time.monotonic() - self.at
        used = {thread: now - self.before.get(thread, 0.0) for thread, now in self._read().items()}
        executor = used.pop(self.pid) / seconds
        return executor, sum(used.values()) / seconds


def memory(pid: int) -> float:
    """Megabytes that a process holds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def spread(values: list[float]) -> str:
    return f"{1000 * np.quantile(values, 0.5):.1f} / {1000 * np.quantile(values, 0.95):.1f}"


@contextmanager
def tracked_camera(folder: Path) -> Iterator[tuple[Camera, int, Path]]:
    """A camera that the nodes track, the localizer's process, and where its moments are written down."""
    from localizer import street  # the benchmark beside this one

    with environment(profile=True):
        map_path, query_path = street(folder)
        queries = Queries(query_path)
        steady = steady_image(map_path, queries)
        log = folder / "moments.jsonl"
        with process(run_map_server, map_path), process(run_localizer, log) as localizer:
            rclpy.init()
            camera = Camera(queries, steady)
            camera.start()
            yield camera, localizer.pid, log


def latency(camera: Camera, pid: int, log: Path, seconds: float) -> Grid:
    """The parts of the way from image to pose at three rates of images."""
    rates, columns = (2.0, 10.0, 30.0), []
    for rate in rates:
        camera.sent.clear()
        camera.heard.clear()
        threads = Threads(pid)
        pace(camera.node, seconds * (1.5 if rate < 5 else 1.0), rate, camera.send)
        executor, rest = threads.executor_and_rest()
        pace(camera.node, SETTLE, 1.0, lambda: None)
        known = moments(log, camera)
        if not known:
            raise SystemExit("No image got a pose; was the machine too busy?")
        rows = {part: spread([one[b] - one[a] for one in known]) for part, (a, b) in PARTS.items()}
        rows["poses for images sent"] = f"{len(known)} of {len(camera.sent)}"
        rows["cores: executor, all else"] = f"{executor:.2f}, {rest:.2f}"
        columns.append(rows)
    return Grid(
        ["ms, median / 95 %", *(f"{rate:.0f} Hz" for rate in rates)],
        [[name, *(column[name] for column in columns)] for name in columns[0]],
    )


def endurance(camera: Camera, pid: int, minutes: float) -> Grid:
    """Ten stretches of images at 30 Hz."""
    rows = []
    for part in range(10):
        camera.sent.clear()
        camera.heard.clear()
        pace(camera.node, minutes * 6, 30.0, camera.send)
        ages = [heard - camera.sent[stamp] for stamp, heard in camera.heard.items() if stamp in camera.sent]
        counts = (str(len(camera.sent)), str(len(ages)))
        end = f"{minutes * (part + 1) / 10:.1f}"
        rows.append([end, *counts, spread(ages) if ages else "-", f"{memory(pid):.0f}"])
    return Grid(["minute", "images", "poses", "age of a pose, ms, median / 95 %", "localizer, MB"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each measurement")
    parser.add_argument("--minutes", type=float, default=0.0, help="endurance instead: minutes at 30 Hz")
    parser.add_argument("--markdown", type=Path, help="write the table here, too")
    arguments = parser.parse_args()
    note = machine_caption(describe_machine())  # with the load that others make
    with tempfile.TemporaryDirectory() as folder, tracked_camera(Path(folder)) as (camera, pid, log):
        if arguments.minutes:
            title, grid = f"{arguments.minutes:g} minutes at 30 Hz", endurance(camera, pid, arguments.minutes)
        else:
            title, grid = "From the stamp of an image to its pose", latency(camera, pid, log, arguments.seconds)
    show_table(title, grid, arguments.markdown, note)


if __name__ == "__main__":
    main()
