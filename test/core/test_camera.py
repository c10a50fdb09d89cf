"""The camera: projection against OpenCV and against the formulas, round trips, and calibrations that cannot be."""

import cv2
import numpy as np
import pytest
import torch

from ep2ploc_core.camera import Camera, project_pinhole
from ep2ploc_core.errors import InputError

PINHOLE = Camera(640, 480, 500.0, 510.0, 315.5, 242.25)
PLUMB_BOB = Camera(640, 480, 500.0, 510.0, 315.5, 242.25, "plumb_bob", (-0.3, 0.12, 0.001, -0.002, -0.02))
RATIONAL = Camera(
    640, 480, 500.0, 510.0, 315.5, 242.25, "rational_polynomial", (0.4, -0.1, 0.001, -0.0005, 0.01, 0.7, -0.05, 0.02)
)
FISHEYE = Camera(640, 480, 300.0, 305.0, 320.0, 240.0, "equidistant", (-0.02, 0.004, -0.002, 0.0005))
CAMERAS = [PINHOLE, PLUMB_BOB, RATIONAL, FISHEYE]


@pytest.fixture
def points() -> np.ndarray:
    random = np.random.default_rng(0)
    depth = random.uniform(1, 60, 500)
    return np.stack([random.uniform(-0.55, 0.55, 500) * depth, random.uniform(-0.4, 0.4, 500) * depth, depth], 1)


def by_formula(camera: Camera, points: np.ndarray) -> np.ndarray:
    """The lens models as ROS and OpenCV document them, written out."""
    x, y = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
    radius = np.hypot(x, y)
    if camera.distortion_model == "equidistant":
        angle = np.arctan(radius)
        k = camera.distortion
        bent = angle * (1 + k[0] * angle**2 + k[1] * angle**4 + k[2] * angle**6 + k[3] * angle**8)
        x, y = x * bent / radius, y * bent / radius
    else:
        k1, k2, p1, p2, k3, k4, k5, k6 = (*camera.distortion, *[0.0] * 8)[:8]
        r2 = radius**2
        scale = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
        x, y = (
            x * scale + 2 * p1 * x * y + p2 * (r2 + 2 * x**2),
            y * scale + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y,
        )
    return np.stack([camera.fx * x + camera.cx, camera.fy * y + camera.cy], 1)


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: camera.distortion_model)
def test_projection_follows_the_formula_of_its_lens(camera, points):
    assert np.allclose(camera.project(points), by_formula(camera, points), atol=1e-8)


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: camera.distortion_model)
def test_unproject_undoes_project(camera, points):
    rays = camera.unproject(camera.project(points))
    assert np.allclose(rays, points / points[:, 2:], atol=1e-6)


def test_the_torch_pinhole_agrees_with_opencv(points):
    pixels, depth = project_pinhole(torch.tensor(PINHOLE.intrinsics), torch.tensor(points))
    expected, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), PINHOLE.matrix, None)
    assert np.allclose(pixels.numpy(), expected.reshape(-1, 2), atol=1e-9)
    assert np.array_equal(depth.numpy(), points[:, 2])


def test_the_torch_pinhole_takes_batches_and_float32(points):
    intrinsics = torch.stack([PINHOLE.intrinsics_tensor(), 2 * PINHOLE.intrinsics_tensor()])
    pixels, _ = project_pinhole(intrinsics, torch.tensor(points, dtype=torch.float32).expand(2, -1, 3))
    assert pixels.shape == (2, 500, 2)
    assert torch.allclose(pixels[1], 2 * pixels[0], rtol=1e-5)


@pytest.mark.parametrize("depth", [0.0, -5.0, 1e-9])
def test_points_not_in_front_give_finite_pixels_and_gradients(depth):
    points = torch.tensor([[1.0, 2.0, depth]], requires_grad=True)
    pixels, _ = project_pinhole(PINHOLE.intrinsics_tensor(), points)
    pixels.sum().backward()
    assert torch.isfinite(pixels).all()
    assert torch.isfinite(points.grad).all()


def test_a_resized_camera_sees_what_a_resized_image_shows():
    image = np.zeros((480, 640), np.float32)
    image[200:204, 400:404] = 1  # its middle is the pixel position (401.5, 201.5)
    small = cv2.resize(image, (160, 120), interpolation=cv2.INTER_AREA)
    row, column = np.unravel_index(small.argmax(), small.shape)
    ray = PINHOLE.unproject(np.array([[401.5, 201.5]]))
    assert np.allclose(PINHOLE.resized(160, 120).project(ray), [[column, row]])


def test_resizing_there_and_back_changes_nothing():
    back = PINHOLE.resized(317, 95).resized(640, 480)
    assert np.allclose(back.intrinsics, PINHOLE.intrinsics)


@pytest.mark.parametrize("camera", [PLUMB_BOB, RATIONAL, FISHEYE], ids=lambda camera: camera.distortion_model)
def test_undistorted_images_show_points_where_the_pinhole_puts_them(camera):
    points = np.array([[-0.3, -0.2, 1], [0.3, 0.15, 1], [0.0, 0.25, 1], [0.25, -0.2, 1]])
    image = np.zeros((480, 640), np.uint8)
    for u, v in camera.project(points):
        cv2.circle(image, (round(16 * u), round(16 * v)), 16 * 3, 255, -1, shift=4)
    flat, pinhole = camera.undistort(image)
    assert pinhole.distortion_model == "none"
    for u, v in pinhole.project(points):
        window = flat[round(v) - 8 : round(v) + 9, round(u) - 8 : round(u) + 9].astype(float)
        rows, columns = np.mgrid[round(v) - 8 : round(v) + 9, round(u) - 8 : round(u) + 9]
        middle = np.array([(window * columns).sum(), (window * rows).sum()]) / window.sum()
        assert np.abs(middle - [u, v]).max() < 0.5


def test_an_image_of_another_size_is_refused_with_both_sizes():
    with pytest.raises(InputError, match=r"320x240.*640x480"):
        PLUMB_BOB.undistort(np.zeros((240, 320, 3), np.uint8))


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: camera.distortion_model)
def test_yaml_files_come_back_the_same(camera, tmp_path):
    camera.to_yaml(tmp_path / "camera.yaml")
    assert Camera.from_yaml(tmp_path / "camera.yaml") == camera


def test_ros_camera_info_without_distortion_is_a_pinhole():
    nine = [500.0, 0, 320, 0, 500, 240, 0, 0, 1]
    assert Camera.from_matrix(640, 480, nine, "plumb_bob", (0.0,) * 5).distortion_model == "none"
    assert Camera.from_matrix(640, 480, nine, "", ()).matrix.ravel().tolist() == nine


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fx": 0.0}, "positive"),
        ({"fy": -500.0}, "positive"),
        ({"width": 0}, "positive"),
        ({"cx": float("nan")}, "not a number"),
        ({"fx": float("inf")}, "not a number"),
        ({"distortion_model": "plumb_bob", "distortion": (0.1, float("nan"), 0, 0, 0)}, "not a number"),
        ({"distortion_model": "plumb_bob", "distortion": (0.1, 0.2)}, "coefficients"),
        ({"distortion_model": "kannala", "distortion": (0.1,)}, "not known"),
    ],
)
def test_an_impossible_calibration_is_refused(change, says):
    values = {"width": 640, "height": 480, "fx": 500.0, "fy": 500.0, "cx": 320.0, "cy": 240.0, **change}
    with pytest.raises(InputError, match=says):
        Camera(**values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2",
        "just words",
        "image_width: 640\n",
        "image_width: 640\nimage_height: x\ncamera_matrix: {data: [1]}\n",
    ],
)
def test_a_file_that_is_no_calibration_is_refused_by_name(text, tmp_path):
    (tmp_path / "camera.yaml").write_text(text)
    with pytest.raises(InputError, match=r"camera\.yaml"):
        Camera.from_yaml(tmp_path / "camera.yaml")


def test_a_missing_or_binary_camera_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml"):
        Camera.from_yaml(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match=r"binary\.yaml"):
        Camera.from_yaml(tmp_path / "binary.yaml")
