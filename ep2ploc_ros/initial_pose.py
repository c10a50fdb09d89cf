"""Poses to start from, as people give them: a parameter, or a message on /initialpose."""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import Pose, PoseWithCovarianceStamped

from ep2ploc_core.errors import InputError
from ep2ploc_ros.messages import pose_from_message


def pose_from_numbers(numbers: tuple[float, ...]) -> np.ndarray | None:
    """The pose `(4, 4)` of the parameter `initial_pose`, None where it is empty; raises InputError when it is none."""
    if not numbers:
        return None
    if len(numbers) != 7:
        raise InputError(f"The parameter initial_pose has {len(numbers)} numbers, not 7: x y z and quaternion.")
    pose = Pose()
    pose.position.x, pose.position.y, pose.position.z = numbers[:3]
    rotation = pose.orientation
    rotation.x, rotation.y, rotation.z, rotation.w = numbers[3:]
    return pose_from_message(pose)


def pose_in_map(message: PoseWithCovarianceStamped, map_frame: str) -> np.ndarray:
    """The pose `(4, 4)` of a message; raises InputError when it is none, or in another frame than the map's."""
    if message.header.frame_id != map_frame:
        raise InputError(
            f"The initial pose is given in the frame '{message.header.frame_id}'; give it in "
            f"'{map_frame}' (in RViz: set the fixed frame)."
        )
    return pose_from_message(message.pose.pose)
