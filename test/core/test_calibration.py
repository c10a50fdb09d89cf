"""Calibrations of every kind that is read: each gives the camera that its file or message means, or one sentence."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from ep2ploc_core import se3
from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.kitti import (
    camera_from_projection,
    read_camera_file,
    read_object_calibration,
    read_odometry_calibration,
    read_raw_camera,
)
from ep2ploc_core.errors import InputError

K = np.array([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]])
P = np.array([[480.0, 0, 310, 0], [0, 490, 235, 0], [0, 0, 1, 0]])
D = (-0.3, 0.1, 0.001, -0.002, 0.0)
MODELS = [
    ("none", ()),
    ("plumb_bob", D[:4]),
    ("plumb_bob", D),
    ("rational_polynomial", (0.4, -0.1, 0.001, -0.0005, 0.01, 0.7, -0.05, 0.02)),
    ("equidistant", (-0.02, 0.004, -0.002, 0.0005)),
    ("equidistant", (0.0, 0.0, 0.0, 0.0)),
]
POINTS = np.array([[0.3, -0.2, 1.5], [-1.0, 0.7, 4.0], [0.0, 0.1, 9.0]])

# As camera_calibration writes it.
ROS_YAML = """image_width: 640
image_height: 480
camera_name: narrow_stereo
camera_matrix:
  rows: 3
  cols: 3
  data: [500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0]
distortion_model: {model}
distortion_coefficients:
  rows: 1
  cols: {count}
  data: {values}
rectification_matrix:
  rows: 3
  cols: 3
  data: [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
projection_matrix:
  rows: 3
  cols: 4
  data: [480.0, 0.0, 310.0, 0.0, 0.0, 490.0, 235.0, 0.0, 0.0, 0.0, 1.0, 0.0]
"""


def ros_yaml(model: str, values: tuple[float, ...]) -> str:
    return ROS_YAML.format(model=model, count=len(values), values=list(values))


@pytest.mark.parametrize(("model", "values"), MODELS[1:])
def test_the_yaml_of_camera_calibration_is_read(model, values, tmp_path):
    (tmp_path / "ost.yaml").write_text(ros_yaml(model, values))
    expected = Camera(640, 480, 500.0, 510.0, 320.0, 240.0, model, values)
    assert read_camera_file(tmp_path / "ost.yaml", 640, 480) == expected


def test_a_yaml_by_other_tools_is_read(tmp_path):
    path = tmp_path / "camera.yaml"
    path.write_text(ros_yaml("fisheye", MODELS[4][1]))
    assert Camera.from_yaml(path).distortion_model == "equidistant"
    path.write_text(
        ros_yaml("plumb_bob", D).replace("distortion_model: plumb_bob\n", "")
    )  # as in the first years of ROS
    assert Camera.from_yaml(path).distortion == D
    path.write_text(ros_yaml("plumb_bob", (0.0,) * 5))
    assert Camera.from_yaml(path) == Camera(640, 480, 500.0, 510.0, 320.0, 240.0)


@pytest.mark.parametrize(("model", "values"), MODELS)
def test_yaml_files_come_back_the_same(model, values, tmp_path):
    camera = Camera(641, 479, 500.1, 510.2, 320.3, 240.4, model, values)
    camera.to_yaml(tmp_path / "camera.yaml")
    assert Camera.from_yaml(tmp_path / "camera.yaml") == camera
    assert [file.name for file in tmp_path.iterdir()] == ["camera.yaml"]
    written = yaml.safe_load((tmp_path / "camera.yaml").read_text())
    reference = yaml.safe_load(ros_yaml("plumb_bob", D))
    assert written.keys() == reference.keys()
    for name, matrix in written.items():
        if name.endswith(("matrix", "coefficients")):
            assert matrix["rows"] * matrix["cols"] == len(matrix["data"])
            assert matrix["rows"] == reference[name]["rows"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2",
        "just words",
        "image_width: 640\n",
        "image_width: 640\nimage_height: x\ncamera_matrix: {data: [1]}\n",
        ros_yaml("plumb_bob", (0.1,) * 5).replace("640", ".inf"),
        ros_yaml("plumb_bob", (0.1,) * 5).replace("640", "-640"),
        ros_yaml("plumb_bob", (0.1,) * 3),
        ros_yaml("kannala", (0.1,) * 4),
        ros_yaml("plumb_bob", (0.1,) * 5).replace("510.0", ".nan"),
        ros_yaml("plumb_bob", (0.1,) * 5).replace("data: [500.0, 0.0", "data: [500.0, 3.0"),
        ros_yaml("plumb_bob", (0.1,) * 5).replace("[0.1,", "[a,"),
        "distortion_coefficients:\n" + ros_yaml("plumb_bob", D).partition("distortion_coeff")[0],
        "%YAML:1.0\n---\nK: !!opencv-matrix\n  rows: 3\n",
    ],
)
def test_a_yaml_that_is_no_calibration_is_refused_by_name(text, tmp_path):
    (tmp_path / "camera.yaml").write_text(text)
    with pytest.raises(InputError, match=r"^[^\n]*camera\.yaml[^\n]*$"):
        Camera.from_yaml(tmp_path / "camera.yaml")


def test_a_missing_or_binary_camera_file_is_refused(tmp_path):
    for name in ("none.yaml", "none.txt"):
        with pytest.raises(InputError, match=name):
            read_camera_file(tmp_path / name, 640, 480)
    with pytest.raises(InputError, match=r"none\.yaml"):
        Camera.from_yaml(tmp_path / "none.yaml")
    for name in ("binary.yaml", "binary.txt"):
        (tmp_path / name).write_bytes(bytes(range(256)))
        with pytest.raises(InputError, match=name):
            read_camera_file(tmp_path / name, 640, 480)


def test_camera_info_of_raw_images_is_k_and_d():
    camera = Camera.from_camera_info(640, 480, K.ravel(), D, "plumb_bob", P.ravel())
    assert camera == Camera(640, 480, 500.0, 510.0, 320.0, 240.0, "plumb_bob", D)
    assert Camera.from_camera_info(640, 480, K, D) == camera


@pytest.mark.parametrize("model", ["", "plumb_bob", "rational_polynomial", "equidistant"])
@pytest.mark.parametrize("zeros", [(), (0.0,) * 4])
def test_camera_info_without_distortion_is_p_or_else_k(model, zeros):
    assert np.array_equal(Camera.from_camera_info(640, 480, K, zeros, model, P).matrix, P[:, :3])
    for nothing in ((), np.zeros(12)):
        camera = Camera.from_camera_info(640, 480, K, zeros, model, nothing)
        assert np.array_equal(camera.matrix, K)
        assert (camera.distortion_model == "equidistant") == (model == "equidistant" and len(zeros) == 4)


@pytest.mark.parametrize(("model", "values"), MODELS)
@pytest.mark.parametrize("binning", [(0, 0), (1, 1), (2, 2), (4, 1), (3, 7)])
@pytest.mark.parametrize("roi", [(0, 0, 0, 0), (0, 0, 640, 480), (101, 50, 301, 201)])
def test_a_region_is_cut_out_and_then_binned(model, values, binning, roi):
    full = Camera.from_camera_info(640, 480, K, values, model)
    camera = Camera.from_camera_info(640, 480, K, values, model, P * 0, binning, roi)
    image = np.zeros((480, 640))[roi[1] : roi[1] + roi[3] or None, roi[0] : roi[0] + roi[2] or None]
    steps = np.maximum(binning, 1)
    assert (camera.width, camera.height) == (image.shape[1] // steps[0], image.shape[0] // steps[1])
    np.testing.assert_allclose(camera.project(POINTS), (full.project(POINTS) - roi[:2]) / steps, atol=1e-9)
    rectified = Camera.from_camera_info(640, 480, K, (), "", P, binning, roi)
    expected = Camera.from_matrix(640, 480, P[:, :3]).project(POINTS)
    np.testing.assert_allclose(rectified.project(POINTS), (expected - roi[:2]) / steps, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"roi": (600, 0, 100, 100)}, "does not lie in"),
        ({"roi": (0, 5, 0, 0)}, "does not lie in"),
        ({"binning": (641, 1)}, "positive"),
        ({"k": K.T}, "skew"),
        ({"k": np.full(9, np.nan)}, "not a number"),
        ({"k": np.full(9, np.inf)}, "not a number"),
        ({"k": K + [[0, np.nan, 0], [0, 0, 0], [0, 0, 0]]}, "skew"),
        ({"k": np.zeros(9)}, "is the camera calibrated"),
        ({"p": np.full(12, np.nan), "distortion": ()}, "not a number"),
        ({"distortion": (0.1, np.nan, 0, 0)}, "not a number"),
        ({"distortion": (0.1,) * 12}, "coefficients"),
        ({"distortion_model": "fairground_mirror"}, "not known"),
    ],
)
def test_camera_info_that_cannot_be_is_refused(change, says):
    values = {"width": 640, "height": 480, "k": K, "distortion": D, "distortion_model": "", "p": P} | change
    with pytest.raises(InputError, match=says):
        Camera.from_camera_info(**values)


RECTIFIED_FROM_LIDAR = se3.from_quaternion(np.array([0.01, -0.07, -0.3]), np.array([0.5, -0.5, 0.5, 0.5]))
PROJECTION = np.array([[700.0, 0, 600, 45], [0, 700, 170, -0.3], [0, 0, 1, 0.005]])
RECTIFICATION = se3.from_quaternion(np.zeros(3), np.array([0.01, -0.02, 0.005, 1.0]))


def row(name: str, values: np.ndarray) -> str:
    return f"{name}: {' '.join(f'{value:.12e}' for value in values.ravel())}\n"


def odometry_text() -> str:
    others = "".join(row(f"P{number}", PROJECTION + number) for number in (0, 1))
    return others + row("P2", PROJECTION) + row("P3", PROJECTION - 1) + row("Tr", RECTIFIED_FROM_LIDAR[:3])


def object_text() -> str:
    lidar = np.linalg.inv(RECTIFICATION) @ RECTIFIED_FROM_LIDAR
    return row("P2", PROJECTION) + row("R0_rect", RECTIFICATION[:3, :3]) + row("Tr_velo_to_cam", lidar[:3])


def raw_text() -> str:
    size = row("S_rect_02", np.array([1242.0, 375.0]))
    return "calib_time: today\n" + size + row("P_rect_02", PROJECTION) + row("R_rect_00", RECTIFICATION[:3, :3])


@pytest.mark.parametrize(
    ("text", "read"), [(odometry_text(), read_odometry_calibration), (object_text(), read_object_calibration)]
)
def test_kitti_lidar_points_land_where_the_whole_projection_matrix_puts_them(text, read, tmp_path):
    """P2 moves points by its fourth column: the pinhole gets none of it, the transform all."""
    (tmp_path / "calib.txt").write_text(text)
    camera, camera_from_lidar = read(tmp_path / "calib.txt", 1242, 375)
    ahead = np.array([[12.0, 3.0, -1.0, 1], [40.0, -7.0, 2.0, 1]])
    expected = ahead @ RECTIFIED_FROM_LIDAR.T @ PROJECTION.T
    in_camera = (ahead @ camera_from_lidar.T)[:, :3]
    np.testing.assert_allclose(camera.project(in_camera), expected[:, :2] / expected[:, 2:], atol=1e-7)
    np.testing.assert_allclose(in_camera[:, 2], expected[:, 2])
    assert read_camera_file(tmp_path / "calib.txt", 1242, 375) == camera


def test_kitti_raw_calibration_is_read(tmp_path):
    (tmp_path / "calib_cam_to_cam.txt").write_text(raw_text())
    camera, camera_from_reference = read_raw_camera(tmp_path / "calib_cam_to_cam.txt")
    expected, camera_from_rectified = camera_from_projection(PROJECTION, 1242, 375)
    assert camera == expected == read_camera_file(tmp_path / "calib_cam_to_cam.txt", 9, 9)
    np.testing.assert_allclose(camera_from_reference, camera_from_rectified @ RECTIFICATION, atol=1e-9)


def test_the_intrinsic_matrix_of_7_scenes_is_read(tmp_path):
    np.savetxt(tmp_path / "camera-intrinsics.txt", K)
    camera = read_camera_file(tmp_path / "camera-intrinsics.txt", 640, 480)
    assert camera == Camera(640, 480, 500.0, 510.0, 320.0, 240.0)


def raw_camera(path: Path, width: int, height: int) -> tuple[Camera, np.ndarray]:
    return read_raw_camera(path)


@pytest.mark.parametrize("text", [odometry_text(), object_text(), raw_text(), "500 0 320\n0 510 240\n0 0 1\n"])
def test_truncated_and_garbled_calibrations_get_one_sentence(text, tmp_path):
    random = np.random.default_rng(5)
    broken = [text[:end] for end in range(0, len(text), 23)]
    for _ in range(60):
        letters = list(text)
        for place in random.integers(len(letters), size=3):
            letters[place] = chr(random.integers(32, 127))
        broken.append("".join(letters))
    path = tmp_path / "calib.txt"
    refused = 0
    for content in broken:
        path.write_text(content)
        for read in (read_camera_file, read_odometry_calibration, read_object_calibration, raw_camera):
            try:
                read(path, 1242, 375)
            except InputError as error:
                refused += 1
                assert "calib.txt" in str(error) and "\n" not in str(error)
    assert refused > len(broken)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (odometry_text().replace("P2:", "P9:"), "P_rect_02 or P2"),
        (row("P2", PROJECTION[:2]), "'P2' of 12 numbers"),
        (row("P2", PROJECTION * [[1], [1], [np.nan]]), "'P2' of 12 numbers"),
        (row("P2", PROJECTION * 2), "skew"),
        (row("P2", -PROJECTION), "positive"),
        (row("P_rect_02", PROJECTION), "'S_rect_02' of 2 numbers"),
        (raw_text().replace("1.242", "0.000"), "positive"),
        ("500 0 320 0 510 240 0 0", "no KITTI calibration"),
        ("500 0 320 0 nan 240 0 0 1", "not a number"),
        ("", "no KITTI calibration"),
    ],
)
def test_what_is_wrong_with_a_camera_file_is_said(text, says, tmp_path):
    (tmp_path / "calib.txt").write_text(text)
    with pytest.raises(InputError, match=rf"calib\.txt.*{says}"):
        read_camera_file(tmp_path / "calib.txt", 1242, 375)


@pytest.mark.parametrize("bad", [2 * RECTIFIED_FROM_LIDAR[:3], np.diag([1.0, 1, -1, 1])[:3], np.zeros((3, 4))])
def test_a_transform_that_is_no_rotation_is_refused(bad, tmp_path):
    (tmp_path / "calib.txt").write_text(row("P2", PROJECTION) + row("Tr", bad))
    with pytest.raises(InputError, match=r"'Tr' .*calib\.txt holds no rotation"):
        read_odometry_calibration(tmp_path / "calib.txt", 1242, 375)


@pytest.mark.skipif("EP2PLOC_DATA" not in os.environ, reason="EP2PLOC_DATA does not name a directory of real data")
def test_real_calibrations_are_read():
    data = Path(os.environ["EP2PLOC_DATA"])
    raw = read_camera_file(data / "kitti_raw/2011_09_26/calib_cam_to_cam.txt", 1242, 375)
    pair = sorted((data / "kitti_pairs/calib").glob("d*.txt"))[0]
    camera, camera_from_lidar = read_object_calibration(pair, 1242, 375)
    assert replace(raw, width=1242, height=375) == camera == read_camera_file(pair, 1242, 375)
    assert camera_from_lidar[:3, 3] == pytest.approx(
        [0.056, -0.075, -0.27], abs=0.02
    )  # below the LiDAR and ahead of it
    assert read_camera_file(data / "rgbd_kitchen/camera-intrinsics.txt", 640, 480).fx == 585
