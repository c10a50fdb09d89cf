"""Ctrl-C ends every node in order and at once, with exit code 0, whatever it is doing."""

from __future__ import annotations

import signal
import time
from pathlib import Path

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


@pytest.fixture
def camera(camera, site):
    """A camera driver with the site's camera and the image of its query."""
    camera.camera, camera.pixels = site.camera, site.image
    return camera


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
