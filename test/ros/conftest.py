"""Real processes in a ROS domain of their own, and a node of the test that listens to them."""

from __future__ import annotations

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

from ep2ploc_core.map.point_map import MapInfo, MapPoints, PointMap, write_map

rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not installed")

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


@pytest.fixture
def listener(request: pytest.FixtureRequest) -> Iterator[Listener]:
    """A Listener that hears /diagnostics."""
    from diagnostic_msgs.msg import DiagnosticArray

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

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=PATIENCE)


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
            one.process.kill()
            one.process.wait()
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
