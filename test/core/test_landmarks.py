"""Landmarks, and poses from them alone, in a room whose images and answers are known."""

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
from ep2ploc_core.baselines.sift import SIFT_SETTINGS, SiftFinder
from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.posed_image import PosedImage
from ep2ploc_core.errors import InputError, MapError
from ep2ploc_core.landmarks.features import Features, Windows, match, match_in_windows, root_sift
from ep2ploc_core.landmarks.finder import LandmarkFinder
from ep2ploc_core.landmarks.gather import gather_landmarks
from ep2ploc_core.landmarks.landmark_view import LandmarkView
from ep2ploc_core.landmarks.lifting import lift_features, places_of
from ep2ploc_core.landmarks.sighting import Sighting
from ep2ploc_core.landmarks.store import FEATURES_FILE, VIEWS_FILE, LandmarkWriter
from ep2ploc_core.landmarks.surroundings import SurroundingLandmarks
from ep2ploc_core.map.point_map import MapInfo, PointMap, write_map
from ep2ploc_core.map.unit import MapInUnits, scaled_pose
from ep2ploc_core.map.visible_points import VisiblePoints, visible_points

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
    views: list[LandmarkView]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    path = tmp_path_factory.mktemp("place")
    point_map = write_map(path / "map", WORLD.map_points(0.2), MapInfo(voxel_size=0.2))
    images = []
    for frame, pose in enumerate(SEEN):
        cv2.imwrite(str(path / f"{frame}.png"), photograph(WORLD, pose))
        images.append(PosedImage(frame, 0.1 * frame, path / f"{frame}.png", CAMERA, pose))
    return Place(point_map, images, lifted(point_map, images))


def lifted(point_map: PointMap, images: list[PosedImage]) -> list[LandmarkView]:
    units = MapInUnits(point_map)
    return [units.view(lift_features(point_map, image)) for image in images]


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
    found = places_of(Features(asked, np.zeros((4, 128), np.uint8)), seen, CAMERA, 0.2)
    depth = 1.6 * CAMERA.fy / (asked[:3, 1] - CAMERA.cy)
    np.testing.assert_allclose(found[:3, 2], depth, rtol=1e-4)
    np.testing.assert_allclose(found[:3, 1], 1.6, atol=1e-3)
    assert np.isnan(found[3]).all()  # the sky
    few = seen.select(np.arange(2))
    assert np.isnan(places_of(Features(asked, np.zeros((4, 128), np.uint8)), few, CAMERA, 0.2)).all()


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
    finder = SiftFinder(lifted(point_map, images), 0.25)
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
    assert found.status == "refused"
    assert SiftFinder([]).localize(photograph(WORLD, TRUTH), CAMERA).status == "refused"
    one = replace(SIFT_SETTINGS, views=1)
    assert SiftFinder(place.views, settings=one).localize(photograph(WORLD, SEEN[2]), CAMERA).status == "ok"


def brute_force(asked: np.ndarray, known: np.ndarray, allowed: np.ndarray) -> list[tuple[int, int]]:
    distance = np.linalg.norm(asked[:, None] - known, axis=2)
    distance[~allowed] = 2
    expected = []
    for row in range(len(asked)):
        best = int(distance[row].argmin())
        second = np.partition(distance[row], 1)[1]
        alike = 1 - distance[row, best] ** 2 / 2 > 0.7
        if alike and distance[row, best] < 0.8 * second and distance[:, best].argmin() == row:
            expected.append((row, best))
    return expected


def test_matches_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    known = (255 * rng.uniform(size=(700, 128)) ** 4).astype(np.uint8)
    asked = np.clip(known[rng.permutation(700)[:300]] + rng.uniform(0, 12, size=(300, 128)), 0, 255).astype(np.uint8)
    features = Features(rng.uniform(0, 500, (300, 2)).astype(np.float32), asked)
    unit = root_sift(known)
    rows, columns = match(features.root, unit)
    expected = brute_force(features.root, unit, np.ones((300, 700), bool))
    assert len(expected) > 100 and list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected
    assert len(match(features.root[:1], unit)[0]) == 0  # one alone has no second
    # The same in windows, some of which hold nothing.
    low = rng.uniform(-100, 400, (700, 2))
    low[::9] = np.inf
    windows = Windows(low, low + rng.uniform(100, 400, (700, 2)))
    rows, columns = match_in_windows(features, unit, windows)
    allowed = np.array(
        [[(low[k] < p).all() and (p < windows.high[k]).all() for k in range(700)] for p in features.pixels]
    )
    expected = brute_force(features.root, unit, allowed)
    assert len(expected) > 20 and list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected
    nothing = Windows(np.full((700, 2), np.inf), np.full((700, 2), np.inf))
    assert len(match_in_windows(features, unit, nothing)[0]) == 0
    assert len(match_in_windows(features, unit[:0], Windows(low[:0], low[:0]))[0]) == 0  # of a black image
    twice = Features(np.repeat(features.pixels, 2, 0), np.repeat(features.descriptors, 2, 0))
    everywhere = Windows(np.full((700, 2), -1.0), np.full((700, 2), 600.0))
    rows, columns = match_in_windows(twice, unit, everywhere)  # of features quite the same the first
    assert len(np.unique(columns)) == len(columns) > 100 and (rows % 2 == 0).all()


def test_what_the_map_keeps_is_what_the_images_gave(place: Place, tmp_path: Path) -> None:
    point_map = write_map(
        tmp_path / "map", WORLD.map_points(0.2), MapInfo(voxel_size=0.2, origin=[1000.0, -500.0, 20.0])
    )
    shift = np.array([1000.0, -500, 20])
    images = [replace(image, map_from_camera=se3.moved(image.map_from_camera, shift)) for image in place.images]
    again = replace(images[0], map_from_camera=se3.moved(images[0].map_from_camera, np.array([0.3, 0, 0])))
    assert point_map.landmarks(shift, 100.0) == []
    gather_landmarks(point_map, [*images, again])
    kept = MapInUnits(PointMap.open(tmp_path / "map")).landmarks(shift + [2.5, 5, 0], 100.0)
    assert len(kept) == len(images)  # the last shows what another does
    for view, expected in zip(kept, place.views, strict=True):
        most = len(view)
        assert most == len(expected) or most == 1500
        np.testing.assert_allclose(view.map_from_camera[:3, 3] - shift, expected.map_from_camera[:3, 3])
        np.testing.assert_array_equal(view.descriptors, expected.descriptors[:most])
        np.testing.assert_allclose(view.xyz - shift, expected.xyz[:most], atol=1e-3)
    near = MapInUnits(point_map).landmarks(shift + [1.0, 5, 0], 1.0)
    assert len(near) == 2
    around = SurroundingLandmarks(MapInUnits(point_map))
    place_there = se3.moved(TRUTH, shift)
    assert len(around.of(place_there)) == 3 and around.of(place_there) == []  # those that look back are not given


def test_landmarks_that_are_broken_are_an_error_and_a_failed_writer_changes_nothing(
    place: Place, tmp_path: Path
) -> None:
    point_map = write_map(tmp_path / "map", WORLD.map_points(0.2), MapInfo(voxel_size=0.2))
    with pytest.raises(RuntimeError), LandmarkWriter(point_map.path) as writer:
        writer.add(place.views[0])
        raise RuntimeError("stopped")
    assert point_map.landmark_store is None
    broken = replace(place.images[0], path=tmp_path / "none.png")
    gather_landmarks(point_map, [broken])  # perhaps the disk with the images is not there
    assert point_map.landmark_store is None
    gather_landmarks(point_map, [broken, place.images[1]])
    assert len(PointMap.open(point_map.path).landmarks(np.zeros(3), 100.0)) == 1
    whole = (point_map.path / FEATURES_FILE).read_bytes()
    for content in (whole[:-200], b"", b"no array"):
        (point_map.path / FEATURES_FILE).write_bytes(content)
        with pytest.raises(MapError, match=VIEWS_FILE):
            PointMap.open(point_map.path).landmarks(np.zeros(3), 100.0)


def test_two_places_that_look_the_same_are_both_told(place: Place) -> None:
    """The room once more, 40 m away."""
    copies = [
        LandmarkView(se3.moved(view.map_from_camera, np.array([40.0, 0, 0])), view.descriptors, view.xyz + [40.0, 0, 0])
        for view in place.views
    ]
    seen = Sighting(photograph(WORLD, TRUTH), CAMERA)
    both = LandmarkFinder().recognize(seen.features, seen.camera, [*place.views, *copies])
    assert sorted(round(one.map_from_camera[0, 3] - TRUTH[0, 3]) for one in both) == [0, 40]
    assert len(LandmarkFinder().recognize(seen.features, seen.camera, place.views)) == 1
    finder = LandmarkFinder()
    found = finder.find(seen.features, seen.camera, place.views, TRUTH @ OFF)
    assert found is not None
    assert finder.agreeing(found, found.map_from_camera, CAMERA) > 5 * finder.agreeing(found, TRUTH @ OFF, CAMERA)


def test_images_that_are_none_are_an_error(place: Place, tmp_path: Path) -> None:
    finder = SiftFinder(place.views)
    with pytest.raises(InputError, match="calibration"):
        finder.localize(np.zeros((10, 20, 3), np.uint8), CAMERA)
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = replace(place.images[0], path=tmp_path / "broken.png")
    with pytest.raises(InputError, match=r"broken\.png"):
        lift_features(place.point_map, broken)


def test_visible_points_are_where_opencv_projects_them(place: Place) -> None:
    seen = visible_points(MapInUnits(place.point_map), TRUTH, CAMERA)
    local = np.linalg.inv(TRUTH)
    xyz = seen.xyz.astype(np.float64) + TRUTH[:3, 3]
    pixels, _ = cv2.projectPoints(xyz, local[:3, :3], local[:3, 3], CAMERA.matrix, None)
    np.testing.assert_allclose(seen.pixels, pixels[:, 0], atol=0.01)
    hidden = WORLD.distance(TRUTH[:3, 3], xyz - TRUTH[:3, 3]) < 0.9
    assert hidden.mean() < 0.02
