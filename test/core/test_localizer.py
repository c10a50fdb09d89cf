"""The whole way in the core, on a small site that the network has learned."""

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ep2ploc_core.matcher
from ep2ploc_core import se3
from ep2ploc_core.datasets.kitti import KittiDrive
from ep2ploc_core.errors import CheckpointError, InputError, MapError
from ep2ploc_core.landmarks.landmark_view import LandmarkView
from ep2ploc_core.landmarks.store import LandmarkWriter
from ep2ploc_core.localizer import Localizer
from ep2ploc_core.localizer_settings import LocalizerSettings
from ep2ploc_core.map.encode import encode_map
from ep2ploc_core.map.point_map import SITE_CHECKPOINT, MapInfo, PointMap, write_map
from ep2ploc_core.model.checkpoint import load_network
from ep2ploc_core.pose.score_search import search_pose


@pytest.fixture(scope="module")
def localizer(site) -> Localizer:
    return Localizer(load_network(site.map_path / SITE_CHECKPOINT), PointMap.open(site.map_path))


@pytest.fixture(scope="module")
def lenient(localizer: Localizer) -> Localizer:
    """Asks for less evidence: this site is learned for two minutes only."""
    settings = LocalizerSettings(least_score=-10, least_belief=0, least_likeness=-1)
    return Localizer(localizer.network, localizer.point_map, settings=settings)


def test_a_learned_place_is_found_from_a_wrong_start(site, lenient: Localizer) -> None:
    result = lenient.localize(site.image, site.camera, site.prior)
    assert result.status == "ok", result.reason
    assert result.map_from_camera is not None and result.covariance is not None
    metres, radians = se3.pose_error(result.map_from_camera, site.truth)
    assert metres < 0.5 and radians < np.radians(2)
    assert 0 < result.num_inliers <= result.num_matches
    assert np.linalg.eigvalsh(result.covariance).min() > 0
    projected = (result.points_map - result.map_from_camera[:3, 3]) @ result.map_from_camera[:3, :3]
    error = np.linalg.norm(site.camera.project(projected) - result.pixels, axis=1)
    assert np.median(error) < lenient.settings.match_threshold * site.camera.width / 512


def test_landmarks_are_asked_where_a_pose_is_unsure_and_counted_with_it(site, lenient: Localizer) -> None:
    """The image is one of those that the landmarks are of, so they know its pose to a centimetre or two."""
    asked = Localizer(
        lenient.network, lenient.point_map, settings=replace(lenient.settings, sure_sigma=0.0)
    ).localize(site.image, site.camera, site.prior)  # fmt: skip
    assert asked.map_from_camera is not None and asked.covariance is not None
    assert asked.evidence.landmarks is not None and asked.evidence.landmarks > 50
    metres, radians = se3.pose_error(asked.map_from_camera, site.truth)
    assert metres < 0.1 and radians < np.radians(0.3)
    floor = np.repeat(lenient.settings.landmarks_sigma, 3) ** 2
    assert np.linalg.eigvalsh(asked.covariance - np.diag(floor)).min() > -1e-12
    settings = replace(lenient.settings, landmarks=False, sure_sigma=0.0)
    without = Localizer(lenient.network, lenient.point_map, settings=settings)
    assert without.localize(site.image, site.camera, site.prior).evidence.landmarks is None
    bare = Localizer(lenient.network, lenient.point_map, settings=replace(lenient.settings, sure_sigma=0.0))
    other = bare.localize(site.image[:, ::-1].copy(), site.camera, site.prior)  # a mirror image shows none of them
    assert other.evidence is None or other.evidence.landmarks is None


def test_landmarks_that_are_looked_for_ahead_say_the_same(site, lenient: Localizer) -> None:
    """From the second image in doubt on they are looked for while the network works."""
    localizer = Localizer(lenient.network, lenient.point_map, settings=replace(lenient.settings, sure_sigma=0.0))
    first, second, third = (localizer.localize(site.image, site.camera, site.prior) for _ in range(3))
    for again in (second, third):
        assert again.evidence == first.evidence and again.evidence.landmarks is not None
        assert np.array_equal(again.map_from_camera, first.map_from_camera)
        assert np.array_equal(again.covariance, first.covariance)


def test_a_pose_that_landmarks_confirm_is_not_matched_again(
    site, lenient: Localizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = []

    def counted(*arguments: object, **options: object):
        searches.append(arguments)
        return search_pose(*arguments, **options)

    monkeypatch.setattr(ep2ploc_core.matcher, "search_pose", counted)
    asking = replace(lenient.settings, sure_sigma=0.0)
    for settings, number in ((asking, 2), (replace(asking, least_score=10.0), 3)):  # in doubt, it may be the pose
        searches.clear()
        localizer = Localizer(lenient.network, lenient.point_map, settings=settings)
        found = localizer.localize(site.image, site.camera, site.prior)
        assert found.evidence.landmarks is not None and len(searches) == number


def test_landmarks_that_contradict_what_the_image_shows_make_no_wrong_pose_sure(
    site, localizer: Localizer, tmp_path: Path
) -> None:
    """As if what they show stood once more, two steps on."""
    shutil.copytree(site.map_path, tmp_path / "map")
    elsewhere = PointMap.open(tmp_path / "map")
    aside = 1.5 * site.truth[:3, 0] + 0.8 * site.truth[:3, 2]
    views = elsewhere.landmarks(site.truth[:3, 3], 1000.0)
    with LandmarkWriter(elsewhere.path) as writer:
        for view in views:
            pose = se3.moved(view.map_from_camera, aside)
            writer.add(LandmarkView(pose, view.descriptors, (view.xyz + aside).astype(np.float32)))
    settings = LocalizerSettings(sure_sigma=0.0)
    found = Localizer(localizer.network, PointMap.open(elsewhere.path), settings=settings).localize(
        site.image, site.camera, site.prior
    )
    assert found.map_from_camera is None or se3.pose_error(found.map_from_camera, site.truth)[0] < 0.5


def test_the_same_input_gives_the_same_pose(site, lenient: Localizer) -> None:
    first, second = (lenient.localize(site.image, site.camera, site.prior) for _ in range(2))
    assert first.map_from_camera is not None and second.map_from_camera is not None
    np.testing.assert_array_equal(first.map_from_camera, second.map_from_camera)


def test_a_wrong_image_is_refused(site, localizer: Localizer) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, site.image.shape, np.uint8)
    upside_down = np.ascontiguousarray(site.image[::-1])
    for image in (noise, upside_down, np.zeros_like(site.image)):
        result = localizer.localize(image, site.camera, site.prior)
        assert result.status == "refused" and result.reason and result.map_from_camera is None


def test_thin_evidence_is_refused_and_says_so(site, lenient: Localizer) -> None:
    doubtful = LocalizerSettings(least_score=-10, least_belief=1.01)  # more than any evidence gives
    strict = Localizer(lenient.network, lenient.point_map, settings=doubtful)
    result = strict.localize(site.image, site.camera, site.prior)
    assert result.status == "refused" and "evidence is thin" in result.reason
    assert 0 < result.belief <= 1 and result.covariance is None


@pytest.mark.parametrize("part", ["patch_classifier", "image_encoder"])
def test_broken_weights_are_an_error_and_no_pose(site, localizer: Localizer, part: str) -> None:
    network = deepcopy(localizer.network)
    next(getattr(network, part).parameters()).data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="weights are broken"):
        Localizer(network, localizer.point_map).localize(site.image, site.camera, site.prior)


def test_no_prior_no_map_points_and_another_network_are_told(site, localizer: Localizer, tmp_path: Path) -> None:
    assert "prior" in localizer.localize(site.image, site.camera).reason
    far = site.prior.copy()
    far[:3, 3] += 1e4
    assert "points around" in localizer.localize(site.image, site.camera, far).reason
    with pytest.raises(MapError, match="encoded with network"):
        Localizer(load_network("edge"), localizer.point_map).localize(site.image, site.camera, site.prior)


def test_image_and_camera_must_fit(site, localizer: Localizer) -> None:
    with pytest.raises(InputError, match="calibration is for"):
        localizer.localize(site.image[:-7], site.camera, site.prior)
    with pytest.raises(InputError, match="8-bit"):
        localizer.localize(site.image.astype(np.float32), site.camera, site.prior)
    grey = site.image.mean(2).astype(np.uint8)
    assert localizer.localize(grey, site.camera, site.prior).candidate is not None


def test_a_map_far_from_its_origin_gives_the_shifted_pose(site, localizer: Localizer, tmp_path: Path) -> None:
    """The site moved to UTM coordinates, where float32 alone would be off by decimetres."""
    shift = np.array([4.5e5, 5.4e6, 120.0])
    here = PointMap.open(site.map_path)
    info = MapInfo(voxel_size=0.2, origin=shift.tolist())
    there = write_map(tmp_path / "map", here.all_points(), info)
    there.store_descriptors(here.all_points().descriptors, here.checkpoint)
    prior = site.prior.copy()
    prior[:3, 3] += shift
    moved = Localizer(localizer.network, there).localize(site.image, site.camera, prior)
    plain = localizer.localize(site.image, site.camera, site.prior)
    assert moved.candidate is not None and plain.candidate is not None
    moved.candidate[:3, 3] -= shift
    metres, radians = se3.pose_error(moved.candidate, plain.candidate)
    assert metres < 0.05 and radians < np.radians(0.1)


def test_encoding_again_changes_the_fingerprint_of_the_map(site, tmp_path: Path) -> None:
    here = PointMap.open(site.map_path)
    copy = write_map(tmp_path / "map", replace(here.all_points(), descriptors=None), MapInfo(voxel_size=0.2))
    assert copy.checkpoint == ""
    network = load_network("edge")
    encode_map(copy, network)
    assert PointMap.open(tmp_path / "map").checkpoint == network.fingerprint != here.checkpoint


def test_the_drive_of_the_site_is_the_one_its_map_remembers(site) -> None:
    source = PointMap.open(site.map_path).info.source
    assert Path(source["path"]) == site.drive_path.resolve()
    assert len(KittiDrive(source["path"]).frames) == 24
