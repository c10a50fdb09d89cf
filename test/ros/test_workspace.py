"""The package in a ROS 2 workspace: colcon builds it, and its launch file starts what was built."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rcl_interfaces.srv import GetParameters
from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_typestore

from ep2ploc_core.map.point_map import PointMap

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
PROGRAMS = ("ep2ploc", "map_server", "localizer", "bag_player")
# What `ros2 launch` does, without the ros2 command.
LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
source = PythonLaunchDescriptionSource(sys.argv[1])
arguments = [tuple(word.split(":=", 1)) for word in sys.argv[2:]]
service = LaunchService()
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments)])
)
sys.exit(service.run())
"""


def _installed(module: str) -> bool:
    """Whether it can be imported; the repository's own `launch` folder is not that package."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The install folder of the package, built by colcon in a workspace of its own from a copy of the sources."""
    if not _installed("colcon_core") or not _installed("colcon_ros"):
        pytest.skip("colcon is not installed, so the package cannot be built as in a ROS 2 workspace")
    workspace = tmp_path_factory.mktemp("workspace")
    source = workspace / "src" / "ep2ploc_ros"
    for name in ("ep2ploc_core", "ep2ploc_ros", "launch", "config", "resource"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "package.xml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    environment = {**os.environ, "COLCON_HOME": str(workspace), "AMENT_PREFIX_PATH": "", "COLCON_PREFIX_PATH": ""}
    done = subprocess.run(
        [sys.executable, "-m", "colcon", "build"], cwd=workspace, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return workspace / "install" / "ep2ploc_ros"


def test_colcon_puts_everything_where_ros_looks(install: Path) -> None:
    share = install / "share"
    assert (share / "ament_index" / "resource_index" / "packages" / "ep2ploc_ros").exists()
    for name in (
        "package.xml",
        "launch/localize.launch.py",
        *(f"config/{file.name}" for file in (ROOT / "config").iterdir()),
    ):
        assert (share / "ep2ploc_ros" / name).is_file(), name
    for name in PROGRAMS:  # `ros2 run` and launch files find them here only
        assert os.access(install / "lib" / "ep2ploc_ros" / name, os.X_OK), name
    assert next(install.glob("lib/python*/site-packages/ep2ploc_core/weights/edge.safetensors"))


def _environment(install: Path) -> dict[str, str]:
    """That of a shell which has sourced the workspace."""
    packages = next(install.glob("lib/python*/site-packages"))

    def before(path: Path, name: str) -> str:
        return os.pathsep.join([str(path), *filter(None, [os.environ.get(name)])])

    return {
        **os.environ,
        "PYTHONPATH": before(packages, "PYTHONPATH"),
        "AMENT_PREFIX_PATH": before(install, "AMENT_PREFIX_PATH"),
    }


def test_what_colcon_installed_runs(install: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [install / "lib" / "ep2ploc_ros" / "bag_player", "--ros-args", "-p", f"bag:={tmp_path}"],
        env=_environment(install), cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 2
    assert "cannot be played" in done.stderr


class Launched:
    """The launch file, started with arguments."""

    def __init__(self, install: Path, folder: Path, **arguments: object) -> None:
        self.log = folder / "launch.log"
        words = [f"{name}:={value}" for name, value in arguments.items()]
        file = install / "share" / "ep2ploc_ros" / "launch" / "localize.launch.py"
        environment = {**_environment(install), "ROS_LOG_DIR": str(folder / "ros_log")}
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, file, *words],
                cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def interrupt(self) -> int:
        """Ctrl-C, which a terminal sends to the launch program and to the nodes alike."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(PATIENCE)


@pytest.fixture
def launch(install: Path, tmp_path: Path) -> Iterator[Any]:
    """Starts the installed launch file; it is ended after the test."""
    if not _installed("launch_ros"):
        pytest.skip("launch_ros is not installed, so the launch file cannot be run")
    running: list[Launched] = []

    def start(**arguments: object) -> Launched:
        running.append(Launched(install, tmp_path, **arguments))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGINT)
            one.process.wait(PATIENCE)
        print(one.log.read_text())


def _parameters(listener: Any, node: str, *names: str) -> list[Any]:
    client = listener.node.create_client(GetParameters, f"{node}/get_parameters")
    return listener.wait_for_service(client, GetParameters.Request(names=list(names))).values


def test_launch_starts_the_nodes_as_it_was_told_and_ends_with_ctrl_c(
    listener: Any, launch: Any, untrained: PointMap, tmp_path: Path
) -> None:
    params = tmp_path / "mine.yaml"
    params.write_text("/**:\n  ros__parameters: {least_score: 0.5, submap_radius: 33, map_frame: site}\n")
    launched = launch(
        map=untrained.path, params=params, image="/front/image", camera_info="/front/info", odom="/wheels",
        namespace="robot", use_sim_time="true",
    )  # fmt: skip
    listener.wait_for_diagnostic("localizer", "Ready")
    subscribed = dict(listener.node.get_subscriber_names_and_types_by_node("localizer", "/robot"))
    assert {"/front/image", "/front/info", "/robot/submap", "/initialpose"} <= set(subscribed)
    published = dict(listener.node.get_publisher_names_and_types_by_node("map_server", "/robot"))
    assert "/robot/map_points" in published
    score, frame, clock = _parameters(listener, "/robot/localizer", "least_score", "map_frame", "use_sim_time")
    assert (score.double_value, frame.string_value, clock.bool_value) == (0.5, "site", True)
    radius, path = _parameters(listener, "/robot/map_server", "submap_radius", "map_path")
    assert radius.integer_value == 33 or radius.double_value == 33
    assert path.string_value == str(untrained.path)
    launched.interrupt()
    assert launched.log.read_text().count("process has finished cleanly") == 2


def test_launch_plays_a_bag_with_simulated_time(
    listener: Any, launch: Any, untrained: PointMap, tmp_path: Path
) -> None:
    store = get_typestore(Stores.ROS2_JAZZY)
    kind = "std_msgs/msg/String"
    with Writer(tmp_path / "bag", version=Writer.VERSION_LATEST) as writer:
        connection = writer.add_connection("/words", kind, typestore=store)
        for second in (1, 2):
            writer.write(connection, second * 10**9, store.serialize_cdr(store.types[kind]("word"), kind))
    launched = launch(map=untrained.path, bag=tmp_path / "bag")
    (clock,) = _parameters(listener, "/localizer", "use_sim_time")
    assert clock.bool_value
    listener.wait(lambda: "[bag_player-3]: process has finished cleanly" in launched.log.read_text())
    launched.interrupt()
    assert launched.log.read_text().count("process has finished cleanly") == 3
