"""The localizer refines poses by feature alignment where it is told to and its network can, and tells what became of
it. The networks are untrained: what they say of images means nothing."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import rclpy
import torch

from ep2ploc_core.localization import Localization
from ep2ploc_core.map.point_map import SITE_CHECKPOINT, MapInfo, PointMap, write_map
from ep2ploc_core.model.checkpoint import load_network, save_network
from ep2ploc_core.model.ep2ploc import NOT_LEARNED, EP2PLoc, NetworkConfig
from ep2ploc_core.pose.belief import AlignmentEvidence
from ep2ploc_core.refinement import Refinement
from ep2ploc_core.tracker import Tracker
from ep2ploc_ros.inbox import Inbox
from ep2ploc_ros.localizer_health import LocalizerHealth

VERDICTS = ("Image refused", "Tracking", "Lost", "waiting for a second one")


@pytest.fixture(scope="module")
def aligning(untrained: PointMap, tmp_path_factory: pytest.TempPathFactory) -> PointMap:
    """The untrained map with a network that has a head for the alignment."""
    path = tmp_path_factory.mktemp("aligning") / "map"
    points = untrained.all_points()
    point_map = write_map(path, points, MapInfo(voxel_size=untrained.voxel_size))
    torch.manual_seed(3)
    save_network(EP2PLoc(NetworkConfig(alignment_width=8)), path / SITE_CHECKPOINT)
    assert points.descriptors is not None
    point_map.store_descriptors(points.descriptors, load_network(path / SITE_CHECKPOINT).fingerprint)
    return point_map


def test_refinement_is_switched_on_and_off_while_it_runs_and_told(listener, start, aligning, camera) -> None:
    start("map_server_node", map_path=aligning.path)
    start("localizer_node")
    listener.wait_for_diagnostic("localizer", "Ready")
    listener.wait(camera.ready)
    camera.poses.publish(camera.start_pose())
    listener.wait_for_diagnostic("localizer", *VERDICTS, meanwhile=camera.good)

    def told(pattern: str) -> bool:
        return re.fullmatch(pattern, listener.values("localizer")["refinement"]) is not None

    assert told("none") and listener.values("localizer")["refinements_given_up"] == "0 of 0"
    assert listener.set_parameter("localizer", "refine", "align").successful
    listener.wait(
        lambda: told(r"taken after \d+ steps: cost \d\.\d{3} -> \d\.\d{3}|given up: .+"), meanwhile=camera.good
    )
    assert re.fullmatch(r"\d+ of [1-9]\d*", listener.values("localizer")["refinements_given_up"])
    assert listener.set_parameter("localizer", "refine", "none").successful
    listener.wait(lambda: told("none"), meanwhile=camera.good)


def test_a_start_that_asks_for_what_the_network_cannot_is_explained_and_can_be_put_right(
    listener, start, untrained: PointMap, camera
) -> None:
    start("map_server_node", map_path=untrained.path)
    localizer = start("localizer_node", refine="align")
    status = listener.wait_for_diagnostic("localizer", NOT_LEARNED)
    assert status.level == status.ERROR
    assert listener.set_parameter("localizer", "refine", "none").successful
    listener.wait_for_diagnostic("localizer", "Ready")
    listener.wait(camera.ready)
    camera.poses.publish(camera.start_pose())
    listener.wait_for_diagnostic("localizer", *VERDICTS, meanwhile=camera.good)
    assert localizer.interrupt() == 0
    assert "Traceback" not in localizer.log.read_text()


def test_another_map_whose_network_cannot_refine_is_explained(
    listener, start, aligning: PointMap, untrained: PointMap
) -> None:
    start("map_server_node", map_path=aligning.path)
    start("localizer_node", refine="align")
    listener.wait_for_diagnostic("localizer", "Ready")
    assert listener.set_parameter("map_server", "map_path", str(untrained.path)).successful
    status = listener.wait_for_diagnostic("localizer", NOT_LEARNED)
    assert status.level == status.ERROR


def test_refinements_are_counted_and_those_given_up_apart(listener) -> None:
    node = rclpy.create_node("counting")
    health = LocalizerHealth(node, Inbox())
    poses = np.stack([np.eye(4)] * 15)
    taken = Refinement(
        of="search", given_up="", cost_before=0.4123, cost_after=0.3846, likeness_before=0.4, likeness_after=0.5,
        least_likeness_before=0.1, poses=poses, covariance=np.eye(6), num_points=0,
        evidence=AlignmentEvidence(0.5, 0.2, 0.1, 0.05, 8), points_map=np.zeros((0, 3)), pixels=np.zeros((0, 2)),
    )  # fmt: skip
    given_up = replace(taken, given_up="it moved points out of the image", cost_before=0.4, cost_after=0.3)
    cost, outside = "taken after 14 steps: cost 0.412 -> 0.385", "given up: it moved points out of the image"
    for aligned, sharpened, words, count in (
        (given_up, None, (outside, "none"), "1 of 1"),
        (taken, taken, (cost, cost), "1 of 3"),
        (None, None, ("none", "none"), "1 of 3"),
        (taken, given_up, (cost, outside), "2 of 5"),
    ):
        health.settled(1, Localization("ok", refinement=aligned, sharpening=sharpened), Tracker(), False)
        expected = {"refinement": words[0], "sharpening": words[1], "refinements_given_up": count}
        listener.wait(
            lambda expected=expected: expected.items() <= listener.values("counting").items(),
            meanwhile=lambda: rclpy.spin_once(node, timeout_sec=0),
        )
    node.destroy_node()
