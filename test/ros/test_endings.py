"""Ctrl-C ends every node in order and at once, with exit code 0, whatever it is doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from ep2ploc_core.datasets.bag_writer import write_kitti_bag
from ep2ploc_core.datasets.kitti import KittiDrive

PATIENCE = 15.0  # seconds; on a machine with nothing else to do it takes less than two


def ends(node, times: int = 1) -> None:
    """Sends Ctrl-C, as often as asked for, and checks that the node ends by itself."""
    begun = time.monotonic()
    for _ in range(times):
        node.process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    code = node.process.wait(timeout=PATIENCE)
    print(f"{node.log.stem} ended after {time.monotonic() - begun:.2f} s")
    assert code == 0
    assert "Traceback" not in node.log.read_text()


def test_map_server_while_it_serves_and_localizer_while_it_searches(listener, start, site, camera) -> None:
    server = start("map_server_node", map_path=site.map_path)
    localizer = start("localizer_node")
    submaps = listener.listen(PointCloud2, "submap")
    requests = listener.node.create_publisher(PoseStamped, "submap_request", 2)
    relocalize = listener.node.create_client(Trigger, "localizer/relocalize")
    listener.wait_for_diagnostic("localizer", "Ready")
    listener.wait(camera.ready)
    listener.wait(lambda: listener.wait_for_service(relocalize, Trigger.Request()).success)  # its places have come
    asked = len(submaps)
    listener.wait(lambda: len(submaps) > asked, meanwhile=camera.good)  # the search asks for the places' surroundings
    time.sleep(0.3)  # and then computes for seconds
    ends(localizer, times=2)  # under `ros2 launch` a terminal's Ctrl-C comes twice
    request = PoseStamped(header=Header(frame_id="map"))

    def ask() -> None:
        for _ in range(5):
            requests.publish(request)

    asked = len(submaps)
    listener.wait(lambda: len(submaps) > asked, meanwhile=ask)
    ask()
    ends(server)


def test_player_while_it_plays_and_recorder_while_it_records(listener, start, site, tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    write_kitti_bag(KittiDrive(site.drive_path), bag, initial_poses={0: np.eye(4)})
    images = listener.listen(Image, "/camera/image")
    written = tmp_path / "replay.jsonl"
    recorder = start("recorder_node", namespace="/camera", file=written)
    player = start("bag_player_node", bag=bag, loop=True)
    listener.wait(lambda: len(images) > 3 and written.exists() and "image" in written.read_text())
    ends(player)
    ends(recorder)


def test_nodes_that_wait(listener, start, tmp_path: Path, site) -> None:
    bag = tmp_path / "bag"
    write_kitti_bag(KittiDrive(site.drive_path), bag, frames=[0])
    waiting = {
        "map_server": (start("map_server_node"), "No map"),
        "localizer": (start("localizer_node"), "Waiting"),
        "bag_player": (start("bag_player_node", bag=bag, longest_wait=600.0), "starting"),
    }
    for name, (_, words) in waiting.items():
        listener.wait_for_diagnostic(name, words)
    for node, _ in waiting.values():
        ends(node)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_node_said_is_in_its_log_file(listener, start, tmp_path: Path, monkeypatch, number: int) -> None:
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "logs"))
    localizer = start("localizer_node")
    listener.wait_for_diagnostic("localizer", "Waiting")
    localizer.process.send_signal(number)
    assert localizer.process.wait(timeout=PATIENCE) == 0
    assert "Waiting for the map_server" in "".join(log.read_text() for log in (tmp_path / "logs").iterdir())


def test_a_node_that_cannot_start_leaves_no_shared_memory(start, abandoned, tmp_path: Path) -> None:
    before = abandoned()
    player = start("bag_player_node", bag=tmp_path)
    assert player.process.wait(timeout=PATIENCE) == 2
    assert not abandoned() - before


def program(path: Path, lines: str) -> dict[str, Any]:
    """Arguments for subprocess, to run a node of the test's own; `lines` define its class, Mine."""
    path.write_text(
        f"import time\nfrom ep2ploc_ros.running import RunnableNode, run\nclass Mine(RunnableNode):\n{lines}run(Mine)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return {"args": [sys.executable, path], "env": environment, "text": True}


def test_a_stop_that_fails_is_told_and_the_node_ends_all_the_same(abandoned, tmp_path: Path) -> None:
    node = program(
        tmp_path / "node.py",
        "    finished = True\n"
        "    def __init__(self):\n"
        "        super().__init__('failing')\n"
        "    def stop(self):\n"
        "        raise RuntimeError('no end')\n",
    )
    before = abandoned()
    ended = subprocess.run(**node, capture_output=True, timeout=60)
    assert ended.returncode == 1 and "RuntimeError: no end" in ended.stderr
    assert not abandoned() - before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_node_that_is_still_starting_ends_too(abandoned, tmp_path: Path, number: int) -> None:
    node = program(
        tmp_path / "node.py",
        "    def __init__(self):\n"
        "        super().__init__('slow')\n"
        "        print('starting', flush=True)\n"
        "        time.sleep(600)\n",  # it would go on for ever, were it not interrupted
    )
    before = abandoned()
    with subprocess.Popen(**node, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        for _ in range(2):
            process.send_signal(number)
            time.sleep(0.02)
        assert process.wait(timeout=PATIENCE) == 0
        assert not process.stderr.read()
    assert not abandoned() - before
