"""Bags that rosbags writes, read back: points, poses against numpy, and files that are not what they should be."""

from __future__ import annotations

import shutil
import sqlite3
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_messages import (
    BASE_FROM_LIDAR,
    START,
    STATIC,
    STORAGES,
    STORE,
    TYPES,
    Messages,
    cloud,
    cloud_messages,
    even_turn,
    header,
    make,
    map_from_odom,
    odom_from_base,
    odometry,
    odometry_messages,
    pose,
    scans,
    tf_messages,
    transform_message,
    write_bag,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import CompressionMode, StoragePlugin, Writer
from scipy.spatial.transform import Rotation

from ep2ploc_core import se3
from ep2ploc_core.datasets.bag_reader import BagSource
from ep2ploc_core.errors import InputError


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("compression", [CompressionMode.NONE, CompressionMode.MESSAGE, CompressionMode.FILE])
def test_odometry_with_a_lever_arm(tmp_path: Path, storage: str, compression: CompressionMode) -> None:
    early = ("/points", 0.005, cloud(0.005, scans()[0][1]))  # before the first odometry
    private = ("/private", 0.3, make(TYPES["Private"])(wheel=1.0, names=["a"]))
    path = write_bag(
        tmp_path / "bag", [early, private, *cloud_messages(), *STATIC, *odometry_messages()], storage, compression
    )
    source = BagSource(path)
    assert source.has_poses and len(source) == 6
    for (seconds, points), scan in zip(scans(), source.scans(), strict=True):
        np.testing.assert_array_equal(scan.points, points)
        assert scan.stamp == pytest.approx(START / 1e9 + seconds, abs=1e-6)
        np.testing.assert_allclose(scan.map_from_lidar, even_turn(seconds) @ BASE_FROM_LIDAR, atol=1e-5)
    assert [scan.frame for scan in source.scans()] == [1, 2, 3, 4, 5, 6]
    description = source.describe()
    assert description["scans_without_pose"] == 1 and description["pose_source"] == "/odometry"


@pytest.mark.parametrize("storage", STORAGES)
def test_tf_chain_is_composed_edge_by_edge_and_the_map_is_preferred(tmp_path: Path, storage: str) -> None:
    to_mount = se3.from_quaternion(np.array([0, 0, 2.0]), np.array([0, 0, 0, 1.0]))
    lidar_from_mount = np.linalg.inv(BASE_FROM_LIDAR) @ to_mount
    messages = [
        *cloud_messages(),
        *odometry_messages(),  # in odom, so second to the map
        *tf_messages(even_turn, "odom", "/base", 0.03),
        *tf_messages(map_from_odom, "map", "odom", 0.5),
        ("/tf_static", 0.0, transform_message(0.0, "base", "mount", to_mount)),
        ("/tf_static", 0.0, transform_message(0.0, "lidar", "mount", lidar_from_mount)),  # passed backwards
    ]
    source = BagSource(write_bag(tmp_path / "bag", messages, storage))
    assert source.describe()["pose_source"] == "/tf (from map)" and len(source) == 6
    for (seconds, _), scan in zip(scans(), source.scans(), strict=True):
        truth = map_from_odom(seconds) @ even_turn(seconds) @ BASE_FROM_LIDAR
        np.testing.assert_allclose(scan.map_from_lidar, truth, atol=1e-5)


@pytest.mark.parametrize("root", ["odom", "world", "robot1/map", "camera_init"])
def test_other_fixed_frames_serve_where_there_is_no_map(tmp_path: Path, root: str) -> None:
    messages = [*cloud_messages(), *STATIC, *tf_messages(even_turn, root, "base", 0.03)]
    source = BagSource(write_bag(tmp_path / "bag", messages))
    assert source.has_poses and source.describe()["pose_source"] == f"/tf (from {root})"


def test_poses_are_not_interpolated_over_a_gap(tmp_path: Path) -> None:
    stay = [each for each in odometry_messages() if not 0.2 < each[1] < 0.56]  # leaves 0.36 s out
    few = [*stay, *[("/odometry", s, odometry(s, "odom", "base", even_turn(s))) for s in (1.6, 1.62)]]
    late = [("/points", s, cloud(s, scans()[0][1])) for s in (1.2, 1.61)]  # in a gap of 0.8 s; between two poses
    source = BagSource(write_bag(tmp_path / "bag", [*cloud_messages(), *late, *STATIC, *few]))
    times = [scan.stamp - START / 1e9 for scan in source.scans()]
    np.testing.assert_allclose(times, [*(seconds for seconds, _ in scans()), 1.61], atol=1e-5)


def test_a_moving_mount_alone_is_no_path(tmp_path: Path) -> None:
    messages = [*cloud_messages(), *tf_messages(even_turn, "base", "lidar", 0.03)]
    source = BagSource(write_bag(tmp_path / "bag", messages))
    assert not source.has_poses and len(source) == 6


def test_without_poses_they_are_identities(tmp_path: Path) -> None:
    source = BagSource(write_bag(tmp_path / "bag", [*cloud_messages(), *STATIC]))
    assert not source.has_poses and source.describe()["pose_source"] == ""
    assert all(np.array_equal(scan.map_from_lidar, np.eye(4)) for scan in source.scans())


def test_odometry_that_is_not_linked_to_the_lidar(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", [*cloud_messages(), *odometry_messages()])
    assert not BagSource(path).has_poses
    with pytest.raises(InputError, match="does not link its frame to 'lidar'"):
        BagSource(path, pose_topic="/odometry")


def test_odometry_without_a_child_frame_is_the_lidars(tmp_path: Path) -> None:
    source = BagSource(write_bag(tmp_path / "bag", [*cloud_messages(), *odometry_messages("", "")]))
    for (seconds, _), scan in zip(scans(), source.scans(), strict=True):
        np.testing.assert_allclose(scan.map_from_lidar, even_turn(seconds), atol=1e-5)


@pytest.mark.parametrize("kind", ["PoseStamped", "PoseWithCovarianceStamped"])
def test_a_pose_topic_that_is_named(tmp_path: Path, kind: str) -> None:
    messages = [*cloud_messages(), *STATIC, *odometry_messages("map")]
    for k in range(40):
        place: Any = pose(odom_from_base(0.02 * k))
        if kind == "PoseWithCovarianceStamped":
            place = make("geometry_msgs/msg/PoseWithCovariance")(pose=place, covariance=np.zeros(36))
        messages.append(("/slam", 0.02 * k, make(TYPES[kind])(header=header(0.02 * k, "map"), pose=place)))
    path = write_bag(tmp_path / "bag", messages)
    source = BagSource(path, pose_topic="/slam")
    for (seconds, _), scan in zip(scans(), source.scans(), strict=True):
        np.testing.assert_allclose(scan.map_from_lidar, odom_from_base(seconds), atol=1e-3)  # not quite an even turn
    assert BagSource(path).describe()["pose_source"] == "/odometry"
    with pytest.raises(InputError, match=r"no topic /slim; it has .*/slam \(geometry_msgs"):
        BagSource(path, pose_topic="/slim")
    with pytest.raises(InputError, match="tells no pose"):
        BagSource(path, pose_topic="/points")


def test_poses_from_a_file(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", [*cloud_messages(), *STATIC, *odometry_messages()])
    times = np.arange(0.1, 0.55, 0.02)
    rows = [
        [START / 1e9 + t, *map_from_odom(t)[:3, 3], *Rotation.from_matrix(map_from_odom(t)[:3, :3]).as_quat()]
        for t in times
    ]
    np.savetxt(tmp_path / "tum.txt", rows, fmt="%.9f")
    source = BagSource(path, poses=tmp_path / "tum.txt")
    assert len(source) == 5 and source.describe()["scans_without_pose"] == 1
    for (seconds, _), scan in zip(scans(), source.scans(), strict=False):
        np.testing.assert_allclose(scan.map_from_lidar, map_from_odom(seconds), atol=1e-6)

    truth = np.array([even_turn(seconds) for seconds, _ in scans()])
    np.savetxt(tmp_path / "rows.txt", truth[:, :3].reshape(-1, 12))
    source = BagSource(path, poses=tmp_path / "rows.txt")
    np.testing.assert_allclose([scan.map_from_lidar for scan in source.scans()], truth, atol=1e-12)

    np.savetxt(tmp_path / "short.txt", truth[:5, :3].reshape(-1, 12))
    with pytest.raises(InputError, match=r"has 5 rows, and .* has 6 scans"):
        BagSource(path, poses=tmp_path / "short.txt")
    np.savetxt(tmp_path / "late.txt", np.array(rows) + np.array([100, *[0] * 7]), fmt="%.9f")
    with pytest.raises(InputError, match="meet none of the scans"):
        BagSource(path, poses=tmp_path / "late.txt")


@pytest.mark.parametrize("storage", STORAGES)
def test_scans_from_a_number_on(tmp_path: Path, storage: str) -> None:
    """Also where recording times repeat and run backwards, as they do in merged bags."""
    messages = [("/points", 0.1 * k, cloud(0.1 * k, points)) for k, (_, points) in enumerate(scans(8))]
    times = [0.0, 0.1, 0.1, 0.3, 0.2, 0.2, 0.4, 0.4]
    path = tmp_path / "bag"
    kind = TYPES["PointCloud2"]
    with Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()]) as writer:
        connection = writer.add_connection("/points", kind, typestore=STORE)
        for time, (_, _, message) in zip(times, messages, strict=True):
            writer.write(connection, START + round(time * 1e9), STORE.serialize_cdr(message, kind))
    source = BagSource(path)
    whole = list(source.scans())
    assert len(whole) == 8
    for first in range(9):
        rest = list(source.scans(first))
        assert [scan.frame for scan in rest] == [scan.frame for scan in whole[first:]]
        assert [scan.stamp for scan in rest] == [scan.stamp for scan in whole[first:]]
        assert all(np.array_equal(a.points, b.points) for a, b in zip(rest, whole[first:], strict=True))


def test_messages_passed_over_are_not_decoded(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", cloud_messages(), "sqlite3")
    source = BagSource(path)
    with sqlite3.connect(path / "bag.db3") as database:
        database.execute("UPDATE messages SET data = x'00010000ff' WHERE id = 1")
    database.close()
    assert len(list(source.scans(1))) == 5
    with pytest.raises(InputError, match="A message on /points is garbled"):
        list(source.scans())


@pytest.mark.parametrize("storage", STORAGES)
def test_memory_does_not_grow_with_the_bag(tmp_path: Path, storage: str) -> None:
    points = np.ones((100_000, 4), np.float32)  # 1.6 MB
    messages = [("/points", 0.1 * k, cloud(0.1 * k, points)) for k in range(30)]
    path = write_bag(tmp_path / "bag", messages, storage)
    del messages
    tracemalloc.start()
    try:
        count = sum(len(scan.points) for scan in BagSource(path).scans())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 30 * 100_000
    assert peak < 30e6  # of 48 MB


def test_a_single_file_is_a_bag_too(tmp_path: Path) -> None:
    for storage, name in (("mcap", "bag.mcap"), ("sqlite3", "bag.db3")):
        bag = write_bag(tmp_path / storage / "bag", [*cloud_messages(), *STATIC, *odometry_messages()], storage)
        source = BagSource(bag / name)
        assert len(source) == 6 and source.has_poses


def test_headers_without_a_time(tmp_path: Path) -> None:
    messages = [*cloud_messages(), *STATIC, *odometry_messages()]
    for topic, _, message in messages:
        if topic != "/tf_static":
            message.header.stamp.sec = message.header.stamp.nanosec = 0
    source = BagSource(write_bag(tmp_path / "bag", messages))
    for (seconds, _), scan in zip(scans(), source.scans(), strict=True):
        assert scan.stamp == pytest.approx(START / 1e9 + seconds, abs=1e-6)
        np.testing.assert_allclose(scan.map_from_lidar, even_turn(seconds) @ BASE_FROM_LIDAR, atol=1e-5)


def test_the_busiest_cloud_topic_unless_one_is_named(tmp_path: Path) -> None:
    other = [("/a_few", 0.15 + 0.1 * k, cloud(0.15 + 0.1 * k, scans()[0][1])) for k in range(3)]
    path = write_bag(tmp_path / "bag", [*cloud_messages(), *other])
    assert BagSource(path).describe()["points_topic"] == "/points"
    source = BagSource(path, points_topic="/a_few")
    assert len(source) == 3 and source.describe()["points_topic"] == "/a_few"
    with pytest.raises(InputError, match="no PointCloud2 topic /none; it has /a_few"):
        BagSource(path, points_topic="/none")


def test_a_bag_of_images_only(tmp_path: Path) -> None:
    image = make(TYPES["Image"])(header(0, "camera"), 1, 1, "rgb8", 0, 3, np.zeros(3, np.uint8))
    path = write_bag(tmp_path / "bag", [("/camera", 0.0, image)])
    with pytest.raises(InputError, match=r"no PointCloud2 topic, so no scans; it has /camera \(sensor_msgs/msg/Image"):
        BagSource(path)


def test_clouds_that_are_in_the_map_already(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", cloud_messages(frame="map"))
    with pytest.raises(InputError, match="in the frame 'map', not in a sensor's"):
        BagSource(path)


def test_clouds_that_cannot_be_used_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    points = scans()[0][1]
    broken = [
        cloud(0.8, points, height=2),
        cloud(0.9, points, point_step=15),
        cloud(1.0, points, row_step=12),
        cloud(1.1, points, fields=cloud(0, points).fields[:2]),
        cloud(1.2, points, frame="rear_lidar"),
    ]
    bad: Messages = [("/points", 0.8 + 0.1 * k, message) for k, message in enumerate(broken)]
    source = BagSource(write_bag(tmp_path / "bag", [*cloud_messages(), *bad]))
    assert len(source) == 6 and source.describe()["unusable_messages"] == 5
    assert "5 messages on /points are left out: The cloud carries 800 bytes where 2 rows of 800" in caplog.text
    with pytest.raises(InputError, match=r"no cloud on /points that can be used\. The cloud carries 800 bytes"):
        BagSource(write_bag(tmp_path / "all_bad", bad[:-1]))


@pytest.mark.parametrize(
    ("name", "match"), [("missing", "does not exist"), ("empty", "no ROS 2 bag"), ("file.txt", "no ROS 2 bag")]
)
def test_what_is_no_bag(tmp_path: Path, name: str, match: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(InputError, match=match):
        BagSource(tmp_path / name)


@pytest.fixture(scope="module")
def whole_bags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("whole")
    messages = [*cloud_messages(), *STATIC, *odometry_messages()]
    return {storage: write_bag(path / storage / "bag", messages, storage) for storage in STORAGES}


@pytest.mark.parametrize(("storage", "name"), [("mcap", "metadata.yaml"), ("mcap", "bag.mcap"), ("sqlite3", "bag.db3")])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_garbled_files_give_input_errors_only(
    tmp_path: Path, whole_bags: dict[str, Path], storage: str, name: str, data: st.DataObject
) -> None:
    bag = tmp_path / "bag"
    shutil.rmtree(bag, ignore_errors=True)
    shutil.copytree(whole_bags[storage], bag)
    content = bytearray((bag / name).read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        # Mostly near the ends, where headers and indices are.
        ends = st.one_of(st.integers(0, 200), st.integers(len(content) - 200, len(content) - 1))
        places = st.one_of(ends, st.integers(0, len(content) - 1))
        for place in data.draw(st.lists(places, min_size=1, max_size=8)):
            content[place % len(content)] = data.draw(st.integers(0, 255))
    (bag / name).write_bytes(content)
    try:
        source = BagSource(bag)
        for scan in source.scans():
            assert scan.points.dtype == np.float32 and np.isfinite(scan.points).all()
            assert np.isfinite(scan.map_from_lidar).all()
    except InputError as error:
        assert len(str(error).splitlines()) == 1
