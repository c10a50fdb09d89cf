"""Follows the camera from image to image: which pose to start from, and whether to believe where we are.

Pure logic, no ROS: stamps come in as nanoseconds, poses as `map_from_camera`.

```
            an initial pose            accepted                 refused N times in a row
INITIALIZING ------------> INITIALIZING ---------> TRACKING ------------------------------> LOST
     ^                                                ^                                      |
     +--- reset, time jumped back                     +---- two accepted poses that agree ---+
```
An initial pose given by someone always wins, in every state. A pose that was searched for in the whole map has to be
confirmed by the next one, as after being lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch

from ep2ploc_core import se3


class State(Enum):
    """How far the pose is known."""

    INITIALIZING = "initializing"
    TRACKING = "tracking"
    LOST = "lost"


@dataclass
class TrackerSettings:
    """`lost_after`: refusals in a row until lost. `jump_back`: seconds that stamps may go back before it counts as a
    restart of time. `horizon`: longest prediction in seconds; further ahead the pose stands still. `odometry_horizon`:
    the same for predictions by odometry, which goes wrong more slowly.

    How far the velocity follows two poses in a row: `pose_sigma` metres is how wrong a pose is, `speed_sigma` m/s how
    fast a camera may be when first seen, `acceleration_sigma` m/s^2 how soon that changes.

    An end of being lost: two poses in a row differ by no more than `agree_metres` and `agree_radians`, beyond the
    motion between them that odometry tells. Where none does: beyond what motion at `agree_speed` (m/s) and `agree_turn`
    (rad/s) explains in at most `agree_seconds`: a search takes its time, and what lies that far apart confirms nothing.
    `search_horizon`: the longest prediction in seconds from a pose that
    was searched for."""

    lost_after: int = 5
    jump_back: float = 0.5
    horizon: float = 2.0
    odometry_horizon: float = 10.0
    pose_sigma: float = 0.15
    speed_sigma: float = 10.0
    acceleration_sigma: float = 3.0
    agree_metres: float = 0.5
    agree_radians: float = 0.05
    agree_speed: float = 15.0
    agree_turn: float = 1.0
    agree_seconds: float = 0.5
    search_horizon: float = 10.0


class Tracker:
    """The state machine. Per image: `predict`, then `accept` or `refuse`.

    Where the robot has odometry, `motion_wanted` says between which moments the camera's motion is of use.
    """

    def __init__(self, settings: TrackerSettings | None = None) -> None:
        self.settings = settings or TrackerSettings()
        self.state = State.INITIALIZING
        self.refusals = 0
        self._initial: np.ndarray | None = None
        self._pose: np.ndarray | None = None
        self._forget_velocity()
        self._pose_stamp: int | None = None  # None: the pose was given, not found in an image
        self._searched = False  # the pose was searched for, and nothing has agreed with it yet
        self._horizon = self.settings.horizon  # how far ahead of the pose is predicted, and its velocity learned
        self._newest_stamp: int | None = None

    @property
    def has_initial(self) -> bool:
        """Whether an initial pose was ever given."""
        return self._initial is not None

    @property
    def doubts(self) -> bool:
        """Whether the next prediction does without what the last one was made by."""
        return self.refusals % 2 == 1

    def set_initial(self, map_from_camera: np.ndarray) -> None:
        """Starts again from this pose `(4, 4)`, whatever was believed before."""
        self._initial = map_from_camera
        self.restart()

    def restart(self) -> bool:
        """Starts again from the initial pose that was given last; False when there was none."""
        self.state = State.INITIALIZING
        self.refusals = 0
        self._pose = self._initial
        self._pose_stamp = None
        self._searched = False
        self._horizon = self.settings.horizon
        self._forget_velocity()
        self._newest_stamp = None
        return self._initial is not None

    def forget(self) -> None:
        """Starts again from nothing; the initial pose that was given last is kept for `restart`."""
        self.restart()
        self._pose = None

    def reset(self) -> None:
        """Forgets everything, the initial pose too."""
        self._initial = None
        self.restart()

    def motion_wanted(self, stamp: int) -> tuple[int, int] | None:
        """From when to when (ns) `predict` wants to know the camera's motion for an image of `stamp`; None when it has
        no use for one."""
        if self._pose is None or self._pose_stamp is None or self._jumped_back(stamp):
            return None
        return self._pose_stamp, min(stamp, self._pose_stamp + int(self.settings.odometry_horizon * 1e9))

    def predict(self, stamp: int, camera_then_from_camera_now: np.ndarray | None = None) -> np.ndarray | None:
        """Where the camera is expected at `stamp` (ns): the prior `(4, 4)` for this image, or None when unknown.

        By the motion that was asked for with `motion_wanted`, if odometry knows it, else by constant velocity. After a
        refusal that may be what was wrong, so every other try does without: with constant velocity in place of
        odometry, and standing still in place of constant velocity.

        A stamp far before the last one means that time was started again (a bag in a loop): so does the tracker.
        """
        if self._jumped_back(stamp):
            self.restart()
        self._newest_stamp = stamp
        if self._pose is None or self._pose_stamp is None:
            return self._pose
        if camera_then_from_camera_now is not None and not self.doubts:
            return self._pose @ camera_then_from_camera_now
        if camera_then_from_camera_now is None and self.doubts:
            return self._pose
        ahead = min(max(0.0, (stamp - self._pose_stamp) / 1e9), self._horizon)
        return self._pose @ se3.exp(torch.from_numpy(self._velocity * ahead)).numpy()

    def _jumped_back(self, stamp: int) -> bool:
        return self._newest_stamp is not None and stamp < self._newest_stamp - self.settings.jump_back * 1e9

    def wants_search(self) -> bool:
        """Whether the next image had better be searched for in the whole map: nothing is known of the pose; or it was
        searched for, and while that took its time the camera has gone on; or it is lost, and then for every third
        image, since what is near the last pose is found sooner."""
        if self._pose is None or (self._searched and self.refusals == 0):
            return True
        lost = self.state == State.LOST or self._searched
        return lost and self.refusals > 0 and self.refusals % 3 == 0

    def accept(
        self,
        stamp: int,
        map_from_camera: np.ndarray,
        searched: bool = False,
        camera_then_from_camera_now: np.ndarray | None = None,
    ) -> bool:
        """Takes over an accepted pose `(4, 4)`, `searched` for in the whole map or found near the predicted one. True
        when it may be published: not for the first one after LOST, and not for one that was searched for, until
        another agrees with it. `camera_then_from_camera_now`: the motion that `predict` was given for this image."""
        believed = self.state != State.LOST and not self._searched and not searched
        if self._pose is not None and self._pose_stamp is not None:
            seconds = max(0.0, (stamp - self._pose_stamp) / 1e9)
            self._horizon = self.settings.search_horizon if searched else self.settings.horizon
            self._learn_velocity(seconds, self._pose, map_from_camera)
            # While lost the velocity and the old pose are stale: agreement is with the accepted pose just before.
            if not believed and self.refusals == 0:
                believed = self._agrees(seconds, self._pose, map_from_camera, camera_then_from_camera_now)
        self.refusals = 0
        self._searched = not believed and (searched or self._searched)
        self._pose, self._pose_stamp = map_from_camera, stamp
        if believed:
            self.state = State.TRACKING
        return believed

    def refuse(self) -> None:
        """Counts an image that gave no pose."""
        self.refusals += 1
        if self.state == State.TRACKING and self.refusals >= self.settings.lost_after:
            self.state = State.LOST

    def _forget_velocity(self) -> None:
        self._velocity = np.zeros(6)  # in the camera frame: m/s, rad/s
        self._velocity_variance = self.settings.speed_sigma**2

    def _learn_velocity(self, seconds: float, before: np.ndarray, now: np.ndarray) -> None:
        """A Kalman filter on the velocity alone: two poses close in time say little of it."""
        lost = self.state == State.LOST and not self._searched
        if lost or not 0 < seconds <= self._horizon:
            self._forget_velocity()
            return
        measured = se3.log(torch.from_numpy(np.linalg.inv(before) @ now)).numpy() / seconds
        variance = self._velocity_variance + (self.settings.acceleration_sigma * seconds) ** 2
        gain = variance / (variance + 2 * (self.settings.pose_sigma / seconds) ** 2)
        self._velocity = self._velocity + gain * (measured - self._velocity)
        self._velocity_variance = (1 - gain) * variance

    def _agrees(self, seconds: float, before: np.ndarray, now: np.ndarray, motion: np.ndarray | None) -> bool:
        limits = self.settings
        if motion is not None and seconds <= limits.odometry_horizon:  # beyond, the motion is not that until now
            distance, angle = se3.pose_error(now, before @ motion)
            return distance <= limits.agree_metres and angle <= limits.agree_radians
        distance, angle = se3.pose_error(now, before)
        seconds = min(seconds, limits.agree_seconds)
        return (
            distance <= limits.agree_metres + limits.agree_speed * seconds
            and angle <= limits.agree_radians + limits.agree_turn * seconds
        )
