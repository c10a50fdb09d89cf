"""The camera: projection against OpenCV and against the formulas, inverses everywhere, impossible values."""

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
# Images that reach to where the lens bends most, and beyond.
WIDE_BARREL = Camera(640, 480, 460.0, 450.0, 318.0, 243.0, "plumb_bob", (-0.3, 0.0, 0.0, 0.0))
TILTED_BARREL = Camera(640, 480, 320.0, 330.0, 318.0, 243.0, "plumb_bob", (-0.4, 0.2, 0.01, -0.02, -0.04))
PINCUSHION = Camera(640, 480, 300.0, 300.0, 318.0, 243.0, "plumb_bob", (1.5, 0.3, 0.001, 0.002, 0.0))
WIDE_RATIONAL = Camera(
    640, 480, 250.0, 250.0, 318.0, 243.0, "rational_polynomial", (8.0, 4.0, 0.001, 0.001, 0.5, 8.3, 6.0, 1.2)
)
WIDE_FISHEYE = Camera(640, 480, 150.0, 152.0, 318.0, 243.0, "equidistant", (-0.02, 0.004, -0.002, 0.0005))
NARROW_FISHEYE = Camera(640, 480, 240.0, 240.0, 318.0, 243.0, "equidistant", (-0.08, -0.01, 0.0, 0.0))
STRONG = [WIDE_BARREL, TILTED_BARREL, PINCUSHION, WIDE_RATIONAL, WIDE_FISHEYE, NARROW_FISHEYE]

# The usual size of each coefficient, and of extreme ones.
USUAL = {
    "plumb_bob": (0.3, 0.15, 0.003, 0.003, 0.05),
    "rational_polynomial": (0.5, 0.3, 0.003, 0.003, 0.1, 0.5, 0.3, 0.1),
    "equidistant": (0.05, 0.02, 0.01, 0.003),
}
EXTREME = {
    "plumb_bob": (1.0, 1.0, 0.05, 0.05, 0.5),
    "rational_polynomial": (3.0, 3.0, 0.03, 0.03, 1.0, 3.0, 3.0, 1.0),
    "equidistant": (0.5, 0.3, 0.2, 0.1),
}


def random_cameras(sizes: dict[str, tuple[float, ...]]) -> list[Camera]:
    random = np.random.default_rng(7)
    cameras = []
    for model, size in sizes.items():
        for _ in range(30):
            focal, centre = random.uniform(200, 2000, 2), random.uniform([200, 100], [1000, 500])
            coefficients = random.uniform(-1, 1, len(size)) * size
            cameras.append(Camera(1200, 600, *focal, *centre, model, tuple(coefficients)))
    return cameras


def directions(camera: Camera, share: float = 0.999) -> np.ndarray:
    """Points all over what the lens sees, up to a share of its outermost angle, in metres, at many distances."""
    random = np.random.default_rng(3)
    limit = outermost_angle(camera) * share if camera.lens.limit < np.inf else np.radians(89)
    rays = rays_at(random.uniform(0, limit, 500), random.uniform(0, 2 * np.pi, 500))
    return rays * random.uniform(0.1, 100, (500, 1))


@pytest.fixture
def points() -> np.ndarray:
    random = np.random.default_rng(0)
    depth = random.uniform(1, 60, 500)
    return np.stack([random.uniform(-0.55, 0.55, 500) * depth, random.uniform(-0.4, 0.4, 500) * depth, depth], 1)


def outermost_angle(camera: Camera) -> float:
    """Radians off the optical axis."""
    limit = camera.lens.limit
    return limit if camera.distortion_model == "equidistant" else float(np.arctan(limit))


def rays_at(angle: np.ndarray | float, around: np.ndarray) -> np.ndarray:
    """Unit rays `(N, 3)` off the optical axis by `angle`, in the direction `around` in the image, both radians."""
    return np.stack([np.sin(angle) * np.cos(around), np.sin(angle) * np.sin(around), np.cos(angle) + 0 * around], 1)


def pixel_grid(camera: Camera) -> np.ndarray:
    """Every fifth pixel, the borders and corners among them."""
    columns, rows = np.meshgrid(np.linspace(0, camera.width - 1, 129), np.linspace(0, camera.height - 1, 97))
    return np.stack([columns.ravel(), rows.ravel()], 1)


def by_formula(camera: Camera, points: np.ndarray) -> np.ndarray:
    """The lens models as ROS and OpenCV document them, written out; the angle of equidistant goes beyond 90 degrees."""
    if camera.distortion_model == "equidistant":
        radius = np.hypot(points[:, 0], points[:, 1])
        angle = np.arctan2(radius, points[:, 2])
        k = camera.distortion
        bent = angle * (1 + k[0] * angle**2 + k[1] * angle**4 + k[2] * angle**6 + k[3] * angle**8)
        x, y = points[:, 0] * bent / radius, points[:, 1] * bent / radius
    else:
        x, y = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
        k1, k2, p1, p2, k3, k4, k5, k6 = (*camera.distortion, *[0.0] * 8)[:8]
        r2 = x**2 + y**2
        scale = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
        x, y = (
            x * scale + 2 * p1 * x * y + p2 * (r2 + 2 * x**2),
            y * scale + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y,
        )
    return np.stack([camera.fx * x + camera.cx, camera.fy * y + camera.cy], 1)


def by_opencv(camera: Camera, points: np.ndarray) -> np.ndarray:
    project = cv2.fisheye.projectPoints if camera.distortion_model == "equidistant" else cv2.projectPoints
    zero, coefficients = np.zeros(3), np.array(camera.distortion)
    return project(points.reshape(-1, 1, 3), zero, zero, camera.matrix, coefficients)[0].reshape(-1, 2)


@pytest.mark.parametrize("sizes", [USUAL, EXTREME], ids=["usual", "extreme"])
def test_projection_agrees_with_opencv_on_random_cameras(sizes):
    for camera in [*CAMERAS, *STRONG, *random_cameras(sizes)]:
        points = directions(camera)
        pixels = camera.project(points)
        assert np.isfinite(pixels).all(), camera
        np.testing.assert_allclose(pixels, by_formula(camera, points), rtol=1e-9, atol=1e-7)
        front = points[:, 2] > 0  # OpenCV's fisheye knows no others
        np.testing.assert_allclose(pixels[front], by_opencv(camera, points[front]), rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("sizes", [USUAL, EXTREME], ids=["usual", "extreme"])
def test_unproject_undoes_project_on_random_cameras(sizes):
    for camera in [*CAMERAS, *STRONG, *random_cameras(sizes)]:
        points = directions(camera)
        pixels = camera.project(points)
        rays = camera.unproject(pixels)
        np.testing.assert_allclose(np.linalg.norm(rays, axis=1), 1, rtol=1e-12)
        np.testing.assert_allclose(camera.project(rays), pixels, rtol=1e-8, atol=1e-6)
        inner = directions(camera, 0.9)  # at the limit itself the ray hangs on the last digits of the pixel
        units = inner / np.linalg.norm(inner, axis=1, keepdims=True)
        np.testing.assert_allclose(camera.unproject(camera.project(inner)), units, atol=1e-6)


@pytest.mark.parametrize("camera", CAMERAS + STRONG)
def test_every_pixel_has_a_ray_that_comes_back_or_none_at_all(camera):
    pixels = pixel_grid(camera)
    rays = camera.unproject(pixels)
    seen = np.isfinite(rays).all(1)
    assert np.array_equal(seen, np.isfinite(rays).any(1))
    assert np.abs(camera.project(rays[seen]) - pixels[seen]).max() < 1e-6
    # The lens is one to one up to its limit, so what it sees lies within the curve of its outermost rays.
    outermost = rays_at(outermost_angle(camera) * (1 - 1e-7), np.linspace(0, 2 * np.pi, 3600))
    curve = camera.project(outermost).astype(np.float32)
    depth_inside = np.array([cv2.pointPolygonTest(curve, pixel, True) for pixel in pixels])
    assert seen[depth_inside > 0.05].all()
    assert not seen[depth_inside < -0.05].any()


def test_among_the_strong_lenses_some_leave_corners_unseen_and_one_looks_behind():
    """Else the test above would say little."""
    for camera in (WIDE_BARREL, TILTED_BARREL, NARROW_FISHEYE):
        assert 0.5 < np.isfinite(camera.unproject(pixel_grid(camera))).all(1).mean() < 0.99
    assert WIDE_FISHEYE.unproject(np.array([[0.0, 0.0]]))[0, 2] < -0.5


@pytest.mark.parametrize(
    ("camera", "limit"),
    [
        (PINHOLE, np.inf),
        (WIDE_BARREL, np.sqrt(1 / 0.9)),  # d(r - 0.3 r^3)/dr = 0
        (Camera(640, 480, 500.0, 500.0, 320.0, 240.0, "plumb_bob", (0.0, 0.0, 0.003, 0.004)), 1 / (6 * 0.005)),
        (Camera(9, 9, 9.0, 9.0, 4.0, 4.0, "rational_polynomial", (0.0,) * 5 + (-0.25, 0.0, 0.0)), 2.0),  # a pole
        (Camera(9, 9, 9.0, 9.0, 4.0, 4.0, "rational_polynomial", (0.0,) * 5 + (0.25, 0.0, 0.0)), 2.0),  # turns back
        (Camera(9, 9, 9.0, 9.0, 4.0, 4.0, "equidistant", (0.0,) * 4), np.pi),
        (Camera(9, 9, 9.0, 9.0, 4.0, 4.0, "equidistant", (-0.1, 0.0, 0.0, 0.0)), np.sqrt(1 / 0.3)),
    ],
)
def test_the_limit_is_where_the_lens_turns_back(camera, limit):
    assert camera.lens.limit == pytest.approx(limit, rel=1e-9)


def test_the_image_never_folds_within_the_limit():
    """Outward and onward around the axis keep their sense in the image, by finite differences."""
    step = 1e-6
    for camera in [*STRONG, *random_cameras(EXTREME)]:
        shares, around = np.meshgrid(np.linspace(0.02, 0.999, 30), np.linspace(0, 2 * np.pi, 60))
        angle, around = outermost_angle(camera) * shares.ravel(), around.ravel()
        outward = camera.project(rays_at(angle + step, around)) - camera.project(rays_at(angle - step, around))
        onward = camera.project(rays_at(angle, around + step)) - camera.project(rays_at(angle, around - step))
        assert (np.linalg.det(np.stack([outward, onward], -1)) > 0).all(), camera


def test_what_the_lens_cannot_see_has_no_pixel():
    nowhere = np.array([[0.1, 0, -1.0], [0.1, 0, 0], [0, 0, 0], [np.nan, 0, 1], [0, np.inf, 1]])
    assert np.isnan(PINHOLE.project(nowhere)).all()
    folded = np.array([[1.4, 0.0, 1.0]])
    u, v = by_opencv(WIDE_BARREL, folded)[0]
    assert 0 < u < 640 and 0 < v < 480
    assert np.isnan(WIDE_BARREL.project(folded)).all()
    behind = np.array([[0.5, 0.2, -1.0]])
    np.testing.assert_allclose(WIDE_FISHEYE.project(behind), by_formula(WIDE_FISHEYE, behind))
    assert np.isnan(WIDE_FISHEYE.project(np.array([[0, 0, -1.0], [0, 0, 0]]))).all()
    assert np.isnan(NARROW_FISHEYE.project(behind)).all()


def test_the_optical_axis_meets_the_principal_point():
    for camera in CAMERAS + STRONG:
        assert camera.project(np.array([[0, 0, 3.0]])).tolist() == [[camera.cx, camera.cy]]
        assert camera.unproject(np.array([[camera.cx, camera.cy]])).tolist() == [[0, 0, 1]]


def test_unproject_is_right_where_fixed_point_iteration_is_not():
    """x <- distorted / f(|x|^2), as it is often done, swings away from a strong pincushion's solution."""
    camera = Camera(640, 480, 200.0, 200.0, 320.0, 240.0, "plumb_bob", (1.5, 0.0, 0.0, 0.0))
    target = (np.array([[639.0, 479.0]]) - [320, 240]) / 200
    fixed = target
    for _ in range(100):
        fixed = target / (1 + 1.5 * (fixed**2).sum())
    assert np.abs(by_formula(camera, np.c_[fixed, 1.0]) - [639, 479]).max() > 10
    np.testing.assert_allclose(by_formula(camera, camera.unproject([[639.0, 479.0]])), [[639, 479]], atol=1e-9)


def test_unproject_is_right_where_opencv_gives_up():
    corner = np.array([[[0.0, 0.0]]])
    rays = cv2.fisheye.undistortPoints(corner, WIDE_FISHEYE.matrix, np.array(WIDE_FISHEYE.distortion))
    assert np.abs(by_formula(WIDE_FISHEYE, np.append(rays[0], [[1.0]], 1))).max() > 10
    np.testing.assert_allclose(by_formula(WIDE_FISHEYE, WIDE_FISHEYE.unproject(corner[0])), corner[0], atol=1e-9)


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
    assert np.allclose(PINHOLE.resize(160, 120).project(ray), [[column, row]])


def test_resizing_there_and_back_changes_nothing():
    back = PINHOLE.resize(317, 95).resize(640, 480)
    assert np.allclose(back.intrinsics, PINHOLE.intrinsics)


def test_a_cropped_camera_sees_what_a_cropped_image_shows():
    points = np.array([[0.1, 0.05, 1.0], [-0.2, 0.1, 2.0]])
    for camera in CAMERAS:
        part = camera.crop(100, 50, 400, 300)
        assert (part.width, part.height) == (400, 300)
        np.testing.assert_allclose(part.project(points), camera.project(points) - [100, 50])


@pytest.mark.parametrize("region", [(-1, 0, 10, 10), (0, -1, 10, 10), (0, 0, 641, 10), (600, 0, 41, 1), (0, 0, 0, 10)])
def test_a_region_outside_the_image_is_refused(region):
    with pytest.raises(InputError, match=r"does not lie in .* 640x480"):
        PINHOLE.crop(*region)


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


@pytest.mark.parametrize("camera", [PLUMB_BOB, RATIONAL, FISHEYE], ids=lambda camera: camera.distortion_model)
def test_undistorted_images_are_those_of_opencv(camera):
    rows, columns = np.indices((480, 640))
    image = np.round(128 + 60 * np.sin(columns / 40) + 60 * np.cos(rows / 30)).astype(np.uint8)
    lens = (camera.matrix, np.array(camera.distortion))
    fisheye = camera.distortion_model == "equidistant"
    expected = cv2.fisheye.undistortImage(image, *lens, Knew=camera.matrix) if fisheye else cv2.undistort(image, *lens)
    assert np.abs(camera.undistort(image)[0].astype(int) - expected).max() <= 1


def test_an_undistorted_image_is_black_where_the_lens_does_not_look():
    """Not a mirror image of what lies farther in, which is what the formula beyond the limit gives."""
    blind = Camera(640, 480, 260.0, 260.0, 320.0, 240.0, "plumb_bob", (-0.3, 0.0, 0.0, 0.0))
    flat, _ = blind.undistort(np.full((480, 640), 200, np.uint8))
    rows, columns = np.indices((480, 640))
    radius = np.hypot((columns - 320) / 260, (rows - 240) / 260)
    limit = np.sqrt(1 / 0.9)
    assert (flat[radius > limit + 0.01] == 0).all() and (radius > limit + 0.01).mean() > 0.1
    assert (flat[radius < limit - 0.01] == 200).all()


def test_an_image_of_another_size_is_refused_with_both_sizes():
    with pytest.raises(InputError, match=r"320x240.*640x480"):
        PLUMB_BOB.undistort(np.zeros((240, 320, 3), np.uint8))


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
