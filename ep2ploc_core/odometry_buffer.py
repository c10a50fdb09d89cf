"""How the robot moved between two moments, by what its odometry said lately.

Pure logic, no ROS: stamps come in as nanoseconds, poses as `odom_from_base`. Where the frame `odom` lies is of no
interest, and it may jump: only motions within one run of the odometry are given.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import torch

from ep2ploc_core import se3
from ep2ploc_core.errors import Ep2plocError


class NoMotionError(Ep2plocError):
    """The odometry does not say how the robot moved."""


@dataclass(frozen=True)
class OdometryLimits:
    """`kept`: seconds of odometry that are remembered. `stale`: seconds after the newest pose beyond which nothing is
    made up, and between two poses beyond which they belong to two runs: it may have been started again in between.

    A step between two poses is a jump when it differs from the motion so far by more than `step_metres` or
    `step_radians` beyond what `acceleration` (m/s^2) and `turn_acceleration` (rad/s^2) explain. While no motion is
    known yet, `speed` (m/s) and `turn` (rad/s) are the limits. What is smaller than `step_metres` and `step_radians` is
    taken for motion: an estimator that corrects itself by so much is followed. The motion so far is over at least
    `baseline` seconds, since poses a few milliseconds apart say little of a velocity. Poses sooner than `spacing`
    seconds after another are left out."""

    kept: float = 30.0
    stale: float = 0.5
    spacing: float = 0.008
    step_metres: float = 0.5
    step_radians: float = 0.3
    acceleration: float = 20.0
    turn_acceleration: float = 20.0
    speed: float = 70.0
    turn: float = 10.0
    baseline: float = 0.1


class OdometryBuffer:
    """The poses of the last seconds, in one unbroken run, in the order of their stamps."""

    def __init__(self, limits: OdometryLimits = OdometryLimits()) -> None:
        self.limits = limits
        self._stamps: list[int] = []
        self._poses: list[np.ndarray] = []

    def add(self, stamp: int, odom_from_base: np.ndarray) -> str:
        """Takes a pose `(4, 4)` at `stamp` (ns). A jump, in place or back in time, or a long silence begins a new run;
        returns what happened, or nothing."""
        seconds = (stamp - self._stamps[-1]) / 1e9 if self._stamps else float("inf")
        if -self.limits.stale < seconds < self.limits.spacing:
            return ""
        problem = self._jump(seconds, odom_from_base) if self._stamps else ""
        if problem:
            self._stamps.clear()
            self._poses.clear()
        self._stamps.append(stamp)
        self._poses.append(odom_from_base)
        old = bisect_right(self._stamps, stamp - int(self.limits.kept * 1e9))
        if 2 * old > len(self._stamps):  # not for each pose, which would move all others each time
            del self._stamps[:old], self._poses[:old]
        return problem

    def motion(self, begin: int, end: int) -> np.ndarray:
        """base_then_from_base_now `(4, 4)`: the robot's pose at `end` (ns), seen from where it was at `begin` (ns).
        Raises NoMotionError with the reason."""
        return np.linalg.inv(self._at(begin)) @ self._at(end)

    def _at(self, stamp: int) -> np.ndarray:
        """odom_from_base at a moment: between two poses, or a little after the last one."""
        stale = self.limits.stale
        if not self._stamps:
            raise NoMotionError("no odometry has arrived")
        if stamp < self._stamps[0]:
            raise NoMotionError(f"the odometry begins, or began anew, {(self._stamps[0] - stamp) / 1e9:.2f} s later")
        after = bisect_right(self._stamps, stamp)
        before = self._poses[after - 1]
        seconds = (stamp - self._stamps[after - 1]) / 1e9
        if seconds == 0:
            return before
        if after == len(self._stamps):
            if seconds > stale:
                raise NoMotionError(f"the newest odometry is {seconds:.2f} s older than the image")
            velocity = self._velocity()
            return before if velocity is None else _moved(before, velocity, seconds)
        gap = (self._stamps[after] - self._stamps[after - 1]) / 1e9
        return _moved(before, _step(before, self._poses[after]) / gap, seconds)

    def _velocity(self) -> np.ndarray | None:
        """`(6,)` of the base at the end of the run, m/s and rad/s in its own frame; None with a single pose."""
        first = bisect_right(self._stamps, self._stamps[-1] - int(self.limits.baseline * 1e9)) - 1
        first = min(max(first, 0), len(self._stamps) - 2)
        if first < 0:
            return None
        seconds = (self._stamps[-1] - self._stamps[first]) / 1e9
        return _step(self._poses[first], self._poses[-1]) / seconds

    def _jump(self, seconds: float, odom_from_base: np.ndarray) -> str:
        """What is impossible about a pose so many seconds after the last one, or nothing."""
        if seconds < 0:
            return f"its time jumped back by {-seconds:.2f} s"
        if seconds > self.limits.stale:
            return f"it was silent for {seconds:.2f} s"
        limits, velocity = self.limits, self._velocity()
        if velocity is None:
            metres, radians = limits.speed * seconds, limits.turn * seconds
            velocity = np.zeros(6)
        else:
            metres, radians = limits.acceleration * seconds**2, limits.turn_acceleration * seconds**2
        expected = _moved(self._poses[-1], velocity, seconds)
        distance, angle = se3.pose_error(odom_from_base, expected)
        if distance > limits.step_metres + metres or angle > limits.step_radians + radians:
            return f"it jumped by {distance:.2f} m and {np.degrees(angle):.0f} degrees"
        return ""


def _step(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return se3.log(torch.from_numpy(np.linalg.inv(before) @ after)).numpy()


def _moved(pose: np.ndarray, velocity: np.ndarray, seconds: float) -> np.ndarray:
    return pose @ se3.exp(torch.from_numpy(velocity * seconds)).numpy()
