"""A drive becomes a bag, the bag is read and played back, unchanged and in the drive's own time."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from ep2ploc_core.datasets.bag_writer import INITIAL_POSE_LEAD, write_kitti_bag
from ep2ploc_core.datasets.image_message import camera_from_message
from ep2ploc_core.datasets.kitti import KittiDrive
from ep2ploc_core.errors import Ep2plocError, InputError
from ep2ploc_core.evaluation.metrics import summarize
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_ros.demo_replay import RECORDED, _gather, replay
from ep2ploc_ros.messages import image_from_message, nanoseconds, pose_from_message

CALIBRATION = """S_rect_02: 64 48
P_rect_02: 50 0 32 2 0 50 24 0 0 0 1 0
R_rect_00: 1 0 0 0 1 0 0 0 1
"""


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> KittiDrive:
    """Five frames at 10 Hz, one metre apart; frame 1 has no scan, frame 3 no image."""
    root = tmp_path_factory.mktemp("date")
    (root / "calib_cam_to_cam.txt").write_text(CALIBRATION)
    (root / "calib_velo_to_cam.txt").write_text("R: 0 -1 0 0 0 -1 1 0 0\nT: 0 -0.1 -0.3\n")
    path = root / "drive_0001_sync"
    numbers = np.random.default_rng(3)
    (path / "image_02" / "data").mkdir(parents=True)
    (path / "velodyne_points" / "data").mkdir(parents=True)
    for k in range(5):
        if k != 3:
            pixels = numbers.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            cv2.imwrite(str(path / "image_02" / "data" / f"{k:010}.png"), pixels)
        if k != 1:
            numbers.random((20 + k, 4)).astype(np.float32).tofile(path / "velodyne_points" / "data" / f"{k:010}.bin")
    stamps = "\n".join(f"2011-09-26 13:02:25.{k}00000001" for k in range(5))
    (path / "image_02" / "timestamps.txt").write_text(stamps)
    poses = "\n".join(f"1 0 0 {k} 0 1 0 0 0 0 1 0" for k in range(5))
    (path / "poses_lidar.txt").write_text(poses)
    return KittiDrive(path)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_bag_holds_what_the_drive_holds(drive: KittiDrive, tmp_path: Path, storage: str) -> None:
    bag = tmp_path / "bag"
    start = drive.map_from_camera(drive.frame(2))
    assert write_kitti_bag(drive, bag, initial_poses={2: start}, storage=storage) == 5
    store = get_typestore(Stores.ROS2_JAZZY)
    found: dict[str, list] = {}
    with Reader(bag) as reader:
        for connection, received, raw in reader.messages():
            message = store.deserialize_cdr(raw, connection.msgtype)
            found.setdefault(connection.topic, []).append((received, message))
    images = found["/camera/image"]
    frames = [frame for frame in drive.frames if frame.image_path]
    assert [nanoseconds(image.header.stamp) for _, image in images] == [round(f.stamp * 1e9) for f in frames]
    assert all(received == nanoseconds(image.header.stamp) for received, image in images)
    for frame, (_, image) in zip(frames, images, strict=True):
        assert np.array_equal(image.data.reshape(48, 64, 3), drive.read_image(frame))
    clouds = found["/points"]
    assert [cloud.width for _, cloud in clouds] == [20, 22, 23, 24]
    assert np.array_equal(clouds[0][1].data.view(np.float32).reshape(-1, 4), drive.read_scan(drive.frames[0]))
    received, given = found["/initialpose"][0]
    assert received == round(drive.frame(2).stamp * 1e9) - INITIAL_POSE_LEAD
    assert given.header.frame_id == "map"
    assert np.allclose(pose_from_message(given.pose.pose), start)
    truth = found["/ground_truth/pose"]
    assert np.allclose(pose_from_message(truth[4][1].pose), drive.map_from_camera(drive.frame(4)))
    placed = {t.child_frame_id: t for t in found["/tf_static"][0][1].transforms}
    assert set(placed) == {"lidar", "camera"}
    translation = placed["camera"].transform.translation
    base_from_camera = np.linalg.inv(drive.camera_from_lidar)
    assert np.allclose([translation.x, translation.y, translation.z], base_from_camera[:3, 3])


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_metadata_is_what_rosbag2_of_humble_and_of_jazzy_take(drive: KittiDrive, tmp_path: Path, storage: str) -> None:
    write_kitti_bag(drive, tmp_path / "bag", storage=storage)
    text = (tmp_path / "bag" / "metadata.yaml").read_text()
    metadata = yaml.safe_load(text)["rosbag2_bagfile_information"]
    assert metadata["version"] == 8
    assert metadata["storage_identifier"] == storage
    assert [(tmp_path / "bag" / name).is_file() for name in metadata["relative_file_paths"]] == [True]
    topics = [one["topic_metadata"] for one in metadata["topics_with_message_count"]]
    durabilities = {}
    for topic in topics:
        assert topic["serialization_format"] == "cdr"
        assert topic["type_description_hash"].startswith("RIHS01_")  # of REP-2016; Humble passes over it
        (profile,) = yaml.safe_load(topic["offered_qos_profiles"])  # a text in the text, policies as numbers
        durabilities[topic["name"]] = profile["durability"]
    latched = DurabilityPolicy.TRANSIENT_LOCAL.value
    assert [name for name, durability in durabilities.items() if durability == latched] == ["/tf_static"]


def test_bag_of_chosen_frames(drive: KittiDrive, tmp_path: Path) -> None:
    assert write_kitti_bag(drive, tmp_path / "bag", frames=[1, 4]) == 2
    with Reader(tmp_path / "bag") as reader:
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
    assert counts["/camera/image"] == 2
    assert counts["/points"] == 1
    assert counts["/initialpose"] == 0


def test_bag_is_replaced_but_nothing_else_is(drive: KittiDrive, tmp_path: Path) -> None:
    write_kitti_bag(drive, tmp_path / "bag", frames=[1])
    write_kitti_bag(drive, tmp_path / "bag", frames=[2])
    (tmp_path / "precious").mkdir()
    with pytest.raises(InputError, match="left alone"):
        write_kitti_bag(drive, tmp_path / "precious")
    with pytest.raises(InputError, match="no frame 77"):
        write_kitti_bag(drive, tmp_path / "other", frames=[77])
    with pytest.raises(InputError, match="storage"):
        write_kitti_bag(drive, tmp_path / "other", storage="floppy")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bag", "precious"]


def test_truncated_scan_leaves_no_bag_behind(drive: KittiDrive, tmp_path: Path) -> None:
    broken = KittiDrive(drive.path)
    broken.frames[2].scan_path = tmp_path / "short.bin"
    (tmp_path / "short.bin").write_bytes(bytes(17))
    with pytest.raises(InputError, match="truncated"):
        write_kitti_bag(broken, tmp_path / "bag")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["short.bin"]


def test_player_publishes_the_bag_and_its_clock(listener, start, drive: KittiDrive, tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    write_kitti_bag(drive, bag, initial_poses={0: np.eye(4)})
    images = listener.listen(Image, "/camera/image")
    infos = listener.listen(CameraInfo, "/camera/camera_info")
    clouds = listener.listen(PointCloud2, "/points")
    given = listener.listen(PoseWithCovarianceStamped, "/initialpose")
    truth = listener.listen(PoseStamped, "/ground_truth/pose")
    clock = listener.listen(Clock, "/clock", 1000)
    player = start("bag_player_node", bag=bag, rate=2)
    listener.wait(lambda: player.process.poll() is not None)
    assert player.process.returncode == 0
    assert [len(one) for one in (images, infos, clouds, given, truth)] == [4, 4, 4, 1, 5]
    assert np.array_equal(image_from_message(images[0]), drive.read_image(drive.frames[0]))
    camera = camera_from_message(infos[0])
    assert (camera.width, camera.fx, camera.cx) == (64, 50, 32)
    times = [nanoseconds(message.clock) for message in clock]
    assert times == sorted(times)
    assert times[-1] == nanoseconds(truth[-1].header.stamp)


def test_player_latches_what_was_latched_and_loops(listener, start, drive: KittiDrive, tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    write_kitti_bag(drive, bag)
    images = listener.listen(Image, "/camera/image")
    player = start("bag_player_node", bag=bag, loop=True, rate=5)
    listener.wait(lambda: len(images) > 8)
    stamps = [nanoseconds(image.header.stamp) for image in images]
    assert stamps[4:8] == stamps[:4]
    static = listener.listen(TFMessage, "/tf_static", QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    listener.wait(lambda: static)
    assert player.interrupt() == 0


def test_player_refuses_what_is_no_bag(start, tmp_path: Path) -> None:
    player = start("bag_player_node", bag=tmp_path)
    assert player.process.wait(timeout=60) == 2
    assert "cannot be played" in player.log.read_text()
    assert "Traceback" not in player.log.read_text()


def test_replay_through_all_nodes_gathers_every_image(drive: KittiDrive, untrained: PointMap, tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    start = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
    write_kitti_bag(drive, bag, initial_poses={0: start})
    result = replay(bag, untrained.path, tmp_path / "out", rate=0.1)
    frames = [frame for frame in drive.frames if frame.image_path]
    assert [image.stamp for image in result.images] == [round(frame.stamp * 1e9) for frame in frames]
    assert np.allclose(result.truth, [drive.map_from_camera(frame) for frame in frames])
    assert set(result.exit_codes.values()) == {0}
    assert int(result.localizer["images_received"]) == 4
    for image in result.images:  # an untrained network may say what it likes, but TF must say the same
        assert (image.tf is None) == (image.map_from_camera is None) == (image.latency is None)
        if image.tf is not None:
            assert np.allclose(image.tf, image.map_from_camera)
    statuses = [row["status"] for row in result.rows()]
    assert [status == "ok" for status in statuses] == [one is not None for one in result.estimates]
    summary = result.summary()
    assert summary["tf_differs_from_pose_by_m"] < 1e-6
    counted = [summary[name] for name in ("poses", "images_refused", "images_dropped", "images_not_received")]
    assert sum(counted) == 4 and counted[3] == 0
    assert (statuses.count("refused"), statuses.count("dropped")) == (counted[1], counted[2])
    assert (summary["latency_p95_s"] is None) == (summary["poses"] == 0)
    with AnyReader([tmp_path / "out" / RECORDED]) as reader:  # what rosbag2 would have recorded
        heard = {connection.topic: connection.msgcount for connection in reader.connections}
        assert heard["/pose"] == heard["/pose_with_covariance"] == heard["/tf"] == summary["poses"]
        assert heard["/ground_truth/pose"] == 5
        assert heard["/tf_static"] and heard["/diagnostics"]
        truth = [reader.deserialize(raw, c.msgtype) for c, _, raw in reader.messages() if c.topic.startswith("/ground")]
        assert [nanoseconds(pose.header.stamp) for pose in truth] == [round(f.stamp * 1e9) for f in drive.frames]
        begin = round(drive.frames[0].stamp * 1e9) - INITIAL_POSE_LEAD  # in the time of the bag that was played
        assert begin <= reader.start_time <= reader.end_time < begin + 60e9
    assert {log.name for log in (tmp_path / "out").glob("*.log")} == {
        "recorder.log", "map_server.log", "localizer.log", "bag_player.log",
    }  # fmt: skip


def test_replay_tells_refused_images_from_those_nobody_worked_on(tmp_path: Path) -> None:
    def said(**values: object) -> dict:
        words = {name: str(value) for name, value in values.items()}
        return {"kind": "diagnostic", "stamp": 0, "heard": 1.0, "node": "localizer", "message": "", "values": words}

    pose = np.eye(4).tolist()
    events = [{"kind": "image", "stamp": stamp, "heard": 0.1 * stamp} for stamp in range(1, 7)]
    events += [{"kind": "truth", "stamp": stamp, "heard": 1.0, "map_from_camera": pose} for stamp in range(1, 7)]
    events += [
        said(unanswered_stamps="1 2", images_received=3, images_dropped=0),
        {"kind": "pose", "stamp": 2, "heard": 1.0, "map_from_camera": pose},
        said(unanswered_stamps="4", images_received=5, images_dropped=2),
    ]
    result = _gather(events, tmp_path)
    assert [row["status"] for row in result.rows()] == ["refused", "ok", "dropped", "refused", "dropped", "dropped"]
    summary = result.summary()
    assert (summary["poses"], summary["images_refused"]) == (1, 2)
    assert (summary["images_dropped"], summary["images_not_received"]) == (2, 1)
    accuracy = summarize(result.rows())
    assert (accuracy["refused"], accuracy["dropped"]) == (2, 3)
    assert accuracy["recall_0.25m_2deg"] == pytest.approx(1 / 6, abs=1e-4)


def test_recorder_leaves_a_bag_alone_that_is_there_already(start, tmp_path: Path) -> None:
    (tmp_path / "said_bag").mkdir()
    (tmp_path / "said.jsonl").write_text("what was said before\n")
    recorder = start("recorder_node", file=tmp_path / "said.jsonl")
    assert recorder.process.wait(timeout=60) == 2
    assert "No bag can be written" in recorder.log.read_text()
    assert (tmp_path / "said.jsonl").read_text() == "what was said before\n"
    assert "Traceback" not in recorder.log.read_text()


def test_replay_with_an_unusable_map_ends_with_a_sentence(drive: KittiDrive, tmp_path: Path) -> None:
    write_kitti_bag(drive, tmp_path / "bag")
    with pytest.raises(Ep2plocError, match="is not a map directory"):
        replay(tmp_path / "bag", tmp_path, tmp_path / "out")
