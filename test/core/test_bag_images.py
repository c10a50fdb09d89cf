"""The images of bags: which topic, where each was taken, its pixels when asked for; and what keeps them from use."""

from __future__ import annotations

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
    camera_info,
    cloud,
    cloud_messages,
    compressed,
    even_turn,
    image,
    odometry,
    odometry_messages,
    scans,
    tf_messages,
    transform_message,
    write_bag,
)
from rosbags.rosbag2 import CompressionMode, StoragePlugin, Writer
from scipy.spatial.transform import Rotation

from ep2ploc_core import se3
from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.bag_images import BagImage, ImageMessages, write_images
from ep2ploc_core.datasets.bag_reader import BagSource
from ep2ploc_core.datasets.bag_writer import write_kitti_bag
from ep2ploc_core.datasets.kitti import KittiDrive, read_image
from ep2ploc_core.datasets.queries import write_image_queries
from ep2ploc_core.datasets.synthetic import write_synthetic_drive
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.sources import KittiSource, mapping_images, open_source, reopen_source
from ep2ploc_core.training.scenes import drive_scene

WIDTH, HEIGHT = 24, 16
BASE_FROM_CAMERA = se3.from_quaternion(
    np.array([0.4, 0.1, 1.3]), Rotation.from_euler("ZYX", [-88, 2, -93], degrees=True).as_quat()
)
CAMERA = [("/tf_static", 0.0, transform_message(0.0, "base", "camera", BASE_FROM_CAMERA))]
INFO = [("/front/camera_info", 0.05, camera_info(0.05, WIDTH, HEIGHT))]
TIMES = [0.113 + 0.06 * k for k in range(8)]  # between the poses, which come every 20 ms


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def image_messages(topic: str = "/front/image_raw", **changes: Any) -> Messages:
    return [(topic, seconds, image(seconds, picture(k), **changes)) for k, seconds in enumerate(TIMES)]


def drive_messages() -> Messages:
    """All but images: scans, a path, where both sensors sit."""
    return [*cloud_messages(), *odometry_messages(), *STATIC, *CAMERA]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("compression", [CompressionMode.NONE, CompressionMode.FILE])
def test_where_and_what(tmp_path: Path, storage: str, compression: CompressionMode) -> None:
    bag = write_bag(tmp_path / "bag", [*drive_messages(), *INFO, *image_messages()], storage, compression)
    images = mapping_images(open_source(bag))
    assert [one.frame for one in images] == list(range(8))
    for k in (3, 0, 7, 7, 1):  # in any order
        truth = even_turn(TIMES[k]) @ BASE_FROM_CAMERA
        np.testing.assert_allclose(images[k].map_from_camera, truth, atol=1e-5)
        assert images[k].stamp == pytest.approx(START / 1e9 + TIMES[k], abs=1e-6)
        assert np.array_equal(images[k].read(), picture(k))
    assert images[0].camera.fx == 40 and (images[0].camera.width, images[0].camera.height) == (WIDTH, HEIGHT)
    written = write_image_queries(images[2:4], tmp_path / "queries")
    assert (
        np.array_equal(written.image(1), picture(3)) and written.frames is not None and list(written.frames) == [2, 3]
    )


def test_they_are_those_of_the_drive_that_the_bag_was_made_of(tmp_path: Path) -> None:
    path = write_synthetic_drive(tmp_path, frames=8, seed=3)
    drive = KittiDrive(path)
    write_kitti_bag(drive, tmp_path / "bag")
    poses = np.array([frame.map_from_lidar for frame in drive.frames])
    np.savetxt(tmp_path / "rows.txt", poses[:, :3].reshape(-1, 12), fmt="%.17g")
    source = open_source(tmp_path / "bag", tmp_path / "rows.txt", hold_out=[3])
    truth = KittiSource(path, hold_out=[3])
    assert [scan.frame for scan in source.scans()] == [scan.frame for scan in truth.scans()] == [7]
    images = mapping_images(reopen_source(source.describe()))
    assert [one.frame for one in images] == [one.frame for one in truth.images] == [0, 6, 7]
    for mine, theirs in zip(images, truth.images, strict=True):
        np.testing.assert_allclose(mine.map_from_camera, theirs.map_from_camera, atol=1e-6)
        assert mine.camera.matrix == pytest.approx(theirs.camera.matrix)
        assert np.array_equal(mine.read(), theirs.read())


def test_grey_and_compressed_images_are_as_good(tmp_path: Path) -> None:
    grey = [("/front/image_raw", s, image(s, picture(k)[..., 0], encoding="mono8")) for k, s in enumerate(TIMES)]
    source = BagSource(write_bag(tmp_path / "grey", [*drive_messages(), *INFO, *grey]))
    assert np.array_equal(source.images[2].read(), np.repeat(picture(2)[..., :1], 3, 2))
    packed = [("/front/image_raw/compressed", s, compressed(s, picture(k))) for k, s in enumerate(TIMES)]
    source = BagSource(write_bag(tmp_path / "packed", [*drive_messages(), *INFO, *packed]))
    assert np.array_equal(source.images[2].read(), picture(2))


def test_the_images_of_a_camera_alone_are_taken_out(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", [*INFO, *image_messages()])
    messages = ImageMessages(bag)
    assert write_images(messages, [1, 3, 99], tmp_path / "out") == (2, 1)
    assert write_images(messages, None, tmp_path / "out") == (8, 0)  # again, in its place
    with pytest.raises(InputError, match="has none of these images; it has 8"):
        write_images(messages, [99], tmp_path / "out")  # and what is there stays
    files = sorted((tmp_path / "out/images").iterdir())
    assert len(files) == 8 and np.array_equal(read_image(files[5]), picture(5))
    assert Camera.from_yaml(tmp_path / "out/camera.yaml").matrix == pytest.approx(messages.camera.matrix)
    numbers, stamps = np.loadtxt(tmp_path / "out/stamps.txt").T
    assert numbers.tolist() == list(range(8))
    np.testing.assert_allclose(stamps, START / 1e9 + np.array(TIMES), atol=1e-5)
    with pytest.raises(InputError, match="holds something that is no directory of images"):
        write_images(messages, None, tmp_path / "bag")


def test_which_topic(tmp_path: Path) -> None:
    """The one asked for; else one with a calibration, not of depth, however many others there are."""
    depth = [(topic, seconds + shift, image(seconds + shift, np.zeros((HEIGHT, WIDTH), np.uint16), encoding="16UC1"))
             for topic, seconds, _ in image_messages("/depth/image") for shift in (0.0, 0.01, 0.02)]  # fmt: skip
    bare = [(topic, seconds + shift, message)
            for topic, seconds, message in image_messages("/bare/image") for shift in (0.0, 0.01)]  # fmt: skip
    left = image_messages("/left/image_raw", frame="left")[:4]
    info = [(f"/{name}/camera_info", 0.05, camera_info(0.05, WIDTH, HEIGHT, 33.0)) for name in ("depth", "left")]
    bag = write_bag(tmp_path / "bag", [*drive_messages(), *INFO, *info, *image_messages(), *depth, *bare, *left])
    assert {one.camera.fx for one in BagSource(bag).images} == {40}
    with pytest.raises(InputError, match="does not link the camera 'left' of /left/image_raw to the LiDAR 'lidar'"):
        BagSource(bag, image_topic="/left/image_raw").images  # noqa: B018
    place = [*BASE_FROM_LIDAR[:3, 3], *Rotation.from_matrix(BASE_FROM_LIDAR[:3, :3]).as_quat()]
    images = BagSource(bag, image_topic="/left/image_raw", lidar_from_camera=place).images
    assert len(images) == 4 and images[0].camera.fx == 33
    np.testing.assert_allclose(
        images[1].map_from_camera, even_turn(TIMES[1]) @ BASE_FROM_LIDAR @ BASE_FROM_LIDAR, atol=1e-5
    )
    with pytest.raises(InputError, match=r"no camera_info for /bare/image .* Give the calibration with --camera"):
        BagSource(bag, image_topic="/bare/image").images  # noqa: B018
    images[0].camera.resize(48, 32).to_yaml(tmp_path / "large.yaml")
    with pytest.raises(InputError, match="is for images of 48x32 pixels, and those on /bare/image have 24x16"):
        BagSource(bag, image_topic="/bare/image", camera=tmp_path / "large.yaml").images  # noqa: B018
    (tmp_path / "camera.txt").write_text("21 0 12 0 21 8 0 0 1")
    assert BagSource(bag, image_topic="/bare/image", camera=tmp_path / "camera.txt").images[0].camera.fx == 21
    with pytest.raises(InputError, match="encoding '16UC1', which is that of a depth image"):
        BagSource(bag, image_topic="/depth/image").images  # noqa: B018
    with pytest.raises(InputError, match=r"no image topic /points; it has .*/front/image_raw \(sensor_msgs"):
        BagSource(bag, image_topic="/points").images  # noqa: B018


def test_a_camera_that_stands_still_gives_no_more_images(tmp_path: Path) -> None:
    def where(seconds: float) -> np.ndarray:
        return even_turn(min(seconds, 0.25))  # from the fourth image on less than a decimetre from the third

    path = [("/odometry", 0.02 * k, odometry(0.02 * k, "odom", "base", where(0.02 * k))) for k in range(1, 40)]
    bag = write_bag(tmp_path / "bag", [*cloud_messages(), *path, *STATIC, *CAMERA, *INFO, *image_messages()])
    source = BagSource(bag)
    assert [one.frame for one in source.images] == [0, 1, 2] and len(source.posed_images) == 8


def test_images_without_a_pose_or_a_header_are_left_out(tmp_path: Path) -> None:
    messages = image_messages()
    late = ("/front/image_raw", 2.0, image(2.0, picture(9)))  # after the last pose
    messages[2] = (*messages[2][:2], image(TIMES[2], picture(2), frame="other"))
    bag = write_bag(tmp_path / "bag", [*drive_messages(), *INFO, *messages, late])
    assert [one.frame for one in BagSource(bag).images] == [0, 1, 3, 4, 5, 6, 7]
    early = write_bag(tmp_path / "early", [*drive_messages(), *INFO, late])
    with pytest.raises(InputError, match=r"No image on /front/image_raw .* while the LiDAR's pose is known"):
        BagSource(early).images  # noqa: B018


@pytest.mark.parametrize("storage", STORAGES)
def test_messages_recorded_at_the_same_time_are_told_apart(tmp_path: Path, storage: str) -> None:
    path = tmp_path / "bag"
    with Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()]) as writer:
        for topic, seconds, message in [*drive_messages(), *INFO, *image_messages()]:
            kind = message.__msgtype__
            known = [one for one in writer.connections if one.topic == topic]
            connection = known[0] if known else writer.add_connection(topic, kind, typestore=STORE)
            when = 0.3 if kind == TYPES["Image"] else seconds
            writer.write(connection, START + round(when * 1e9), STORE.serialize_cdr(message, kind))
    images = BagSource(path).images
    assert sorted(one.read().tobytes() for one in images) == sorted(picture(k).tobytes() for k in range(8))
    for one in images:
        k = TIMES.index(min(TIMES, key=lambda seconds: abs(START / 1e9 + seconds - one.stamp)))
        assert np.array_equal(one.read(), picture(k))


def test_nothing_to_go_by(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "none", drive_messages())
    with pytest.raises(InputError, match="no image topic, so no images"):
        mapping_images(open_source(bag))
    bag = write_bag(tmp_path / "lost", [*cloud_messages(), *STATIC, *CAMERA, *INFO, *image_messages()])
    with pytest.raises(InputError, match="has no poses, so it is not known where its images were taken"):
        mapping_images(open_source(bag))
    wrong = [("/front/camera_info", 0.05, camera_info(0.05, 2 * WIDTH, HEIGHT))]
    bag = write_bag(tmp_path / "wrong", [*drive_messages(), *wrong, *image_messages()])
    with pytest.raises(InputError, match="is for images of 48x16 pixels, and these have 24x16"):
        mapping_images(open_source(bag))
    held = write_bag(tmp_path / "held", [*drive_messages(), *INFO, *image_messages()])
    assert len(open_source(held)) == 6
    with pytest.raises(InputError, match="no scan with a pose that is not held out"):
        open_source(held, hold_out=list(range(8)))


def test_one_frame_for_both_sensors_is_that_of_neither(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", [*drive_messages(), *INFO, *image_messages(frame="lidar")])
    with pytest.raises(InputError, match="does not link the camera 'lidar'"):
        mapping_images(open_source(bag))


def test_poses_by_scans_that_come_seldom_serve_the_images_between(tmp_path: Path) -> None:
    clouds = [("/points", 0.1 + 0.5 * k, cloud(0.1 + 0.5 * k, scans()[0][1])) for k in range(3)]
    np.savetxt(tmp_path / "rows.txt", [even_turn(0.1 + 0.5 * k)[:3].ravel() for k in range(3)])
    bag = write_bag(tmp_path / "bag", [*clouds, *STATIC, *CAMERA, *INFO, *image_messages()])
    source = BagSource(bag, poses=tmp_path / "rows.txt")
    assert len(source.posed_images) == 8
    base_from_camera = np.linalg.inv(BASE_FROM_LIDAR) @ BASE_FROM_CAMERA  # the rows are the LiDAR's poses
    for one, seconds in zip(source.posed_images, TIMES, strict=True):
        np.testing.assert_allclose(one.map_from_camera, even_turn(seconds) @ base_from_camera, atol=2e-3)


def test_which_scan_was_taken_with_an_image(tmp_path: Path) -> None:
    """Learning from an image takes its own scan out of the map; both are counted for themselves."""
    many = [("/front/image_raw", 0.11 + 0.02 * k, image(0.11 + 0.02 * k, picture(k))) for k in range(25)]
    source = BagSource(write_bag(tmp_path / "bag", [*drive_messages(), *INFO, *many]))
    for one in source.posed_images:
        nearest = min(source.scans(), key=lambda scan: abs(scan.stamp - one.stamp))
        assert one.scan == nearest.frame


def test_a_scene_is_seen_by_a_pinhole(tmp_path: Path) -> None:
    """What a network learns from is undistorted; an image that cannot be read is left out."""
    info = camera_info(0.05, WIDTH, HEIGHT)
    info.d = np.array([-0.3, 0.1, 0.0, 0.0, 0.0])
    messages = image_messages()
    messages[3][2].step = 1
    bag = write_bag(tmp_path / "bag", [*drive_messages(), ("/front/camera_info", 0.05, info), *messages])
    source = open_source(bag)
    scene = drive_scene(source)
    assert len(scene.images) == len(scene.cameras) == len(scene.map_from_camera) == 7
    for number, one in zip((0, 4), (mapping_images(source)[0], mapping_images(source)[4]), strict=True):
        flat, pinhole = one.camera.undistort(one.read())
        place = number if number < 3 else number - 1
        assert scene.cameras[place] == pinhole and pinhole.distortion_model == "none"
        assert np.array_equal(scene.images[place], flat) and not np.array_equal(flat, picture(number))


def test_an_image_that_is_garbled_later_says_so(tmp_path: Path) -> None:
    messages = image_messages()
    broken = image(TIMES[4], picture(4))
    broken.step = 1
    messages[4] = (*messages[4][:2], broken)
    images = BagSource(write_bag(tmp_path / "bag", [*drive_messages(), *INFO, *messages])).images
    assert isinstance(images[4], BagImage)
    with pytest.raises(InputError, match="in rows of 1 bytes, which cannot be"):
        images[4].read()
    assert np.array_equal(images[5].read(), picture(5))


def test_the_path_of_tf_serves_too(tmp_path: Path) -> None:
    messages = [*cloud_messages(), *tf_messages(even_turn, "map", "base", 0.03), *STATIC, *CAMERA]
    source = BagSource(write_bag(tmp_path / "bag", [*messages, *INFO, *image_messages()]))
    for one, seconds in zip(source.images, TIMES, strict=True):
        np.testing.assert_allclose(one.map_from_camera, even_turn(seconds) @ BASE_FROM_CAMERA, atol=1e-5)
