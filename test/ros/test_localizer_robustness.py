"""A localizer process outlives whatever arrives, says what is wrong, and goes on. Its network is untrained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header, String
from std_srvs.srv import Trigger

from ep2ploc_core.map.point_map import PointMap
from ep2ploc_core.model.checkpoint import save_network
from ep2ploc_core.model.ep2ploc import NOT_LEARNED, EP2PLoc
from ep2ploc_ros import localizer_health

VERDICTS = ("Image refused", "Tracking", "Lost")  # what an untrained network says is of no interest here
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture
def started(listener, start, untrained: PointMap, camera):
    """A map_server and a localizer that waits for images, and a camera."""
    start("map_server_node", map_path=untrained.path)
    localizer = start("localizer_node")
    listener.wait_for_diagnostic("localizer", "Ready")
    return localizer, camera


def test_says_step_by_step_what_it_waits_for(listener, start, untrained: PointMap, camera) -> None:
    start("localizer_node")
    listener.wait_for_diagnostic("localizer", "map_info")
    start("map_server_node", map_path=untrained.path)
    status = listener.wait_for_diagnostic("localizer", "Ready")
    assert {value.key: value.value for value in status.values}["checkpoint"] == untrained.checkpoint
    listener.wait_for_diagnostic(
        "localizer", "No initial pose", meanwhile=lambda: camera.images.publish(camera.image())
    )
    camera.poses.publish(camera.start_pose())
    listener.wait_for_diagnostic(
        "localizer",
        "No camera_info has arrived on /camera_info",
        meanwhile=lambda: camera.images.publish(camera.image()),
    )
    status = listener.wait_for_diagnostic("localizer", *VERDICTS, meanwhile=camera.good)
    values = {value.key: value.value for value in status.values}
    assert int(values["images_received"]) > 0
    assert float(values["seconds"]) > 0


def test_bad_messages_are_named_and_outlived(listener, started) -> None:
    localizer, camera = started
    listener.wait(lambda: camera.poses.get_subscription_count())
    camera.poses.publish(camera.start_pose())
    listener.wait_for_diagnostic("localizer", *VERDICTS, meanwhile=camera.good)

    def with_info(**change: object):
        def send() -> None:
            camera.infos.publish(camera.info(**change))
            camera.images.publish(camera.image())

        return send

    def with_image(**change: object):
        def send() -> None:
            camera.infos.publish(camera.info())
            camera.images.publish(camera.image(**change))

        return send

    nan = float("nan")
    for words, send in {
        "not a number": with_info(k=[nan] * 9),
        "focal lengths": with_info(k=[0.0] * 9),
        "64x48 but the camera calibration is for 640x480": with_info(width=640, height=480),
        "encoding": with_image(encoding="nv21"),
        "bytes where": with_image(data=b"123"),
        "frame_id": with_image(header=Header()),
    }.items():
        listener.wait_for_diagnostic("localizer", words, meanwhile=send)
        listener.wait_for_diagnostic("localizer", *VERDICTS, meanwhile=camera.good)
    nowhere = camera.start_pose()
    nowhere.pose.pose.position.x = nan
    for words, pose in {
        "frame 'odom'": camera.start_pose("odom"),
        "quaternion": PoseWithCovarianceStamped(header=Header(frame_id="map")),
        "not a number": nowhere,
    }.items():
        if words == "quaternion":
            pose.pose.pose.orientation.w = 0.0
        listener.wait_for_diagnostic("localizer", words, meanwhile=lambda pose=pose: camera.poses.publish(pose))
        listener.wait_for_diagnostic("localizer", *VERDICTS, meanwhile=camera.good)
    stranger = listener.node.create_publisher(PointCloud2, "submap", 2)
    stranger.publish(PointCloud2(width=10**6, point_step=77))
    listener.wait_for_diagnostic("localizer", *VERDICTS, meanwhile=camera.good)
    assert localizer.process.poll() is None
    assert localizer.interrupt() == 0
    assert "Traceback" not in localizer.log.read_text()


def test_parameters_change_while_it_runs_and_bad_ones_are_refused_with_a_reason(listener, started) -> None:
    localizer, camera = started
    listener.wait_for_diagnostic("localizer", "No initial pose", meanwhile=camera.good)
    for name, value, reason in (
        ("initial_pose", [1.0, 2.0], "2 numbers, not 7"),
        ("initial_pose", [0.0] * 7, "quaternion"),
        ("initial_pose", "here", "list of numbers"),
        ("initial_pose_of", "lidar", "one of camera, base"),
        ("least_score", 99, "between -10 and 10"),
        ("least_belief", 70, "between 0 and 1"),
        ("refine", "twice", "one of auto, none, align, align_first"),
        ("refine", "align", NOT_LEARNED),
        ("submap_refresh", 0.0, "range"),
        ("tf_mode", "map_to_base", "read-only"),
        ("image_reliability", "reliable", "read-only"),
    ):
        answer = listener.set_parameter("localizer", name, value)
        assert not answer.successful and reason in answer.reason, (name, value, answer)
    assert listener.set_parameter("localizer", "submap_refresh", 5.0).successful
    assert listener.set_parameter("localizer", "initial_pose_of", "base").successful
    origin = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert listener.set_parameter("localizer", "initial_pose", origin).successful
    listener.wait_for_diagnostic("localizer", *VERDICTS, meanwhile=camera.good)
    listener.wait(lambda: "along the robot's x axis" in localizer.log.read_text())
    listener.wait(lambda: int(listener.values("localizer")["refused_in_a_row"]) > 20, meanwhile=camera.good)
    assert listener.set_parameter("localizer", "initial_pose", origin).successful  # the same one: starts from it again
    assert listener.set_parameter("localizer", "submap_refresh", 6.0).successful
    listener.wait(lambda: int(listener.values("localizer")["refused_in_a_row"]) < 20, meanwhile=camera.good)


def test_diagnostics_have_all_their_keys_also_while_nothing_happens(listener, started) -> None:
    _, camera = started
    documented = re.findall(r"^\| ([a-z_, ]+?) +\|", localizer_health.__doc__ or "", re.MULTILINE)
    keys = {key for row in documented for key in row.split(", ")} - {"key", "last_rejected", "last_odometry_jump"}
    assert keys <= set(listener.values("localizer"))
    listener.wait(camera.ready)
    camera.poses.publish(camera.start_pose())
    listener.wait_for_diagnostic("localizer", *VERDICTS, meanwhile=camera.good)
    values = listener.values("localizer")
    assert keys <= set(values)
    assert float(values["submap_age_seconds"]) >= 0
    assert values["last_refusal"] != "none"
    assert values["poses_per_second"] == "0.00"
    rejected = int(values["messages_rejected"])
    camera.images.publish(camera.image(encoding="16UC1"))
    listener.wait(lambda: int(listener.values("localizer")["messages_rejected"]) > rejected)
    assert "depth image" in listener.values("localizer")["last_rejected"]

    def of_another_frame() -> None:
        camera.infos.publish(camera.info(header=camera.header("rear_camera")))
        camera.images.publish(camera.image())

    def info_frame() -> str:
        return listener.values("localizer")["camera_info_frame"]

    assert info_frame() == "camera"
    listener.wait(lambda: "their camera_info in 'rear_camera'" in info_frame(), meanwhile=of_another_frame)
    listener.wait(lambda: info_frame() == "camera", meanwhile=camera.good)


def test_odometry_without_meaning_is_named_and_outlived(listener, started) -> None:
    localizer, camera = started
    odometry = listener.node.create_publisher(Odometry, "odom", 10)
    listener.wait(odometry.get_subscription_count)

    def send(**change: float) -> None:
        message = Odometry(header=camera.header("odom"), child_frame_id="base_link")
        message.pose.pose.orientation.w = 1.0
        for name, value in change.items():
            setattr(message.pose.pose.position, name, value)
        odometry.publish(message)

    def rejected() -> str:
        return listener.values("localizer").get("last_rejected", "")

    listener.wait(lambda: "/odom is left out" in rejected(), meanwhile=lambda: send(x=float("nan")))

    def jump() -> None:
        camera.seconds += 0.1
        send(x=1000.0 * (round(camera.seconds * 10) % 2))

    listener.wait(lambda: "jumped by" in listener.values("localizer").get("last_odometry_jump", ""), meanwhile=jump)
    camera.poses.publish(camera.start_pose())
    listener.wait_for_diagnostic("localizer", *VERDICTS, meanwhile=camera.good)
    assert localizer.interrupt() == 0
    assert "Traceback" not in localizer.log.read_text()


def test_services_start_again_and_forget(listener, started) -> None:
    _, camera = started
    relocalize = listener.node.create_client(Trigger, "localizer/relocalize")
    reset = listener.node.create_client(Trigger, "localizer/reset")
    answer = listener.wait_for_service(relocalize, Trigger.Request())
    assert not answer.success
    assert "/initialpose" in answer.message
    listener.wait(lambda: camera.poses.get_subscription_count())
    camera.poses.publish(camera.start_pose())
    listener.wait_for_diagnostic("localizer", *VERDICTS, meanwhile=camera.good)
    assert listener.wait_for_service(relocalize, Trigger.Request()).success
    assert listener.wait_for_service(reset, Trigger.Request()).success
    listener.wait_for_diagnostic("localizer", "No initial pose", meanwhile=camera.good)


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ({"checkpoint": "01234567", "checkpoint_file": "/elsewhere/weights.safetensors"}, "not on this machine"),
        ({"checkpoint": "", "checkpoint_file": ""}, "no descriptors"),
        (["not", "a", "mapping"], "message is not that"),
        ({"unknown": 1}, "message is not that"),
        ("{[", "message is not that"),
    ],
)
def test_a_map_that_does_not_fit_is_explained(listener, start, description: object, words: str) -> None:
    if isinstance(description, dict) and "checkpoint" in description:
        description = {"path": "/m", "origin": [0.0] * 3, "voxel_size": 0.2, "num_points": 9, **description}
    text = description if isinstance(description, str) else yaml.safe_dump(description)
    publisher = listener.node.create_publisher(String, "map_info", LATCHED)
    localizer = start("localizer_node")
    publisher.publish(String(data=text))
    listener.wait_for_diagnostic("localizer", words)
    assert localizer.interrupt() == 0


def test_a_network_that_did_not_encode_the_map_is_refused(listener, start, untrained: PointMap, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_network(EP2PLoc(), other)
    start("map_server_node", map_path=untrained.path)
    start("localizer_node", checkpoint=other)
    status = listener.wait_for_diagnostic("localizer", f"was encoded by the network {untrained.checkpoint}")
    assert status.level == status.ERROR


@pytest.mark.parametrize("pose", ["[1.0,2.0]", "[0.0,0.0,0.0,0.0,0.0,0.0,0.0]", "here"])
def test_an_initial_pose_that_is_none_is_exit_code_2(start, pose: str) -> None:
    localizer = start("localizer_node", initial_pose=pose)
    assert localizer.process.wait(timeout=60) == 2
    assert "Traceback" not in localizer.log.read_text()


def test_ctrl_c_while_it_waits_is_exit_code_0(listener, start) -> None:
    localizer = start("localizer_node", initial_pose="[0,0,0,0,0,0,1]")
    listener.wait_for_diagnostic("localizer", "map_info")
    assert localizer.interrupt() == 0
