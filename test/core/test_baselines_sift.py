"""Poses from SIFT matches with mapping images, in a room whose images and answers are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from painted_world import level_pose
from textured_world import TexturedWorld

from ep2ploc_core import se3
from ep2ploc_core.baselines.sift import SiftFinder, SiftSettings
from ep2ploc_core.baselines.sift_features import Features, match
from ep2ploc_core.baselines.sift_views import SiftView, index_images, places_of
from ep2ploc_core.baselines.visible_points import VisiblePoints, visible_points
from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.posed_image import PosedImage
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.point_map import MapInfo, PointMap, write_map
from ep2ploc_core.map.unit import MapInUnits, scaled_pose

CAMERA = Camera(width=480, height=240, fx=280.0, fy=280.0, cx=239.5, cy=119.5)
ROOM = np.array([[0.0, 0, 0], [16, 10, 5]])
CASES = [np.array([[7.0, 1, 0], [8, 2.5, 2.4]]), np.array([[11.0, 7, 0], [12, 9, 3.2]])]
WORLD = TexturedWorld([ROOM], CASES, seed=5)
SEEN = [level_pose((x, 5.0, 1.5), yaw) for x in (1.0, 2.5, 4.0) for yaw in (0.0, 180.0)]
TRUTH = level_pose((3.2, 4.6, 1.6), 5.0, 3.0)
OFF = se3.exp(torch.tensor([0.8, 0.2, -1.0, 0.02, 0.1, -0.02], dtype=torch.float64)).numpy()


def photograph(world: TexturedWorld, pose: np.ndarray) -> np.ndarray:
    return world.render(CAMERA.matrix, (CAMERA.width, CAMERA.height), pose)[0]


@dataclass
class Place:
    point_map: PointMap
    images: list[PosedImage]
    views: list[SiftView]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    path = tmp_path_factory.mktemp("place")
    point_map = write_map(path / "map", WORLD.map_points(0.2), MapInfo(voxel_size=0.2))
    images = []
    for frame, pose in enumerate(SEEN):
        cv2.imwrite(str(path / f"{frame}.png"), photograph(WORLD, pose))
        images.append(PosedImage(frame, 0.1 * frame, path / f"{frame}.png", CAMERA, pose))
    return Place(point_map, images, index_images(point_map, images))


def test_features_have_the_places_that_a_ray_meets(place: Place) -> None:
    """But those of a thing's very rim, where the map has no points any more."""
    for view in place.views[::2]:  # those that look along the room
        offset = view.xyz - view.map_from_camera[:3, 3]
        met = WORLD.distance(view.map_from_camera[:3, 3], offset)
        away = np.abs(met - 1) * np.linalg.norm(offset, axis=1)
        assert len(view.xyz) > 200 and np.quantile(away, 0.9) < 0.05


def test_inverse_depth_is_exact_on_a_slanted_plane_and_unknown_beside_it() -> None:
    """A floor 1.6 m below, of points 0.2 m apart."""
    x, z = (axis.ravel() for axis in np.meshgrid(np.arange(-5, 5, 0.2), np.arange(3, 12, 0.2)))
    floor = np.c_[x, np.full(len(x), 1.6), z]
    pixels = (floor[:, :2] / floor[:, 2:] * CAMERA.fx + CAMERA.intrinsics[2:]).astype(np.float32)
    points = np.zeros((len(x), 6), np.float32)
    seen = VisiblePoints(np.eye(4), floor.astype(np.float32), points, pixels, floor[:, 2].astype(np.float32), 0.0)
    asked = np.array([[240.0, 170], [300.4, 200.2], [150.7, 180.9], [240, 60]], np.float32)
    found = places_of(Features(asked, np.zeros((4, 128), np.float32)), seen, CAMERA, 0.2)
    depth = 1.6 * CAMERA.fy / (asked[:3, 1] - CAMERA.cy)
    np.testing.assert_allclose(found[:3, 2], depth, rtol=1e-4)
    np.testing.assert_allclose(found[:3, 1], 1.6, atol=1e-3)
    assert np.isnan(found[3]).all()  # the sky
    few = seen.select(np.arange(2))
    assert np.isnan(places_of(Features(asked, np.zeros((4, 128), np.float32)), few, CAMERA, 0.2)).all()


@pytest.mark.parametrize("prior", [TRUTH @ OFF, None], ids=["tracking", "global"])
def test_a_pose_is_found(place: Place, prior: np.ndarray | None) -> None:
    found = SiftFinder(place.views).localize(photograph(WORLD, TRUTH), CAMERA, prior)
    assert found.status == "ok" and found.map_from_camera is not None
    metres, radians = se3.pose_error(found.map_from_camera, TRUTH)
    assert metres < 0.05 and np.degrees(radians) < 0.3
    # What it gives as inliers lies where it says, by OpenCV's projection.
    local = np.linalg.inv(found.map_from_camera)
    pixels, _ = cv2.projectPoints(found.points_map, local[:3, :3], local[:3, 3], CAMERA.matrix, None)
    assert np.linalg.norm(pixels[:, 0] - found.pixels, axis=1).max() < 6.1
    assert found.num_inliers <= len(found.pixels) <= found.num_matches


def test_in_a_map_of_finer_voxels_all_is_smaller(place: Place, tmp_path: Path) -> None:
    points = WORLD.map_points(0.2)
    quarter = replace(points, xyz=points.xyz * np.float32(0.25))
    point_map = write_map(tmp_path / "map", quarter, MapInfo(voxel_size=0.05, tile_size=5.0))
    images = [replace(image, map_from_camera=scaled_pose(image.map_from_camera, 0.25)) for image in place.images]
    finder = SiftFinder(index_images(point_map, images), 0.25)
    for prior in (scaled_pose(TRUTH @ OFF, 0.25), None):
        found = finder.localize(photograph(WORLD, TRUTH), CAMERA, prior)
        assert found.map_from_camera is not None
        assert np.linalg.norm(found.map_from_camera[:3, 3] - 0.25 * TRUTH[:3, 3]) < 0.0125


def test_an_image_of_something_else_is_refused(place: Place) -> None:
    finder = SiftFinder(place.views)
    other = photograph(TexturedWorld([ROOM], CASES, seed=6), TRUTH)
    for image in (other, np.full_like(other, 90)):
        for prior in (TRUTH @ OFF, None):
            found = finder.localize(image, CAMERA, prior)
            assert found.status == "refused" and found.reason
            assert found.map_from_camera is None


def test_what_lies_out_of_the_priors_reach_is_not_given(place: Place) -> None:
    """The image of a place five metres off the prior, where the other views are near too."""
    prior = TRUTH.copy()
    prior[0, 3] -= 5
    found = SiftFinder(place.views).localize(photograph(WORLD, TRUTH), CAMERA, prior)
    assert found.status == "refused"


def test_views_that_look_elsewhere_or_lie_far_away_are_not_asked(place: Place) -> None:
    """The only view near the prior looks back: nothing can match."""
    behind = [view for view in place.views if view.map_from_camera[0, 2] < 0]
    found = SiftFinder(behind).localize(photograph(WORLD, TRUTH), CAMERA, TRUTH @ OFF)
    assert found.status == "refused" and found.num_matches == 0
    assert SiftFinder([]).localize(photograph(WORLD, TRUTH), CAMERA).status == "refused"
    one = SiftSettings(views=1)
    assert SiftFinder(place.views, settings=one).localize(photograph(WORLD, SEEN[2]), CAMERA).status == "ok"


def test_matches_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    known = rng.uniform(size=(200, 128)).astype(np.float32) ** 4
    asked = known[rng.permutation(200)[:80]] + 0.1 * rng.uniform(size=(80, 128)).astype(np.float32)
    known, asked = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (known, asked))
    allowed = rng.uniform(size=(80, 200)) < 0.5
    for mask in (None, allowed):
        rows, columns = match(asked, known, mask)
        distance = np.linalg.norm(asked[:, None] - known, axis=2)
        distance[~(np.ones_like(allowed) if mask is None else mask)] = 2
        expected = []
        for row in range(80):
            best = int(distance[row].argmin())
            second = np.partition(distance[row], 1)[1]
            alike = 1 - distance[row, best] ** 2 / 2 > 0.7
            if alike and distance[row, best] < 0.8 * second and distance[:, best].argmin() == row:
                expected.append((row, best))
        assert expected and list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected
    assert len(match(asked[:1], known)[0]) == 0  # one alone has no second


def test_images_that_are_none_are_an_error(place: Place, tmp_path: Path) -> None:
    finder = SiftFinder(place.views)
    with pytest.raises(InputError, match="calibration"):
        finder.localize(np.zeros((10, 20, 3), np.uint8), CAMERA)
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = replace(place.images[0], path=tmp_path / "broken.png")
    with pytest.raises(InputError, match=r"broken\.png"):
        index_images(place.point_map, [broken])


def test_visible_points_are_where_opencv_projects_them(place: Place) -> None:
    seen = visible_points(MapInUnits(place.point_map), TRUTH, CAMERA)
    local = np.linalg.inv(TRUTH)
    xyz = seen.xyz.astype(np.float64) + TRUTH[:3, 3]
    pixels, _ = cv2.projectPoints(xyz, local[:3, :3], local[:3, 3], CAMERA.matrix, None)
    np.testing.assert_allclose(seen.pixels, pixels[:, 0], atol=0.01)
    hidden = WORLD.distance(TRUTH[:3, 3], xyz - TRUTH[:3, 3]) < 0.9
    assert hidden.mean() < 0.02
