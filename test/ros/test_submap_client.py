"""Submaps and their landmarks, as they come: in any order, late, not at all, of another map."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header

from ep2ploc_core.errors import InputError
from ep2ploc_core.landmarks.landmark_view import LandmarkView
from ep2ploc_core.map.point_map import MapPoints
from ep2ploc_ros.clouds import cloud_from_landmarks, cloud_from_points
from ep2ploc_ros.submap_client import SubmapClient


def header(second: int) -> Header:
    message = Header(frame_id="map")
    message.stamp.sec = second
    return message


def pose_at(x: float) -> np.ndarray:
    pose = np.eye(4)
    pose[0, 3] = x
    return pose


def submap(second: int) -> PointCloud2:
    rng = np.random.default_rng(0)
    xyz, attributes = (rng.uniform(0, 1, (20, width)).astype(np.float32) for width in (3, 6))
    return cloud_from_points(
        MapPoints(xyz, attributes, np.zeros((20, 2), np.uint16), np.ones((20, 8), np.int8)), header(second)
    )


def landmarks(second: int, x: float) -> PointCloud2:
    view = LandmarkView(pose_at(x), np.ones((5, 128), np.uint8), np.ones((5, 3), np.float32))
    return cloud_from_landmarks([view], np.zeros(3), header(second))


def places(client: SubmapClient, x: float) -> list[float]:
    """Where the images of the landmarks around a place were taken."""
    return [view.map_from_camera[0, 3] for view in client.cache.landmarks(np.array([x, 0, 0]), 30.0)]


@pytest.fixture
def make_client(listener) -> Callable[[list], SubmapClient]:
    def make(answers: list) -> SubmapClient:
        """One that is given these messages when it waits; none when there are none left."""

        def receive(topic: str, _: float) -> PointCloud2 | None:
            waiting = answers.pop(0) if answers else None
            return waiting(topic) if callable(waiting) else waiting

        return SubmapClient(listener.node, "map", 15.0, receive)

    return make


def test_landmarks_come_before_or_after_their_submap(make_client) -> None:
    client = make_client([])
    client.begin("cafe0123", 0.2, has_landmarks=True)
    assert not client.ensure(header(1), pose_at(0))
    client.take(submap(1))
    assert not client.ensure(header(9), pose_at(0))  # an image now would be localized otherwise than one a moment later
    client.take_landmarks(landmarks(1, 3))
    assert client.ensure(header(9), pose_at(0)) and places(client, 0) == [3]
    client.ensure(header(2), pose_at(20))
    client.take_landmarks(landmarks(2, 22))
    assert places(client, 0) == [3]  # as long as the submap is the old one
    client.take(submap(2))
    assert places(client, 20) == [22]
    with pytest.raises(InputError, match="frame 'odom'"):
        wrong = landmarks(2, 22)
        wrong.header.frame_id = "odom"
        client.take_landmarks(wrong)


def test_images_wait_no_longer_for_landmarks_than_for_a_submap(make_client, monkeypatch) -> None:
    client = make_client([])
    client.begin("cafe0123", 0.2, has_landmarks=True)
    client.ensure(header(1), pose_at(0))
    client.take(submap(1))
    assert not client.ensure(header(1), pose_at(0))
    monkeypatch.setattr("ep2ploc_ros.submap_client._ASK_AGAIN_SECONDS", 0.0)
    assert client.ensure(header(1), pose_at(0))
    monkeypatch.undo()
    client.ensure(header(2), pose_at(20))
    client.take(submap(2))
    assert client.ensure(header(2), pose_at(20))  # none has come meanwhile
    client.begin("cafe0123", 0.2, has_landmarks=False)
    client.ensure(header(3), pose_at(0))
    client.take(submap(3))
    assert client.ensure(header(3), pose_at(0))


def test_landmarks_of_another_map_or_place_are_not_taken(make_client) -> None:
    client = make_client([])
    client.begin("cafe0123", 0.2, has_landmarks=True)
    client.ensure(header(1), pose_at(0))
    client.take(submap(1))
    client.begin("cafe0124", 0.2, has_landmarks=True)
    client.take_landmarks(landmarks(1, 3))  # late, of the map before
    client.ensure(header(2), pose_at(0))
    client.take(submap(2))
    client.take_landmarks(landmarks(1, 3))
    assert places(client, 0) == []


def test_a_search_waits_for_landmarks_once_and_goes_on_without(make_client) -> None:
    stamps: list[int] = []

    def answer(topic: str) -> PointCloud2:
        assert topic == "submap"
        return stamped(submap(0))

    def stamped(message: PointCloud2) -> PointCloud2:
        stamp = next(iter(client._asked)) if client._asked else stamps[-1]
        stamps.append(stamp)
        message.header.stamp.sec, message.header.stamp.nanosec = stamp // 10**9, stamp % 10**9
        return message

    def answer_landmarks(topic: str) -> PointCloud2:
        assert topic == "submap_landmarks"
        return stamped(landmarks(0, 101))

    client = make_client([answer, lambda _: landmarks(7, 0), answer_landmarks, answer, None, answer, answer])
    client.begin("cafe0123", 0.2, has_landmarks=True)
    assert places(client, 100) == [101]  # a stale one came first
    assert places(client, 200) == []  # none came
    assert places(client, 300) == []  # and is not waited for: the next answer is a submap
    assert client.cache.distance(np.array([300.0, 0, 0])) < 1
