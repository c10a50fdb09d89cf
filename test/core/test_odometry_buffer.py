"""Motions between two moments are those of the trajectory that the odometry followed, or none is given."""

from __future__ import annotations

import numpy as np
import pytest

from ep2ploc_core import se3
from ep2ploc_core.odometry_buffer import NoMotionError, OdometryBuffer

SECOND = 10**9


def at(seconds: float, origin: np.ndarray | None = None) -> np.ndarray:
    """A circle of 20 m, driven at 8 m/s, climbing a little; the odometry's frame begins at `origin`."""
    angle = 8 * seconds / 20
    place = np.array([20 * np.sin(angle), 20 * (1 - np.cos(angle)), 0.3 * seconds])
    pose = se3.from_quaternion(place, np.array([0, 0, np.sin(angle / 2), np.cos(angle / 2)]))
    return pose if origin is None else origin @ pose


def nanoseconds(seconds: float) -> int:
    return round(seconds * SECOND)


def driven(begin: float, end: float, rate: float = 20.0, noise: float = 0.0) -> OdometryBuffer:
    buffer = OdometryBuffer()
    numbers = np.random.default_rng(0)
    for seconds in np.arange(begin, end + 1e-9, 1 / rate):
        pose = at(seconds)
        pose[:3, 3] += numbers.normal(0, noise, 3) if noise else 0
        assert buffer.add(nanoseconds(seconds), pose) == ""
    return buffer


def error(buffer: OdometryBuffer, begin: float, end: float) -> float:
    found = buffer.motion(nanoseconds(begin), nanoseconds(end))
    metres, radians = se3.pose_error(found, np.linalg.inv(at(begin)) @ at(end))
    return max(metres, radians)


@pytest.mark.parametrize("rate", [5.0, 20.0, 100.0, 400.0])
@pytest.mark.parametrize(("begin", "end"), [(3.0, 4.0), (3.021, 3.917), (2.5, 9.99), (9.3, 3.1), (4.44, 4.44)])
def test_motion_is_that_of_the_trajectory(rate: float, begin: float, end: float) -> None:
    assert error(driven(0, 10, rate), begin, end) < 0.05


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_little_after_the_newest_pose_the_motion_goes_on(noise: float) -> None:
    assert error(driven(0, 10, noise=noise), 8.0, 10.2) < 0.1 + 10 * noise


@pytest.mark.parametrize(
    ("begin", "end", "reason"), [(8.0, 10.8, "0.80 s older"), (-1.0, 5.0, "begins, or began anew, 1.00 s later")]
)
def test_outside_of_what_is_known_nothing_is_made_up(begin: float, end: float, reason: str) -> None:
    with pytest.raises(NoMotionError, match=reason):
        error(driven(0, 10), begin, end)


def test_without_odometry_there_is_no_motion() -> None:
    with pytest.raises(NoMotionError, match="no odometry has arrived"):
        OdometryBuffer().motion(0, SECOND)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_silence_begins_a_new_run(restarted: bool) -> None:
    """It may have been started again meanwhile, which the first pose after two seconds cannot tell."""
    buffer = driven(0, 5)
    origin = np.linalg.inv(at(7.0)) if restarted else None
    assert buffer.add(nanoseconds(7.0), at(7.0, origin)) == "it was silent for 2.00 s"
    for seconds in np.arange(7.05, 10.0, 0.05):
        assert buffer.add(nanoseconds(seconds), at(seconds, origin)) == ""
    for begin, end in ((4.0, 6.0), (4.0, 8.0)):
        with pytest.raises(NoMotionError, match="began anew"):
            error(buffer, begin, end)
    assert error(buffer, 7.5, 9.5) < 0.05


def test_a_short_silence_does_not() -> None:
    buffer = driven(0, 5)
    assert buffer.add(nanoseconds(5.4), at(5.4)) == ""
    assert error(buffer, 4.0, 5.2) < 0.1


@pytest.mark.parametrize("jump", ["place", "turn", "origin"])
def test_a_jump_begins_a_new_run(jump: str) -> None:
    buffer = driven(0, 5)
    shift = np.eye(4)
    shift[:2, 3] = (2, 1) if jump == "place" else (0, 0)
    if jump == "turn":
        shift = np.linalg.inv(at(2.0)) @ at(4.0)
        shift[:3, 3] = 0
    elif jump == "origin":  # the odometry was started again
        shift = np.linalg.inv(at(5.0))
    assert "jumped by" in buffer.add(nanoseconds(5.05), shift @ at(5.05))
    for seconds in np.arange(5.1, 8, 0.05):
        assert buffer.add(nanoseconds(seconds), shift @ at(seconds)) == ""
    with pytest.raises(NoMotionError, match="begins, or began anew"):
        error(buffer, 4.0, 6.0)
    assert error(buffer, 5.5, 7.5) < 0.05


def test_braking_hard_and_small_noise_are_no_jumps() -> None:
    buffer, place = OdometryBuffer(), 0.0
    numbers = np.random.default_rng(1)
    for k in range(400):
        pose = np.eye(4)
        place += max(0.0, 25.0 - 10.0 * 0.02 * max(0, k - 100)) * 0.02
        pose[:3, 3] = numbers.normal(0, 0.02, 3) + (place, 0, 0)
        assert buffer.add(nanoseconds(0.02 * k), pose) == ""


def test_time_that_jumps_back_begins_a_new_run_and_messages_out_of_order_do_not() -> None:
    buffer = driven(100, 105)
    assert buffer.add(nanoseconds(104.9), at(104.9)) == ""
    assert error(buffer, 101.0, 104.97) < 0.05
    assert "back by 5.00 s" in buffer.add(nanoseconds(100), at(100))
    with pytest.raises(NoMotionError):
        error(buffer, 102.0, 103.0)


def test_what_is_remembered_does_not_grow() -> None:
    buffer = driven(0, 200, rate=10)
    assert error(buffer, 175.0, 199.0) < 0.05
    with pytest.raises(NoMotionError):
        error(buffer, 100.0, 199.0)
