"""Images that come faster than they can be localized make nothing grow: neither delay nor memory."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped

from ep2ploc_core import se3
from ep2ploc_ros.messages import nanoseconds, pose_from_message

SECONDS, RATE = 20.0, 30.0


@dataclass
class Answer:
    """When a pose was heard (s), how old its image was by then (s), and what the node held in memory (MB)."""

    heard: float
    age: float
    memory: float


def test_neither_delay_nor_memory_grow_at_30_images_a_second(listener, start, site, camera) -> None:
    start("map_server_node", map_path=site.map_path)
    localizer = start("localizer_node")
    poses = listener.listen(PoseStamped, "pose")
    listener.wait_for_diagnostic("localizer", "Ready")
    listener.wait(camera.ready)
    camera.poses.publish(camera.start_pose(pose=site.prior))
    listener.wait(lambda: len(poses) > 3, meanwhile=camera.good)

    sent: dict[int, float] = {}
    answers: list[Answer] = []
    begun = due = time.monotonic()
    while (now := time.monotonic()) < begun + SECONDS:
        if now >= due:
            due += 1 / RATE
            image = camera.image()
            sent[nanoseconds(image.header.stamp)] = now
            camera.images.publish(image)
        known = len(poses)
        rclpy.spin_once(listener.node, timeout_sec=max(0.0, due - time.monotonic()))
        for pose in poses[known:]:
            stamp = nanoseconds(pose.header.stamp)
            if stamp in sent:
                now = time.monotonic()
                answers.append(Answer(now - begun, now - sent[stamp], localizer.megabytes))
    halves = [[one for one in answers if (one.heard > SECONDS / 2) == late] for late in (False, True)]
    ages = [float(np.median([one.age for one in half])) for half in halves]
    held = [max(one.memory for one in half) for half in halves]
    print(f"{len(sent)} images, {len(answers)} poses, delay {ages} s, memory {held} MB")
    assert len(answers) < len(sent)
    assert ages[1] < 2 * ages[0] + 0.2  # a backlog of 10 seconds at 30 Hz would be seconds old
    assert held[1] < held[0] + 30  # a tenth of the images that were dropped
    assert all(se3.pose_error(pose_from_message(pose.pose), site.truth)[0] < 0.5 for pose in poses)
