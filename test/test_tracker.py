"""The tracker starts, follows, gets lost, comes back, and obeys a new initial pose."""

from __future__ import annotations

import numpy as np
import pytest

from ep2ploc_core.tracker import State, Tracker, TrackerSettings

SECOND = 10**9


def at(x: float, y: float = 0.0) -> np.ndarray:
    pose = np.eye(4)
    pose[:2, 3] = x, y
    return pose


def lost_tracker() -> Tracker:
    tracker = Tracker(TrackerSettings(lost_after=3))
    tracker.set_initial(at(0))
    tracker.accept(SECOND, at(0))
    for k in range(3):
        tracker.predict(2 * SECOND + k)
        tracker.refuse()
    assert tracker.state == State.LOST
    return tracker


def test_knows_nothing_without_an_initial_pose() -> None:
    tracker = Tracker()
    assert tracker.predict(SECOND) is None
    assert tracker.state == State.INITIALIZING
    assert not tracker.restart()


def test_an_accepted_pose_starts_tracking() -> None:
    tracker = Tracker()
    tracker.set_initial(at(1))
    assert np.allclose(tracker.predict(SECOND), at(1))
    assert tracker.accept(SECOND, at(1.5))
    assert tracker.state == State.TRACKING


def test_refusals_at_the_start_keep_the_initial_pose() -> None:
    tracker = Tracker(TrackerSettings(lost_after=2))
    tracker.set_initial(at(1))
    for k in range(5):
        assert np.allclose(tracker.predict(k * SECOND), at(1))
        tracker.refuse()
    assert tracker.state == State.INITIALIZING


def test_predicts_steady_motion_and_turning() -> None:
    tracker = Tracker()
    step = np.eye(4)
    step[:2, :2] = [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]
    step[0, 3] = 1.0
    pose = at(0)
    tracker.set_initial(pose)
    for k in range(20):
        tracker.accept(k * SECOND // 10, pose)
        pose = pose @ step
    assert np.allclose(tracker.predict(2 * SECOND), pose, atol=0.02)


def test_first_prediction_of_a_fast_camera_is_near() -> None:
    tracker = Tracker()
    tracker.set_initial(at(0))
    tracker.accept(SECOND, at(0))
    tracker.accept(SECOND + SECOND // 2, at(7))
    assert np.linalg.norm((tracker.predict(2 * SECOND) - at(14))[:3, 3]) < 0.1


def test_a_standing_camera_with_noisy_poses_does_not_run_away() -> None:
    tracker = Tracker()
    tracker.set_initial(at(0))
    noise = np.random.default_rng(0)
    for k in range(100):
        stamp = k * SECOND // 10
        predicted = tracker.predict(stamp)
        assert np.linalg.norm(predicted[:3, 3]) < 1.0
        tracker.accept(stamp, at(*noise.normal(0, 0.15, 2)))


def driven() -> Tracker:
    """After ten seconds at a metre a second."""
    tracker = Tracker()
    tracker.set_initial(at(0))
    for k in range(10):
        tracker.accept(k * SECOND, at(k))
    return tracker


def test_every_other_try_after_a_refusal_does_without_the_velocity() -> None:
    tracker = driven()
    moved = tracker.predict(10 * SECOND)
    tracker.refuse()
    assert np.allclose(tracker.predict(10 * SECOND), at(9))
    tracker.refuse()
    assert np.allclose(tracker.predict(10 * SECOND), moved)


def test_prediction_ends_at_the_horizon() -> None:
    tracker = Tracker(TrackerSettings(horizon=2.0))
    tracker.set_initial(at(0))
    tracker.accept(SECOND, at(0))
    tracker.accept(2 * SECOND, at(1))
    assert np.allclose(tracker.predict(4 * SECOND), at(3), atol=0.01)
    assert np.allclose(tracker.predict(100 * SECOND), at(3), atol=0.01)


def test_refusals_in_a_row_lose_it_and_an_acceptance_between_does_not() -> None:
    tracker = Tracker(TrackerSettings(lost_after=3))
    tracker.set_initial(at(0))
    tracker.accept(SECOND, at(0))
    for _ in range(4):
        tracker.refuse()
        tracker.refuse()
        assert tracker.state == State.TRACKING
        tracker.accept(SECOND, at(0))
    lost_tracker()


def test_comes_back_after_two_poses_that_agree() -> None:
    tracker = lost_tracker()
    assert not tracker.accept(4 * SECOND, at(5))
    assert tracker.state == State.LOST
    assert tracker.accept(4 * SECOND + SECOND // 10, at(5.5))
    assert tracker.state == State.TRACKING


def test_stays_lost_while_poses_disagree() -> None:
    tracker = lost_tracker()
    for k, x in enumerate([5, 50, 5, 50]):
        assert not tracker.accept(4 * SECOND + k * SECOND // 10, at(x))
    assert tracker.state == State.LOST


def test_a_refusal_between_two_poses_does_not_count_as_agreement() -> None:
    tracker = lost_tracker()
    tracker.accept(4 * SECOND, at(5))
    tracker.refuse()
    assert not tracker.accept(4 * SECOND + SECOND // 10, at(5))
    assert tracker.accept(4 * SECOND + SECOND // 5, at(5))


@pytest.mark.parametrize("make", [Tracker, lost_tracker])
def test_a_new_initial_pose_always_wins(make) -> None:
    tracker = make()
    tracker.set_initial(at(100))
    assert np.allclose(tracker.predict(9 * SECOND), at(100))
    assert tracker.accept(9 * SECOND, at(101))
    assert tracker.state == State.TRACKING


def test_time_that_jumps_back_starts_again_from_the_initial_pose() -> None:
    tracker = Tracker()
    tracker.set_initial(at(3))
    for k in range(50, 60):
        tracker.predict(k * SECOND)
        tracker.accept(k * SECOND, at(k))
    assert np.allclose(tracker.predict(50 * SECOND), at(3))
    assert tracker.state == State.INITIALIZING


def test_images_slightly_out_of_order_do_not_start_it_again() -> None:
    tracker = Tracker()
    tracker.set_initial(at(0))
    tracker.predict(SECOND)
    tracker.accept(SECOND, at(0))
    assert np.allclose(tracker.predict(SECOND - SECOND // 10), at(0))
    assert tracker.state == State.TRACKING


def test_reset_forgets_and_restart_remembers_the_initial_pose() -> None:
    tracker = Tracker()
    tracker.set_initial(at(7))
    tracker.accept(SECOND, at(8))
    assert tracker.restart()
    assert np.allclose(tracker.predict(2 * SECOND), at(7))
    tracker.reset()
    assert tracker.predict(3 * SECOND) is None
    assert not tracker.has_initial


def test_a_searched_pose_counts_once_a_second_one_agrees() -> None:
    tracker = Tracker()
    assert tracker.wants_search()
    assert not tracker.accept(SECOND, at(10), searched=True)
    assert tracker.state == State.INITIALIZING and tracker.wants_search()
    assert np.allclose(tracker.predict(SECOND + SECOND // 10), at(10))
    assert tracker.accept(SECOND + SECOND // 10, at(10.5), searched=True)
    assert tracker.state == State.TRACKING and not tracker.wants_search()


def test_a_searched_pose_that_the_next_one_contradicts_is_not_believed() -> None:
    tracker = Tracker()
    assert not tracker.accept(SECOND, at(10), searched=True)
    assert not tracker.accept(SECOND + SECOND // 10, at(40))
    assert tracker.state == State.INITIALIZING
    assert tracker.accept(SECOND + SECOND // 5, at(40.2))  # these two agree


def test_when_lost_every_third_image_is_searched_for() -> None:
    tracker = lost_tracker()
    wanted = []
    for k in range(6):
        wanted.append(tracker.wants_search())
        tracker.predict(3 * SECOND + k)
        tracker.refuse()
    assert wanted == [True, False, False, True, False, False]
    assert not tracker.accept(4 * SECOND, at(90), searched=True)
    assert tracker.state == State.LOST
    assert tracker.accept(4 * SECOND + SECOND // 10, at(90.3))
    assert tracker.state == State.TRACKING


def test_an_initial_pose_needs_no_confirmation_also_after_a_search() -> None:
    tracker = Tracker()
    tracker.accept(SECOND, at(10), searched=True)
    tracker.set_initial(at(3))
    tracker.predict(2 * SECOND)
    assert tracker.accept(2 * SECOND, at(3.1))


def test_a_search_that_took_seconds_is_not_confirmed_by_a_pose_far_away() -> None:
    turned = at(40)
    turned[:2, :2] = [[-1, 0], [0, -1]]
    for other in (at(20), turned):
        tracker = Tracker()
        assert not tracker.accept(SECOND, at(0), searched=True)
        assert not tracker.accept(SECOND + 4 * SECOND, other, searched=True)
        assert tracker.state == State.INITIALIZING


def test_two_searches_tell_how_fast_a_slow_computer_moves_on() -> None:
    tracker = Tracker()
    tracker.accept(SECOND, at(0), searched=True)
    assert tracker.accept(5 * SECOND, at(6), searched=True)
    assert np.linalg.norm(tracker.predict(9 * SECOND)[:3, 3] - at(12)[:3, 3]) < 0.2
    assert tracker.accept(9 * SECOND, at(12))
    assert np.linalg.norm(tracker.predict(29 * SECOND)[:3, 3] - at(12)[:3, 3]) < 4  # no farther than its horizon


def test_forgetting_keeps_the_initial_pose_for_a_restart() -> None:
    tracker = Tracker()
    tracker.set_initial(at(3))
    tracker.forget()
    assert tracker.predict(SECOND) is None and tracker.wants_search()
    assert tracker.restart()
    assert np.allclose(tracker.predict(2 * SECOND), at(3))


def test_the_motion_of_odometry_is_taken_over_the_velocity() -> None:
    tracker = Tracker()
    tracker.set_initial(at(0))
    assert tracker.motion_wanted(SECOND) is None  # nobody knows when the initial pose was
    turned = at(5)
    turned[:2, :2] = [[0, -1], [1, 0]]
    for k in range(10):
        tracker.accept(k * SECOND, at(k) @ turned)
    assert tracker.motion_wanted(10 * SECOND) == (9 * SECOND, 10 * SECOND)
    assert np.allclose(tracker.predict(10 * SECOND, at(3)), at(9) @ turned @ at(3))


def test_every_other_try_after_a_refusal_does_without_odometry() -> None:
    tracker = driven()
    steady = tracker.predict(10 * SECOND)
    tracker.refuse()
    assert np.allclose(tracker.predict(10 * SECOND, at(3)), steady)
    tracker.refuse()
    assert np.allclose(tracker.predict(10 * SECOND, at(3)), at(12))


def test_odometry_is_followed_further_than_the_velocity_and_then_stands_still() -> None:
    tracker = Tracker(TrackerSettings(horizon=2.0, odometry_horizon=10.0))
    tracker.set_initial(at(0))
    tracker.accept(SECOND, at(0))
    assert tracker.motion_wanted(9 * SECOND) == (SECOND, 9 * SECOND)
    assert tracker.motion_wanted(90 * SECOND) == (SECOND, 11 * SECOND)


def test_after_time_jumped_back_no_motion_is_wanted() -> None:
    tracker = Tracker()
    tracker.set_initial(at(3))
    tracker.predict(50 * SECOND)
    tracker.accept(50 * SECOND, at(4))
    assert tracker.motion_wanted(5 * SECOND) is None
    assert np.allclose(tracker.predict(5 * SECOND, at(30)), at(3))


@pytest.mark.parametrize("make", [Tracker, lost_tracker])
@pytest.mark.parametrize(("x", "agrees"), [(8.3, True), (5.0, False), (9.0, False)])
def test_two_poses_agree_when_odometry_tells_the_way_between_them(make, x: float, agrees: bool) -> None:
    for seconds in (0.1, 5.0):
        tracker = make()
        assert not tracker.accept(4 * SECOND, at(5), searched=True)
        stamp = 4 * SECOND + int(seconds * SECOND)
        assert tracker.accept(stamp, at(x), True, at(3)) == agrees


def test_odometry_that_stands_does_not_let_all_that_a_search_finds_agree() -> None:
    tracker = Tracker()
    tracker.accept(SECOND, at(0), searched=True)
    turned = at(0)
    turned[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    for k, pose in enumerate((at(2), at(0), turned, at(0))):
        assert not tracker.accept((2 + k) * SECOND, pose, True, np.eye(4))
    assert tracker.accept(6 * SECOND, at(0.1), True, np.eye(4))


def test_beyond_its_horizon_odometry_confirms_nothing() -> None:
    tracker = Tracker(TrackerSettings(odometry_horizon=10.0))
    tracker.accept(SECOND, at(0), searched=True)
    assert not tracker.accept(31 * SECOND, at(30), True, at(30))
