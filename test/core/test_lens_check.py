"""Whether landmarks tell a wrong focal length, from matches whose camera is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from painted_world import level_pose

from ep2ploc_core.camera import Camera
from ep2ploc_core.landmarks.finder import LandmarkMatches, LandmarkPose
from ep2ploc_core.landmarks.lens_check import SCALE, LensCheck, fit_focal_ratio
from ep2ploc_core.localizer import Localizer
from ep2ploc_core.localizer_settings import LocalizerSettings
from ep2ploc_core.map.point_map import SITE_CHECKPOINT, PointMap
from ep2ploc_core.model.checkpoint import load_network
from ep2ploc_core.pose.pnp import refine, reprojection_errors, solve_ransac

TRUE = Camera(width=640, height=360, fx=400.0, fy=400.0, cx=320.0, cy=180.0)
POSE = level_pose((3.0, -2.0, 1.6), 20.0, 2.0)
NUMBER = 300


def said_to_be(ratio: float) -> Camera:
    """The camera with the focal lengths of a wrong calibration, so that the true ones are `ratio` times these."""
    return Camera(width=640, height=360, fx=400.0 / ratio, fy=400.0 / ratio, cx=320.0, cy=180.0)


def landmarks(
    rng: np.random.Generator, camera: Camera, nearest: float, farthest: float, noise: float = 0.5
) -> LandmarkPose:
    """What the finder would give with that calibration, from matches between so and so many metres off, a fifth of
    them wrong, the others off by so many pixels."""
    pixels = rng.uniform((0, 0), (640, 360), (NUMBER, 2))
    depth = np.exp(rng.uniform(math.log(nearest), math.log(farthest), NUMBER))
    rays = np.column_stack([(pixels - [TRUE.cx, TRUE.cy]) / TRUE.fx, np.ones(NUMBER)])
    xyz = (rays * depth[:, None]) @ POSE[:3, :3].T + POSE[:3, 3]
    pixels += rng.normal(0, noise, pixels.shape)
    wrong = NUMBER // 5
    pixels[:wrong] = rng.uniform((0, 0), (640, 360), (wrong, 2))
    start = solve_ransac(xyz, pixels, camera.matrix, 8.0)
    assert start is not None
    solved = refine(start, xyz, pixels, np.ones(NUMBER), camera.matrix, 2.0)
    matches = LandmarkMatches(np.arange(NUMBER), pixels, xyz)
    return LandmarkPose(
        solved.map_from_camera, solved.covariance, matches, solved.inliers, matches, int(solved.inliers.sum())
    )


@pytest.mark.parametrize("ratio", [0.7, 0.9, 0.97, 1.0, 1.1, 1.4])
def test_the_true_focal_length_is_found_though_pose_and_inliers_are_those_of_a_wrong_one(ratio: float) -> None:
    rng, camera = np.random.default_rng(3), said_to_be(ratio)
    found = landmarks(rng, camera, 4.0, 60.0)
    fitted = fit_focal_ratio(found, camera)
    assert fitted is not None and 0 < fitted.sigma < 0.005
    assert abs(math.log(fitted.ratio / ratio)) < 4 * fitted.sigma + 1e-4
    if abs(ratio - 1) > 0.05:  # which is why it matters: the pose that most of the image agrees with is far off
        assert np.linalg.norm(found.map_from_camera[:3, 3] - POSE[:3, 3]) > 0.5


def test_the_sigma_is_that_of_repeated_trials_with_matches_as_far_off_as_it_supposes() -> None:
    rng, logs, sigmas = np.random.default_rng(4), [], []
    for _ in range(40):
        fitted = fit_focal_ratio(landmarks(rng, TRUE, 5.0, 25.0, SCALE), TRUE)
        assert fitted is not None
        logs.append(math.log(fitted.ratio))
        sigmas.append(fitted.sigma)
    assert 0.5 < np.std(logs) / np.median(sigmas) < 2.0


@pytest.mark.parametrize("thick", [0.05, 0.0])
def test_one_wall_straight_ahead_tells_no_focal_length(thick: float) -> None:
    """Whether it is near or the focal length is long cannot be known."""
    rng = np.random.default_rng(5)
    found = landmarks(rng, TRUE, 20 - thick, 20 + thick)
    fitted = fit_focal_ratio(found, TRUE)
    assert fitted is not None and fitted.sigma > LensCheck.greatest_sigma
    check = LensCheck()
    check.learn(fitted)
    assert check.ratio is None and check.is_open and not check.complaint


def test_too_few_matches_tell_nothing() -> None:
    found = landmarks(np.random.default_rng(6), TRUE, 4.0, 60.0)
    few = LandmarkMatches(np.arange(8), found.matches.pixels[-8:], found.matches.xyz[-8:])
    found.unguided = few
    assert (reprojection_errors(found.map_from_camera, few.xyz, few.pixels, TRUE.matrix) < 6).all()
    assert fit_focal_ratio(found, TRUE) is None


@pytest.mark.parametrize(("ratio", "images"), [(1.1, 1), (0.9, 1), (1.06, 2), (0.95, 3)])
def test_the_smaller_the_error_the_more_images_it_takes_to_be_sure(ratio: float, images: int) -> None:
    rng, camera = np.random.default_rng(7), said_to_be(ratio)
    check, told = LensCheck(), []
    for _ in range(images):
        assert not told or not told[-1]
        check.learn(fit_focal_ratio(landmarks(rng, camera, 4.0, 60.0), camera))
        told.append(check.complaint)
    assert f"a focal length {ratio:.2f} times that of the camera's calibration" in told[-1]


def test_a_right_one_is_settled_after_a_few_images_and_without_landmarks_it_stays_open_for_some() -> None:
    rng, check = np.random.default_rng(8), LensCheck()
    for _ in range(LensCheck.enough):
        assert check.is_open
        check.learn(fit_focal_ratio(landmarks(rng, TRUE, 4.0, 60.0), TRUE))
    assert not check.is_open and not check.complaint
    assert check.ratio is not None and abs(check.ratio - 1) < 0.005
    blind = LensCheck()
    for _ in range(LensCheck.tries):
        assert blind.is_open
        blind.learn(None)
    assert not blind.is_open and blind.ratio is None and not blind.complaint


def test_poses_with_a_wrong_calibration_are_refused_and_landmarks_are_asked_until_it_is_known(site) -> None:
    settings = LocalizerSettings(least_score=-10, least_belief=0, least_likeness=-1, sure_sigma=10.0)
    localizer = Localizer(load_network(site.map_path / SITE_CHECKPOINT), PointMap.open(site.map_path), "cpu", settings)
    asked = []
    for _ in range(LensCheck.enough + 1):
        found = localizer.localize(site.image, site.camera, site.prior)
        assert found.status == "ok" and found.focal_ratio is not None and abs(found.focal_ratio - 1) < 0.02
        asked.append(found.evidence.landmarks is not None)
    assert asked == [True] * LensCheck.enough + [False]
    matrix = site.camera.matrix
    matrix[0, 0] *= 0.9
    matrix[1, 1] *= 0.9
    wrong = Camera.from_matrix(site.camera.width, site.camera.height, matrix)
    found = localizer.localize(site.image, wrong, site.prior)
    assert found.status == "refused" and found.map_from_camera is None and found.covariance is None
    assert "landmarks fit a focal length 1.1" in found.reason
    localizer.settings = replace(settings, landmarks=False)
    blind = localizer.localize(site.image, wrong, site.prior)
    assert "focal" not in blind.reason and blind.focal_ratio is None
    localizer.settings = settings
    # The right one is not blamed, and is known as long as the map is the same.
    again = localizer.localize(site.image, site.camera, site.prior)
    assert again.status == "ok" and again.evidence.landmarks is None
    assert "landmarks fit" in localizer.localize(site.image, wrong, site.prior).reason
    localizer.point_map = PointMap.open(site.map_path)
    assert localizer.localize(site.image, site.camera, site.prior).evidence.landmarks is not None
