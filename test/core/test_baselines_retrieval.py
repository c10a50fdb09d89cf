"""The view that is most like the image, among those that a first guess allows."""

from __future__ import annotations

import numpy as np
import pytest
from painted_world import PaintedWorld, level_pose

from ep2ploc_core.baselines.retrieval import RetrievalFinder
from ep2ploc_core.camera import Camera
from ep2ploc_core.map.place_index import NO_PLACES, PlaceIndex, describe_image, encode_depth
from ep2ploc_core.map.unit import scaled_pose
from ep2ploc_core.model.checkpoint import load_network
from ep2ploc_core.model.ep2ploc import EP2PLoc

CAMERA = Camera(width=192, height=96, fx=110.0, fy=110.0, cx=95.5, cy=47.5)
WORLD = PaintedWorld([np.array([[0.0, 0, 0], [16, 10, 5]])], [np.array([[7.0, 1, 0], [8, 4, 2.4]])])
POSES = np.stack([level_pose((x, y, 1.5), yaw) for x in (2.0, 5.0) for y in (3.0, 7.0) for yaw in (0.0, 8.0, 90.0)])


def photograph(pose: np.ndarray) -> np.ndarray:
    return WORLD.render(CAMERA.matrix, (CAMERA.width, CAMERA.height), pose)[0]


@pytest.fixture(scope="module")
def network() -> EP2PLoc:
    return load_network("edge")


@pytest.fixture(scope="module")
def places(network: EP2PLoc) -> PlaceIndex:
    """Views that are described as the images taken there are."""
    described = [describe_image(network, photograph(pose), CAMERA) for pose in POSES]
    descriptors = np.stack([each.descriptor for each in described]).astype(np.float16)
    return PlaceIndex(POSES, descriptors, np.stack([encode_depth(each.log_depth) for each in described]))


def test_the_right_view_is_the_answer(network: EP2PLoc, places: PlaceIndex) -> None:
    finder = RetrievalFinder(network, places)
    for number in (0, 4, 11):
        found = finder.localize(photograph(POSES[number]), CAMERA)
        assert found.status == "ok" and found.covariance is None
        np.testing.assert_array_equal(found.map_from_camera, POSES[number])


@pytest.mark.parametrize("unit", [1.0, 0.25])
def test_with_a_first_guess_only_views_near_it_compete(network: EP2PLoc, places: PlaceIndex, unit: float) -> None:
    """The image is that of view 0; around the guess there are only views 6 and 7."""
    smaller = PlaceIndex(scaled_pose(places.map_from_camera, unit), places.descriptors, places.depths)
    finder = RetrievalFinder(network, smaller, unit)
    guess = scaled_pose(level_pose((6.5, 3.0, 1.5), -4.0), unit)
    found = finder.localize(photograph(POSES[0]), CAMERA, guess)
    likeness = places.descriptors[6:8].astype(np.float64) @ places.descriptors[0].astype(np.float64)
    np.testing.assert_array_equal(found.map_from_camera, smaller.map_from_camera[6 + likeness.argmax()])
    nowhere = finder.localize(photograph(POSES[0]), CAMERA, scaled_pose(level_pose((12.0, 3.0, 1.5), 0.0), unit))
    assert nowhere.status == "refused" and "near the first guess" in nowhere.reason


def test_a_map_without_views_gives_nothing(network: EP2PLoc) -> None:
    assert RetrievalFinder(network, NO_PLACES).localize(photograph(POSES[0]), CAMERA).status == "refused"
