"""Alignment by information distance and by depth edges, in rooms whose images and answers are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from painted_world import level_pose
from textured_world import TexturedWorld

from ep2ploc_core import se3
from ep2ploc_core.baselines.alignment import AlignmentFinder, Problem
from ep2ploc_core.baselines.depth_edges import EDGE_PLAN, DepthEdges, edge_angles
from ep2ploc_core.baselines.nid import NID_PLAN, InformationDistance, local_contrast, nid
from ep2ploc_core.camera import Camera
from ep2ploc_core.errors import InputError
from ep2ploc_core.grey_image import grey_image
from ep2ploc_core.map.point_map import MapInfo, PointMap, write_map
from ep2ploc_core.map.unit import MapInUnits, scaled_pose
from ep2ploc_core.map.visible_points import VisiblePoints, visible_points

CAMERA = Camera(width=640, height=320, fx=360.0, fy=360.0, cx=319.5, cy=159.5)
LENS = Camera(640, 320, 360.0, 360.0, 319.5, 159.5, "plumb_bob", (-0.15, 0.02, 0.001, -0.001, 0.0))
ROOM = np.array([[0.0, 0, 0], [16, 10, 5]])
CASES = [
    np.array([[7, 1, 0], [8, 2.5, 2.4]]),
    np.array([[9, 4.5, 0], [9.6, 5.1, 3]]),
    np.array([[6.5, 6.5, 0], [7.5, 8, 1.6]]),
    np.array([[11, 7, 0], [12, 9, 3.2]]),
    np.array([[10.5, 2.2, 0], [11.5, 3.2, 1.2]]),
]
WORLD = TexturedWorld([ROOM], CASES)
PLAIN = TexturedWorld([ROOM], CASES, sizes=(3.0,), seed=2)  # hardly a pattern: edges are those of things
TRUTH = level_pose((2.0, 5.0, 1.5), 4.0, 2.0)
OFF = np.array([0.5, 0.1, -0.4, 0.01, 0.06, -0.01])


def start(share: float = 1.0, unit: float = 1.0) -> np.ndarray:
    error = share * OFF * np.array([unit] * 3 + [1] * 3)
    return scaled_pose(TRUTH, unit) @ se3.exp(torch.from_numpy(error)).numpy()


def small(world: TexturedWorld, path: Path, step: float = 0.2) -> PointMap:
    return write_map(path, world.map_points(step), MapInfo(voxel_size=0.2))


@pytest.fixture(scope="module")
def textured(tmp_path_factory: pytest.TempPathFactory) -> tuple[PointMap, np.ndarray]:
    picture = WORLD.render(CAMERA.matrix, (CAMERA.width, CAMERA.height), TRUTH)[0]
    return small(WORLD, tmp_path_factory.mktemp("textured") / "map", 0.15), picture


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[PointMap, np.ndarray]:
    picture = PLAIN.render(CAMERA.matrix, (CAMERA.width, CAMERA.height), TRUTH)[0]
    return small(PLAIN, tmp_path_factory.mktemp("plain") / "map", 0.1), picture


METHODS = {"nid": (InformationDistance(), NID_PLAN), "edges": (DepthEdges(), EDGE_PLAN)}


def errors(pose: np.ndarray | None, truth: np.ndarray) -> tuple[float, float]:
    assert pose is not None
    metres, radians = se3.pose_error(pose, truth)
    return metres, float(np.degrees(radians))


def problem_at(name: str, place: tuple[PointMap, np.ndarray], pose: np.ndarray) -> tuple[Problem, np.ndarray]:
    """What is seen from a pose, and that pose."""
    point_map, picture = place
    grey, camera = grey_image(picture, CAMERA)
    units = MapInUnits(point_map)
    problem = METHODS[name][0].problem(grey, camera, visible_points(units, pose, camera), units.voxel_size, 4000)
    assert isinstance(problem, Problem)
    return problem, pose


def cost(problem: Problem, seen_from: np.ndarray, pose: np.ndarray) -> float:
    """By a projection of its own."""
    points = np.c_[problem.xyz + seen_from[:3, 3], np.ones(len(problem.xyz))] @ np.linalg.inv(pose).T
    pixels = points[:, :2] / points[:, 2:3] * CAMERA.intrinsics[:2] + CAMERA.intrinsics[2:]
    inside = (points[:, 2] > 0.3) & (pixels >= 0).all(1) & (pixels <= [CAMERA.width - 1, CAMERA.height - 1]).all(1)
    return problem.cost(pixels.astype(np.float32), inside)


@pytest.mark.parametrize("name", METHODS)
def test_the_cost_is_least_at_the_truth(name: str, textured: tuple, plain: tuple) -> None:
    """Along and about every axis, from both sides, and anywhere in the box of the prior."""
    place = textured if name == "nid" else plain
    problem, seen_from = problem_at(name, place, TRUTH)
    least = cost(problem, seen_from, TRUTH)
    for axis, step in enumerate((0.3, 0.2, 0.6, 0.03, 0.03, 0.04)):
        for side in (-1, 1):
            moved = TRUTH @ se3.exp(torch.from_numpy(np.eye(6)[axis] * side * step)).numpy()
            assert cost(problem, seen_from, moved) > least, (axis, side)
    rng = np.random.default_rng(2)
    others = [TRUTH @ se3.exp(torch.from_numpy(rng.uniform(-1, 1, 6) * 3 * OFF)).numpy() for _ in range(100)]
    assert min(cost(problem, seen_from, other) for other in others) > least


@pytest.mark.parametrize("name", METHODS)
def test_a_wrong_start_is_put_right(name: str, textured: tuple, plain: tuple) -> None:
    point_map, picture = textured if name == "nid" else plain
    found = AlignmentFinder(point_map, *METHODS[name]).localize(picture, CAMERA, start())
    assert found.status == "ok" and found.covariance is None
    metres, degrees = errors(found.map_from_camera, TRUTH)
    # Where things end the map knows to within its points' spacing alone.
    assert (metres < 0.05 and degrees < 0.3) if name == "nid" else (metres < 0.2 and degrees < 1)
    again = AlignmentFinder(point_map, *METHODS[name]).localize(picture, CAMERA, start())
    np.testing.assert_array_equal(again.map_from_camera, found.map_from_camera)


def test_grey_and_distorted_images_are_aligned_alike(textured: tuple) -> None:
    point_map, picture = textured
    rays = LENS.unproject(np.stack(np.meshgrid(np.arange(640), np.arange(320)), -1).reshape(-1, 2)) @ TRUTH[:3, :3].T
    bent = WORLD.paint(TRUTH[:3, 3] + rays * WORLD.distance(TRUTH[:3, 3], rays)[:, None]).reshape(320, 640, 3)
    finder = AlignmentFinder(point_map, *METHODS["nid"])
    for image, camera in ((bent, LENS), (picture[..., 0], CAMERA)):
        metres, degrees = errors(finder.localize(image, camera, start(0.5)).candidate, TRUTH)
        assert metres < 0.1 and degrees < 0.7


def test_in_a_map_of_finer_voxels_all_is_smaller(tmp_path: Path) -> None:
    """A quarter of everything: voxels, room, start, answer."""
    points = WORLD.map_points(0.15)
    quarter = replace(points, xyz=points.xyz * np.float32(0.25))
    point_map = write_map(tmp_path / "map", quarter, MapInfo(voxel_size=0.05, tile_size=5.0))
    picture = WORLD.render(CAMERA.matrix, (CAMERA.width, CAMERA.height), TRUTH)[0]
    found = AlignmentFinder(point_map, *METHODS["nid"]).localize(picture, CAMERA, start(1.0, 0.25))
    metres, degrees = errors(found.map_from_camera, scaled_pose(TRUTH, 0.25))
    assert metres < 0.025 and degrees < 0.7


@pytest.mark.parametrize("name", METHODS)
def test_an_image_of_something_else_is_refused(name: str, textured: tuple, plain: tuple) -> None:
    point_map, _ = textured if name == "nid" else plain
    other = np.random.default_rng(0).integers(0, 255, (CAMERA.height, CAMERA.width, 3), np.uint8)
    found = AlignmentFinder(point_map, *METHODS[name]).localize(other, CAMERA, start())
    assert found.status == "refused" and found.reason and found.map_from_camera is None
    assert found.candidate is not None


def test_what_cannot_be_aligned_is_refused_with_its_reason(textured: tuple, tmp_path: Path) -> None:
    point_map, picture = textured
    finder = AlignmentFinder(point_map, *METHODS["nid"])
    assert "first guess" in finder.localize(picture, CAMERA).reason
    far = start()
    far[0, 3] += 500
    assert "too few map points" in finder.localize(picture, CAMERA, far).reason
    dark = write_map(tmp_path / "dark", WORLD.map_points(0.2, np.zeros(1)), MapInfo(voxel_size=0.2))
    assert "intensity" in AlignmentFinder(dark, *METHODS["nid"]).localize(picture, CAMERA, start()).reason
    empty = TexturedWorld([ROOM])
    wall = level_pose((12.0, 5.0, 2.0), 0.0)
    room = small(empty, tmp_path / "empty")
    assert "at an edge" in AlignmentFinder(room, *METHODS["edges"]).localize(picture, CAMERA, wall).reason


def test_an_image_that_does_not_fit_its_camera_is_an_error(textured: tuple) -> None:
    finder = AlignmentFinder(textured[0], *METHODS["nid"])
    with pytest.raises(InputError, match="calibration"):
        finder.localize(np.zeros((10, 20, 3), np.uint8), CAMERA, TRUTH)
    with pytest.raises(InputError, match="8-bit"):
        finder.localize(np.zeros((320, 640, 3), np.float32), CAMERA, TRUTH)


def test_information_distance_of_known_histograms() -> None:
    assert nid(np.diag([3.0, 5, 2])) == pytest.approx(0)  # each tells the other
    assert nid(np.outer([1.0, 2, 3], [4.0, 5])) == pytest.approx(1)  # independent
    assert nid(np.array([[7.0]])) == 1  # nothing is told
    # Two fair bits that agree three times of four: I = 1 - h(1/4), H = 1 + h(1/4), h the entropy of a bit.
    h = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert nid(np.array([[3.0, 1], [1, 3]])) == pytest.approx(1 - (1 - h) / (1 + h))


def test_contrast_is_against_the_own_group_alone() -> None:
    values = np.array([1.0, 3, 100, 104, 7])
    found = local_contrast(values, np.array([0, 0, 3, 3, 1]), 1.0)
    np.testing.assert_allclose(found, [-0.5, 0.5, -2 / 3, 2 / 3, 0])


def test_edges_lie_where_things_end_and_know_their_direction() -> None:
    """A board before a wall: its points at the left and right ends have edges across which one goes sideways; those in
    the middle, the wall's, and the floor's have none."""
    step = 0.05
    y, z = (axis.ravel() for axis in np.meshgrid(np.arange(-1, 1.01, step), np.arange(-1, 1.01, step)))
    wall_x, wall_y = (axis.ravel() for axis in np.meshgrid(np.arange(-6, 6, 2 * step), np.arange(-3, 1.3, 2 * step)))
    board = np.c_[y, z, np.full(len(y), 5.0)]
    wall = np.c_[wall_x, wall_y, np.full(len(wall_x), 10.0)]
    floor_x, floor_z = (axis.ravel() for axis in np.meshgrid(np.arange(-4, 4, step), np.arange(2.5, 10, step)))
    floor = np.c_[floor_x, np.full(len(floor_x), 1.3), floor_z]
    xyz = np.concatenate([board, wall, floor]).astype(np.float32)
    pixels = xyz[:, :2] / xyz[:, 2:] * 360 + np.array([319.5, 159.5], np.float32)
    inside = (pixels > -0.4).all(1) & (pixels < [639.4, 319.4]).all(1)
    inside &= ~((xyz[:, 2] > 5) & (np.abs(pixels - [319.5, 159.5]) < 74).all(1))  # hidden by the board
    seen = VisiblePoints(np.eye(4), xyz[inside], np.zeros((inside.sum(), 6)), pixels[inside], xyz[inside, 2], 0.0)
    angles = edge_angles(seen, CAMERA, 2 * step, 0.15)
    own = np.abs(seen.xyz[:, :2])
    on_board = seen.xyz[:, 2] == 5
    assert np.isnan(angles[on_board & (own < 0.6).all(1)]).all()
    assert np.isnan(angles[~on_board]).mean() > 0.97
    side = on_board & (own[:, 0] > 0.97) & (own[:, 1] < 0.6)
    top = on_board & (seen.xyz[:, 1] < -0.97) & (own[:, 0] < 0.6)
    assert np.isfinite(angles[side]).mean() > 0.9 and np.isfinite(angles[top]).mean() > 0.9
    assert np.nanmin(np.abs(np.cos(angles[side]))) > 0.9
    assert np.nanmin(np.abs(np.sin(angles[top]))) > 0.9
