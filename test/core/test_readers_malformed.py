"""Whatever is done to a file, its reader says so in one sentence: no other exception, no warning, no huge memory."""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import open3d as o3d
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.cloud_source import CloudFileSource
from ep2ploc_core.datasets.kitti import (
    KittiDrive,
    read_camera_file,
    read_image,
    read_object_calibration,
    read_odometry_calibration,
    read_raw_camera,
    read_scan,
)
from ep2ploc_core.datasets.kitti_odometry import KittiOdometrySource
from ep2ploc_core.datasets.rgbd import read_camera_pose, read_depth
from ep2ploc_core.datasets.trajectory import read_trajectory
from ep2ploc_core.errors import InputError, MapError
from ep2ploc_core.map.build import accumulate
from ep2ploc_core.map.point_map import MapInfo, PointMap, write_map
from ep2ploc_core.map.posed_scan import PosedScan

MEMORY = 64e6  # bytes; every file here is smaller than 100 kB


@dataclass
class Case:
    """A file that is whole, and what reads it (given the path)."""

    path: Path
    content: bytes
    read: Callable[[Path], object]


def read_cloud(path: Path) -> None:
    for scan in CloudFileSource(path).scans():
        assert np.isfinite(scan.points).all()


def make_cases(folder: Path) -> dict[str, Case]:
    rng = np.random.default_rng(1)
    cases: dict[str, Case] = {}

    def add(name: str, content: bytes | str, read: Callable[[Path], object], path: Path | None = None) -> None:
        path = path or folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(data)
        cases[name] = Case(path, data, read)

    def numbers(row: np.ndarray) -> str:
        return " ".join(f"{value:.6g}" for value in np.ravel(row))

    cloud = o3d.t.geometry.PointCloud(o3d.core.Tensor(rng.uniform(-20, 20, (40, 3)).round(1)))
    cloud.point["intensity"] = o3d.core.Tensor(rng.uniform(0, 255, (40, 1)).astype(np.float32))
    for name, how in (("a.pcd", {"write_ascii": True}), ("b.pcd", {}), ("c.pcd", {"compressed": True}),
                      ("a.ply", {"write_ascii": True}), ("b.ply", {})):  # fmt: skip
        o3d.t.io.write_point_cloud(str(folder / name), cloud, **how)
        add(name, (folder / name).read_bytes(), read_cloud)

    add("0.bin", rng.uniform(0, 1, (40, 4)).astype("<f4").tobytes(), read_scan)
    camera = np.array([[500.0, 0, 300], [0, 500, 100], [0, 0, 1]])
    projection, pose = np.c_[camera, [30.0, 0, 0]], np.eye(4)[:3]
    add("rows.txt", f"{numbers(pose)}\n" * 4, read_trajectory)
    add("tum.txt", "# time x y z qx qy qz qw\n0.1 1 2 3 0 0 0 1\n0.2 1 2 4 0 0 1 0\n", read_trajectory)
    add("frame.pose.txt", "\n".join(numbers(row) for row in np.eye(4)), read_camera_pose)
    add("K.txt", "\n".join(numbers(row) for row in camera), lambda path: read_camera_file(path, 600, 200))
    raw = f"calib_time: 09-Jan-2012 13:57:47\nS_rect_02: 600 200\nR_rect_00: {numbers(np.eye(3))}\n"
    add("cam_to_cam.txt", raw + f"P_rect_02: {numbers(projection)}\n", read_raw_camera)
    thing = f"P2: {numbers(projection)}\nR0_rect: {numbers(np.eye(3))}\nTr_velo_to_cam: {numbers(pose)}\n"
    add("object.txt", thing, lambda path: read_object_calibration(path, 600, 200))
    sequence = f"P2: {numbers(projection)}\nTr: {numbers(pose)}\n"
    add("odometry.txt", sequence, lambda path: read_odometry_calibration(path, 600, 200))
    Camera.from_matrix(600, 200, camera, "plumb_bob", (0.1, 0.01, 0, 0, 0.02)).to_yaml(folder / "camera.yaml")
    add("camera.yaml", (folder / "camera.yaml").read_bytes(), lambda path: read_camera_file(path, 600, 200))
    depth = rng.integers(500, 3000, (12, 16)).astype(np.uint16)
    add("0.depth.png", cv2.imencode(".png", depth)[1].tobytes(), read_depth)
    add("image.jpg", cv2.imencode(".jpg", (depth >> 4).astype(np.uint8))[1].tobytes(), read_image)

    drive = folder / "day" / "drive_sync"
    (drive / "image_02" / "data").mkdir(parents=True)
    for frame in range(3):
        (drive / "image_02" / "data" / f"{frame:010d}.png").touch()
    (drive.parent / "calib_cam_to_cam.txt").write_bytes(cases["cam_to_cam.txt"].content)
    (drive.parent / "calib_velo_to_cam.txt").write_text(f"R: {numbers(np.eye(3))}\nT: 0 0 0\n")
    stamps = "".join(f"2011-09-26 13:02:2{second}.964389445\n" for second in range(3))
    add("timestamps.txt", stamps, lambda path: KittiDrive(drive), drive / "image_02" / "timestamps.txt")
    (folder / "00" / "velodyne").mkdir(parents=True)
    for frame in range(3):
        (folder / "00" / "velodyne" / f"{frame:06d}.bin").write_bytes(cases["0.bin"].content)
    (folder / "00" / "calib.txt").write_text(sequence)
    add("times.txt", "0.0\n0.1\n0.2\n", lambda path: KittiOdometrySource(folder / "00"), folder / "00" / "times.txt")

    points = accumulate([PosedScan(0, rng.uniform(0, 1, (40, 4)).astype(np.float32), np.eye(4))], 0.2)
    written = write_map(folder / "map", points, MapInfo(voxel_size=0.2))
    tile = folder / "map" / "tiles" / written.info.tiles[0] / "points.npy"
    for name, path in (("map.yaml", folder / "map" / "map.yaml"), ("tile.npy", tile)):
        add(name, path.read_bytes(), lambda _: PointMap.open(folder / "map").all_points(), path)
    return cases


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """The case of a name."""
    cases = make_cases(tmp_path_factory.mktemp("whole"))
    return lambda name: cases[name]


NAMES = [
    "a.pcd", "b.pcd", "c.pcd", "a.ply", "b.ply", "0.bin", "rows.txt", "tum.txt", "frame.pose.txt", "K.txt",
    "cam_to_cam.txt", "object.txt", "odometry.txt", "camera.yaml", "0.depth.png", "image.jpg", "timestamps.txt",
    "times.txt", "map.yaml", "tile.npy",
]  # fmt: skip
TOKENS = [
    b"", b"-1", b"0", b"2", b"3", b"nan", b"inf", b"1e300", b"1e-300", b"4294967295", b"99999999999999999999999",
    b"0x10", b"x", b"\xff\xfe", b"[", b"{}", b"null", b"\n", b"list", b"binary_compressed", b"ascii", b"8", b"double",
]  # fmt: skip
PLACE = st.floats(0, 1, exclude_max=True)


@st.composite
def spoiling(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """One to three changes to a file: bytes flipped, the end or a piece cut off, words swapped or replaced by numbers
    and names that lie at the limits, lines doubled."""
    kinds = st.sampled_from(["flip", "cut", "drop", "word", "swap", "double", "insert"])
    changes = draw(st.lists(st.tuples(kinds, PLACE, PLACE, st.integers(0, 255), st.sampled_from(TOKENS)), min_size=1,
                            max_size=3))  # fmt: skip

    def spoil(data: bytes) -> bytes:
        for kind, first, second, byte, token in changes:
            at, other = int(first * len(data)), int(second * len(data))
            if kind == "flip" and data:
                data = data[:at] + bytes([byte]) + data[at + 1 :]
            elif kind == "cut":
                data = data[:at]
            elif kind == "drop":
                data = data[: min(at, other)] + data[max(at, other) :]
            elif kind == "insert":
                data = data[:at] + token + data[at:]
            elif kind == "double":
                lines = data.split(b"\n")
                data = b"\n".join([*lines, lines[int(first * len(lines))]])
            else:
                words = data.split(b" ")
                one, two = int(first * len(words)), int(second * len(words))
                words[one], words[two] = (words[two], words[one]) if kind == "swap" else (words[one], token)
                data = b" ".join(words)
        return data

    return spoil


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None, derandomize=True, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip
@given(spoil=spoiling())
def test_a_spoiled_file_is_read_or_refused(
    case_of: Callable[[str], Case], name: str, spoil: Callable[[bytes], bytes]
) -> None:
    case = case_of(name)
    case.path.unlink()  # not overwritten: what the reader before has mapped keeps its old content
    case.path.write_bytes(spoil(case.content))
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's own of odd .npy headers
            warnings.simplefilter("error", RuntimeWarning)
            case.read(case.path)
    except (InputError, MapError) as error:
        assert "\n" not in str(error) and str(error).endswith((".", "?")) and len(str(error)) < 1000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        case.path.write_bytes(case.content)
    assert peak < MEMORY


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_file_is_read_and_another_is_not(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    case.read(case.path)
    try:
        case.path.unlink()
        case.path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
        with pytest.raises((InputError, MapError)):
            case.read(case.path)
    finally:
        case.path.write_bytes(case.content)
