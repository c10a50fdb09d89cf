"""Localization goes on after the map_server died, the camera_info was wrong, or time jumped back; no pose is wrong."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, TransformStamped
from rosgraph_msgs.msg import Clock
from tf2_msgs.msg import TFMessage

from ep2ploc_core import se3
from ep2ploc_core.datasets.bag_writer import write_kitti_bag
from ep2ploc_core.datasets.kitti import KittiDrive
from ep2ploc_ros.messages import nanoseconds, pose_from_message, pose_to_message
from ep2ploc_ros.ros_imports import StaticTransformBroadcaster, TransformBroadcaster
from ep2ploc_ros.transforms import FORWARD_BASE_FROM_CAMERA


@pytest.fixture
def swept_up(abandoned) -> Iterator[None]:
    """Removes the shared memory that a killed process leaves behind."""
    yield
    for lock in abandoned():
        lock.unlink(missing_ok=True)
        lock.with_name(lock.name.removesuffix("_el")).unlink(missing_ok=True)


def wrong(poses: list[PoseStamped], truth: np.ndarray) -> list[tuple[float, float]]:
    """How far off the poses are that are off: more than half a metre or two degrees."""
    errors = [se3.pose_error(pose_from_message(pose.pose), truth) for pose in poses]
    return [error for error in errors if error[0] > 0.5 or error[1] > np.radians(2)]


def transform(parent: str, child: str, parent_from_child: np.ndarray, stamp: Time | None = None) -> TransformStamped:
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    if stamp is not None:
        message.header.stamp = stamp
    pose = pose_to_message(parent_from_child)
    place = message.transform.translation
    place.x, place.y, place.z = pose.position.x, pose.position.y, pose.position.z
    message.transform.rotation = pose.orientation
    return message


def test_the_map_server_dies_and_returns(listener, start, site, camera, swept_up) -> None:
    server = start("map_server_node", map_path=site.map_path)
    # Two metres: while the server is away the camera leaves the submap that is at hand.
    localizer = start("localizer_node", submap_refresh=2)
    poses = listener.listen(PoseStamped, "pose")
    elsewhere = site.prior.copy()
    elsewhere[:3, 3] += 10 * site.prior[:3, 2]
    listener.wait_for_diagnostic("localizer", "Ready")
    listener.wait(camera.ready)
    camera.poses.publish(camera.start_pose(pose=site.prior))
    listener.wait(lambda: poses, meanwhile=camera.good)
    for end in (signal.SIGKILL, signal.SIGINT):
        server.process.send_signal(end)
        server.process.wait(timeout=60)
        known = len(poses)
        listener.wait(lambda known=known: len(poses) > known, meanwhile=camera.good)  # what is at hand serves on
        camera.poses.publish(camera.start_pose(pose=elsewhere))
        listener.wait_for_diagnostic("localizer", "Waiting for a submap", meanwhile=camera.good)

        server = start("map_server_node", map_path=site.map_path)
        listener.wait_for_diagnostic("localizer", "refused", "Lost", meanwhile=camera.good)
        camera.poses.publish(camera.start_pose(pose=site.prior))  # the submap at hand is the other place's by now
        known = len(poses)
        listener.wait(lambda known=known: len(poses) > known + 2, meanwhile=camera.good)
    assert not wrong(poses, site.truth)
    assert localizer.interrupt() == 0


def test_no_pose_comes_of_a_camera_info_that_does_not_fit(listener, start, site, camera) -> None:
    start("map_server_node", map_path=site.map_path)
    start("localizer_node")
    poses = listener.listen(PoseStamped, "pose")
    listener.wait_for_diagnostic("localizer", "Ready")
    listener.wait(camera.ready)
    camera.poses.publish(camera.start_pose(pose=site.prior))
    listener.wait(lambda: poses, meanwhile=camera.good)
    width, height = site.camera.width, site.camera.height
    for words, change in {
        f"{width}x{height} but the camera calibration is for {2 * width}x{height}": {"width": 2 * width},
        "not a number": {"k": [float("nan")] * 9},
    }.items():
        sent: list[int] = []

        def send(change: dict = change, sent: list[int] = sent) -> None:
            camera.infos.publish(camera.info(**change))
            image = camera.image()
            camera.images.publish(image)
            sent.append(nanoseconds(image.header.stamp))

        listener.wait_for_diagnostic("localizer", words, meanwhile=send)
        listener.wait(lambda sent=sent: len(sent) > 8, meanwhile=send)
        # The first image may have met the good camera_info still: they are two topics.
        assert not {nanoseconds(pose.header.stamp) for pose in poses} & set(sent[3:])
        known = len(poses)
        listener.wait(lambda known=known: len(poses) > known, meanwhile=camera.good)

    def of_another_frame() -> None:  # there are drivers that do so, and their images serve
        camera.infos.publish(camera.info(header=camera.header("rear_camera")))
        camera.images.publish(camera.image())

    def named() -> bool:
        return "'rear_camera'" in listener.values("localizer")["camera_info_frame"]

    listener.wait(named, meanwhile=of_another_frame)
    known = len(poses)
    listener.wait(lambda: len(poses) > known, meanwhile=of_another_frame)
    assert not wrong(poses, site.truth)


def test_a_bag_in_a_loop_is_localized_again_and_again(listener, start, site, tmp_path: Path) -> None:
    drive = KittiDrive(site.drive_path)
    frames = [drive.frame(site.query + k) for k in range(8)]
    truths = {round(frame.stamp * 1e9): drive.map_from_camera(frame) for frame in frames}
    bag = tmp_path / "bag"
    write_kitti_bag(drive, bag, frames=[frame.index for frame in frames])
    given = [*site.prior[:3, 3], *se3.to_quaternion(site.prior)]
    # In this namespace the nodes' topics are those of the bag.
    start("map_server_node", namespace="/camera", map_path=site.map_path, use_sim_time=True)
    localizer = start(
        "localizer_node", namespace="/camera", use_sim_time=True, tf_mode="map_to_base",
        initial_pose="[" + ",".join(f"{number:.9f}" for number in given) + "]",
    )  # fmt: skip
    poses = listener.listen(PoseStamped, "/camera/pose")
    transforms = listener.listen(TFMessage, "/tf", 100)
    listener.wait_for_diagnostic("localizer", "Ready")
    player = start("bag_player_node", bag=bag, loop=True, rate=0.2)
    first = min(truths)
    listener.wait(lambda: sum(nanoseconds(pose.header.stamp) == first for pose in poses) > 1)
    assert player.interrupt() == 0
    assert localizer.interrupt() == 0
    for pose in poses:
        assert not wrong([pose], truths[nanoseconds(pose.header.stamp)])
    sent = {nanoseconds(one.header.stamp) for message in transforms for one in message.transforms}
    assert len(sent & truths.keys()) > 1


def test_odometry_from_before_time_jumped_back_is_forgotten(listener, start, site, camera) -> None:
    start("map_server_node", map_path=site.map_path)
    start("localizer_node", use_sim_time=True, tf_mode="map_to_odom")
    poses = listener.listen(PoseStamped, "pose")
    transforms = listener.listen(TFMessage, "/tf", 100)
    clock = listener.node.create_publisher(Clock, "/clock", 10)
    static, moving = StaticTransformBroadcaster(listener.node), TransformBroadcaster(listener.node)
    listener.wait_for_diagnostic("localizer", "Ready")
    listener.wait(lambda: camera.ready() and clock.get_subscription_count())
    static.sendTransform(transform("base_link", "camera", FORWARD_BASE_FROM_CAMERA))
    camera.poses.publish(camera.start_pose(pose=site.prior))
    odom_from_base = np.eye(4)

    def drive_on() -> None:
        image = camera.image()
        clock.publish(Clock(clock=image.header.stamp))
        moving.sendTransform(transform("odom", "base_link", odom_from_base, image.header.stamp))
        camera.infos.publish(camera.info())
        camera.images.publish(image)

    def sent() -> list[TransformStamped]:
        return [one for message in transforms for one in message.transforms if one.header.frame_id == "map"]

    listener.wait(lambda: len(sent()) > 8, meanwhile=drive_on)
    camera.seconds -= 0.7
    odom_from_base[0, 3] = 500.0  # the robot began anew too
    known = len(sent())
    listener.wait(lambda: len(sent()) > known + 2, meanwhile=drive_on)
    assert not wrong(poses, site.truth)
    place = sent()[-1].transform.translation
    assert np.hypot(place.x - site.truth[0, 3], place.y - site.truth[1, 3]) > 400
