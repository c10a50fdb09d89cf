"""The overlay's colours at places that OpenCV projects, and the command that draws it."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ep2ploc_core import se3
from ep2ploc_core.camera import Camera
from ep2ploc_core.cli import main
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.point_map import MapInfo, MapPoints, write_map
from ep2ploc_core.visualization.overlay import REMOVED, depth_colors, draw_overlay, write_image

PINHOLE = Camera(width=640, height=480, fx=500.0, fy=510.0, cx=310.0, cy=250.0)
LENS = Camera(640, 480, 500.0, 510.0, 310.0, 250.0, "plumb_bob", (-0.2, 0.05, 0.001, -0.002, 0.0))
UTM = np.array([4.5e5, 5.4e6, 120.0])
MAP_FROM_CAMERA = se3.from_quaternion(UTM + [3.0, -2.0, 1.5], np.array([-0.5, 0.48, -0.52, 0.5]))


def map_points(points_camera: np.ndarray) -> MapPoints:
    """Points of a map with origin UTM that lie at these places before the camera."""
    xyz = points_camera @ MAP_FROM_CAMERA[:3, :3].T + MAP_FROM_CAMERA[:3, 3] - UTM
    count = len(xyz)
    return MapPoints(xyz.astype(np.float32), np.zeros((count, 6), np.float32), np.zeros((count, 2), np.uint16))


def overlay(image: np.ndarray, camera: Camera, points_camera: np.ndarray, spacing: float, removed: bool = False):
    return draw_overlay(image, camera, map_points(points_camera), UTM, MAP_FROM_CAMERA, spacing, removed)


def pixels_of(points_camera: np.ndarray, camera: Camera) -> np.ndarray:
    """Columns and rows, by OpenCV."""
    zero, distortion = np.zeros(3), np.array(camera.distortion)
    pixels, _ = cv2.projectPoints(points_camera.reshape(-1, 1, 3), zero, zero, camera.matrix, distortion)
    return pixels.reshape(-1, 2).round().astype(int)


def scattered() -> np.ndarray:
    """Points of many depths, far apart in the image and away from the legend."""
    column, row = np.meshgrid(np.arange(30, 620, 45), np.arange(110, 460, 45))
    depth = np.random.default_rng(0).uniform(1, 14, column.size)
    x, y = (column.ravel() - 310) / 500, (row.ravel() - 250) / 510
    return np.c_[x * depth, y * depth, depth]


def test_every_point_has_the_colour_of_its_depth_where_opencv_projects_it() -> None:
    points = scattered()
    drawn = overlay(np.zeros((480, 640, 3), np.uint8), PINHOLE, points, 0.05)
    column, row = pixels_of(points, PINHOLE).T
    np.testing.assert_array_equal(drawn[row, column], depth_colors(points[:, 2], 0.05))
    assert not drawn[row + 5, column].any() and not drawn[row, column - 5].any()  # marks are small


def test_with_a_bent_lens_marks_lie_on_what_the_image_shows_there() -> None:
    points = scattered()[14:-14]
    image = np.zeros((480, 640, 3), np.uint8)
    for place in pixels_of(points, LENS).tolist():
        cv2.circle(image, place, 5, (255, 255, 255), -1)
    drawn = overlay(image, LENS, points, 0.05)
    column, row = pixels_of(points, PINHOLE).T
    np.testing.assert_array_equal(drawn[row, column], depth_colors(points[:, 2], 0.05))
    assert (np.abs(pixels_of(points, LENS) - pixels_of(points, PINHOLE)).max(1) > 8).sum() > 5  # the lens bends
    for x, y in ((2, 2), (-2, 2), (2, -2), (-2, -2)):
        assert (drawn[row + y, column + x] > 150).all()


def test_the_nearer_of_two_points_is_drawn_over_the_farther() -> None:
    points = np.array([[0.0, 0, 10], [0, 0, 10.2], [0.021, 0, 10.1]])
    for order in ([0, 1, 2], [2, 1, 0]):
        drawn = overlay(np.zeros((480, 640, 3), np.uint8), PINHOLE, points[order], 0.05)
        np.testing.assert_array_equal(drawn[250, 310], depth_colors(np.array([10.0]), 0.05)[0])


def test_hidden_points_are_marked_only_when_asked_for_and_unlike_any_depth() -> None:
    x, y = np.meshgrid(np.arange(-4, 4, 0.2), np.arange(-2, 2, 0.2))
    wall = np.c_[x.ravel(), y.ravel(), np.full(x.size, 10.0)]
    hidden = (wall[wall[:, 1] > -1] + [0.1, 0.103, 0]) * 2  # halfway between the wall's points, twice as far
    column, row = pixels_of(hidden[np.abs(hidden[:, 0]) < 5], PINHOLE).T
    black = np.zeros((480, 640, 3), np.uint8)
    marked = overlay(black, PINHOLE, np.r_[wall, hidden], 0.2, removed=True)
    plain = overlay(black, PINHOLE, np.r_[wall, hidden], 0.2)
    inner = row < 340
    assert (marked[row, column][inner] == REMOVED).all() and not plain[row, column][inner].any()
    depths = depth_colors(np.linspace(0.5, 100, 500), 0.2).astype(int)
    assert np.abs(depths - REMOVED).sum(1).min() > 100


def test_points_at_the_edge_of_a_thing_are_larger() -> None:
    y, x = (axis.ravel() for axis in np.meshgrid(np.arange(-1, 1, 0.1), np.arange(-0.5, 0.51, 0.1), indexing="ij"))
    board = np.c_[x, y, np.full(x.size, 5.0)]
    back_y, back_x = (axis.ravel() for axis in np.meshgrid(np.arange(-3, 3, 0.1), np.arange(-3, 3, 0.1)))
    drawn = overlay(
        np.zeros((480, 640, 3), np.uint8), PINHOLE, np.r_[board, np.c_[back_x, back_y, np.full(back_x.size, 20.0)]], 0.1
    )
    near = (drawn == depth_colors(np.array([5.0]), 0.1)[0]).all(2)
    column, row = pixels_of(np.array([[0.5, 0.0, 5.0], [0.2, 0.0, 5.0]]), PINHOLE).T
    size = [near[r, c - 4 : c + 5].sum() for r, c in zip(row, column, strict=True)]
    assert size[0] > size[1] > 0


def test_nothing_before_the_camera_is_told() -> None:
    with pytest.raises(InputError, match=r"No point of the map lies in front of a camera at 450003\.0"):
        overlay(np.zeros((480, 640, 3), np.uint8), PINHOLE, np.array([[0.0, 0, -5]]), 0.2)


def test_pictures_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    write_image(picture, tmp_path / "new" / "a.png")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "new" / "a.png"))[..., ::-1], picture)
    with pytest.raises(InputError, match=r"\.png or \.jpg"):
        write_image(picture, tmp_path / "a.nothing")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_image(picture, tmp_path / "file" / "a.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "new"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map of scattered points, an image, and its camera."""
    path = tmp_path_factory.mktemp("overlay")
    write_map(path / "map", map_points(scattered()), MapInfo(voxel_size=0.05, origin=UTM.tolist()))
    write_image(np.full((480, 640, 3), 90, np.uint8), path / "image.png")
    PINHOLE.to_yaml(path / "camera.yaml")
    PINHOLE.resize(320, 240).to_yaml(path / "small.yaml")
    return path


def run(monkeypatch: pytest.MonkeyPatch, site: Path, **changes: str) -> int:
    pose = [*MAP_FROM_CAMERA[:3, 3], *se3.to_quaternion(MAP_FROM_CAMERA)]
    options = {"pose": ",".join(map(str, pose)), "camera": "camera.yaml", "out": "out.png", **changes}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    monkeypatch.chdir(site)
    monkeypatch.setattr(sys, "argv", ["ep2ploc", "overlay", "map", "image.png", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command_draws_the_map(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, site) == 0
    drawn = cv2.imread(str(site / "out.png"))[..., ::-1]
    points = scattered()
    column, row = pixels_of(points, PINHOLE).T
    expected = depth_colors(points[:, 2], 0.05).astype(int)
    assert np.abs(drawn[row, column] - expected).max() <= 8  # depths change in the map's single precision


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"camera": "small.yaml"}, "calibration is for 320x240"),
        ({"camera": "none.yaml"}, "does not exist"),
        ({"pose": "1,2,3"}, "cannot be read"),
        ({"pose": "0,0,0,0,0,0,1"}, "No point of the map lies in front"),
        ({"out": "image.png/out.png"}, "image.png"),
        ({"out": "out.nothing"}, ".png or .jpg"),
    ],
)
def test_what_the_command_cannot_do_is_told_in_one_sentence(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: dict[str, str], says: str
) -> None:
    assert run(monkeypatch, site, **changes) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert message.startswith("ep2ploc: ") and says in message
