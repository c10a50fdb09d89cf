"""Real processes in a ROS domain of their own, and a node of the test that listens to them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from ep2ploc_core.camera import Camera
from ep2ploc_core.map.point_map import SITE_CHECKPOINT, MapInfo, MapPoints, PointMap, write_map
from ep2ploc_core.model.checkpoint import load_network, save_network
from ep2ploc_core.model.ep2ploc import EP2PLoc
from ep2ploc_ros.messages import image_to_message, pose_to_message
from ep2ploc_ros.transforms import FORWARD_BASE_FROM_CAMERA

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds until something that should happen counts as never


@pytest.fixture(scope="session", autouse=True)
def ros_domain() -> Iterator[None]:
    """A random domain, on this machine alone, over the shared-memory profile that the package ships."""
    kept = dict(os.environ)
    os.environ.update(
        ROS_DOMAIN_ID=str(random.SystemRandom().randint(1, 101)),
        ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST",
        FASTRTPS_DEFAULT_PROFILES_FILE=str(ROOT / "config" / "fastdds_shm.xml"),
        OMP_NUM_THREADS="1",
    )
    rclpy.init()
    yield
    rclpy.try_shutdown()
    os.environ.clear()
    os.environ.update(kept)


class Listener:
    """A node of the test: keeps all messages of the topics it listens to."""

    def __init__(self, name: str) -> None:
        self.node = rclpy.create_node(name)
        self.heard: dict[str, list] = {}

    def listen(self, kind: type, topic: str, qos: Any = 10) -> list:
        """The list into which messages of this topic will come."""
        messages = self.heard.setdefault(topic, [])
        self.node.create_subscription(kind, topic, messages.append, qos)
        return messages

    def wait(self, condition: Callable[[], Any], meanwhile: Callable[[], Any] | None = None) -> Any:
        """Spins until the condition gives something true and returns that; `meanwhile` is called ten times a second."""
        end, tick = time.monotonic() + PATIENCE, 0.0
        while time.monotonic() < end:
            rclpy.spin_once(self.node, timeout_sec=0.02)
            if found := condition():
                return found
            if meanwhile is not None and time.monotonic() > tick:
                tick = time.monotonic() + 0.1
                meanwhile()
        raise AssertionError("it did not happen")

    def diagnostic(self, node: str) -> Any:
        """The newest entry of a node in /diagnostics."""
        for message in reversed(self.heard["/diagnostics"]):
            for status in message.status:
                if status.name.split("/")[-1] == node:
                    return status
        return None

    def wait_for_diagnostic(self, node: str, *words: str, meanwhile: Callable[[], Any] | None = None) -> Any:
        """Waits until the node's newest diagnostic contains one of the words, and returns it."""

        def found() -> Any:
            status = self.diagnostic(node)
            return status if status is not None and any(one in status.message for one in words) else None

        try:
            return self.wait(found, meanwhile)
        except AssertionError:
            raise AssertionError(f"{node} never said {words}; last: {self.diagnostic(node)}") from None

    def wait_for_service(self, client: Any, request: Any) -> Any:
        """Calls a service and returns its answer."""
        self.wait(client.service_is_ready)
        future = client.call_async(request)
        self.wait(future.done)
        return future.result()

    def set_parameter(self, node: str, name: str, value: object) -> Any:
        """Sets a parameter of a node while it runs, and returns its answer: `successful` and `reason`."""
        client = self.node.create_client(SetParameters, f"{node}/set_parameters")
        call = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        return self.wait_for_service(client, call).results[0]

    def values(self, node: str) -> dict[str, str]:
        """The values of a node's newest diagnostic, by key."""
        status = self.diagnostic(node)
        return {} if status is None else {value.key: value.value for value in status.values}


@pytest.fixture
def listener(request: pytest.FixtureRequest) -> Iterator[Listener]:
    """A Listener that hears /diagnostics."""
    one = Listener(f"listener_{abs(hash(request.node.name)) % 10**6}")
    one.listen(DiagnosticArray, "/diagnostics")
    yield one
    one.node.destroy_node()


class Started:
    """A node as a process of its own."""

    def __init__(self, module: str, arguments: list[str], log: Path) -> None:
        self.log = log
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"ep2ploc_ros.{module}", "--ros-args", *arguments],
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    @property
    def megabytes(self) -> float:
        """The memory that it holds."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Starts `ep2ploc_ros.MODULE` with parameters, in a namespace; all are ended after the test."""
    running: list[Started] = []

    def _start(module: str, namespace: str = "", **parameters: Any) -> Started:
        arguments = [f"-p {name}:={value}" for name, value in parameters.items() if value != ""]
        if namespace:
            arguments.append(f"-r __ns:={namespace}")
        flat = [word for argument in arguments for word in argument.split(" ", 1)]
        running.append(Started(module, flat, tmp_path / f"{module}_{len(running)}.log"))
        return running[-1]

    yield _start
    for one in running:
        if one.process.poll() is None:
            one.interrupt()  # a node that is killed leaves its shared memory behind
        print(f"--- {one.log.name}\n{one.log.read_text(errors='replace')}")


@pytest.fixture(scope="session")
def small_map(tmp_path_factory: pytest.TempPathFactory) -> PointMap:
    """200 m of random points along x, with random descriptors from the network 'cafe0123'."""
    random_numbers = np.random.default_rng(0)
    count = 5000
    xyz = random_numbers.uniform([0, -20, -2], [200, 20, 8], (count, 3)).astype(np.float32)
    attributes = random_numbers.uniform(0, 1, (count, 6)).astype(np.float32)
    points = MapPoints(xyz, attributes, np.zeros((count, 2), np.uint16))
    point_map = write_map(tmp_path_factory.mktemp("small") / "map", points, MapInfo(voxel_size=0.2))
    point_map.store_descriptors(random_numbers.integers(-127, 128, (count, 16)).astype(np.int8), "cafe0123")
    return point_map


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> PointMap:
    """A map of random points with a network of its own, untrained: what it says of images means nothing."""
    path = tmp_path_factory.mktemp("untrained") / "map"
    numbers = np.random.default_rng(4)
    count = 20_000
    xyz = numbers.uniform([-50, -30, -2], [150, 30, 6], (count, 3)).astype(np.float32)
    attributes = np.zeros((count, 6), np.float32)
    point_map = write_map(path, MapPoints(xyz, attributes, np.zeros((count, 2), np.uint16)), MapInfo(voxel_size=0.2))
    torch.manual_seed(3)
    save_network(EP2PLoc(), path / SITE_CHECKPOINT)
    network = load_network(path / SITE_CHECKPOINT)
    width = network.config.descriptor_width
    point_map.store_descriptors(numbers.integers(-30, 30, (count, width)).astype(np.int8), network.fingerprint)
    return point_map


class CameraDriver:
    """A camera driver of the test, with a clock of its own."""

    def __init__(self, listener: Listener) -> None:
        node = listener.node
        self.images = node.create_publisher(Image, "image", qos_profile_sensor_data)
        self.infos = node.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
        self.poses = node.create_publisher(PoseWithCovarianceStamped, "/initialpose", 1)
        self.seconds = 1000.0
        self.pixels = np.random.default_rng(5).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        self.camera = Camera.from_matrix(64, 48, np.array([40.0, 0, 32, 0, 40, 24, 0, 0, 1]))

    def header(self, frame: str) -> Header:
        """A header of now."""
        header = Header(frame_id=frame)
        header.stamp.sec = int(self.seconds)
        header.stamp.nanosec = int(self.seconds % 1 * 1e9)
        return header

    def info(self, **change: object) -> CameraInfo:
        """A calibration; `change` sets other values."""
        camera = self.camera
        message = CameraInfo(header=self.header("camera"), width=camera.width, height=camera.height)
        message.k = camera.matrix.ravel().tolist()
        for name, value in change.items():
            setattr(message, name, value)
        return message

    def image(self, **change: object) -> Image:
        """The next image; `change` sets other values."""
        self.seconds += 0.1
        message = image_to_message(self.pixels, self.header("camera"))
        for name, value in change.items():
            setattr(message, name, value)
        return message

    def start_pose(self, frame: str = "map", pose: np.ndarray = FORWARD_BASE_FROM_CAMERA) -> PoseWithCovarianceStamped:
        """An initial pose; by default at the map's origin, looking along its x axis."""
        message = PoseWithCovarianceStamped(header=self.header(frame))
        message.pose.pose = pose_to_message(pose)
        return message

    def ready(self) -> bool:
        """Whether somebody listens to all of it."""
        return all(one.get_subscription_count() for one in (self.images, self.infos, self.poses))

    def good(self) -> None:
        """Sends an image with its calibration."""
        self.infos.publish(self.info())
        self.images.publish(self.image())


@pytest.fixture
def camera(request: pytest.FixtureRequest, listener: Listener) -> CameraDriver:
    """A CameraDriver; of the site's camera, with the image of its query, where the test is about the site."""
    driver = CameraDriver(listener)
    if "site" in request.fixturenames:
        site = request.getfixturevalue("site")
        driver.camera, driver.pixels = site.camera, site.image
    return driver


@pytest.fixture
def abandoned() -> Callable[[], set[Path]]:
    """Which shared memory has lost its process, by its lock file: Fast DDS holds a lock on what is in use."""

    def _abandoned() -> set[Path]:
        found = set()
        for lock in Path("/dev/shm").glob("fastrtps_*_el"):
            with contextlib.suppress(FileNotFoundError), lock.open() as held:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue
                found.add(lock)
        return found

    return _abandoned
