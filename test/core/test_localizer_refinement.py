"""The refinement by feature alignment as a part of the localizer, on a small site that the network has learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import ep2ploc_core.aligner
import ep2ploc_core.matcher
from ep2ploc_core import se3
from ep2ploc_core.errors import CheckpointError, InputError
from ep2ploc_core.localization import Localization
from ep2ploc_core.localizer import Localizer
from ep2ploc_core.localizer_settings import LocalizerSettings
from ep2ploc_core.map.point_map import SITE_CHECKPOINT, PointMap
from ep2ploc_core.model.checkpoint import load_network
from ep2ploc_core.model.ep2ploc import EP2PLoc
from ep2ploc_core.pose.feature_alignment import Alignment, align_features

# Asks for less evidence: this site is learned for two minutes only.
LENIENT = LocalizerSettings(
    least_score=-10, least_belief=0, least_belief_followed=0, least_likeness=-1, landmarks=False
)


@pytest.fixture(scope="module")
def network(site) -> EP2PLoc:
    return load_network(site.map_path / SITE_CHECKPOINT)


def localize(site, network: EP2PLoc, prior: np.ndarray | None = None, **changes: object) -> Localization:
    """The site's query image from its wrong start, or from another prior."""
    localizer = Localizer(network, PointMap.open(site.map_path), settings=replace(LENIENT, **changes))
    return localizer.localize(site.image, site.camera, site.prior if prior is None else prior)


def test_what_is_shipped_aligns_and_sharpens_from_where_search_and_alignment_together_lead(
    site, network: EP2PLoc
) -> None:
    found = localize(site, network)
    aligned, sharpened = found.refinement, found.sharpening
    assert aligned is not None and sharpened is not None and found.evidence is not None
    assert not aligned.given_up and not sharpened.given_up, (aligned, sharpened)
    assert found.map_from_camera is not None and found.covariance is not None
    metres, radians = se3.pose_error(found.map_from_camera, site.truth)
    assert metres < 0.2 and radians < np.radians(0.5)
    assert found.evidence.likeness == aligned.likeness_after > aligned.likeness_before
    # The first of its poses is what there is without it.
    plain = localize(site, network, refine="none")
    assert plain.refinements == [] and plain.evidence is not None and plain.evidence.likeness is None
    np.testing.assert_allclose(plain.map_from_camera, aligned.poses[0], atol=1e-5)
    assert plain.covariance is not None
    scaled = aligned.covariance * LENIENT.covariance_scale
    pose, _ = se3.fuse_poses(plain.map_from_camera, plain.covariance, aligned.poses[-1], scaled)
    np.testing.assert_allclose(sharpened.poses[0], pose, atol=1e-4)
    np.testing.assert_allclose(found.map_from_camera, sharpened.poses[-1], atol=1e-12)
    # Search and sharpening as if they had nothing to do with each other, made up for, and what all points err by.
    scaled = sharpened.covariance * LENIENT.covariance_scale
    together = np.linalg.inv(np.linalg.inv(plain.covariance) + np.linalg.inv(scaled))
    common = np.diag(np.repeat(LENIENT.aligned_sigma, 3) ** 2)
    np.testing.assert_allclose(found.covariance, together * LENIENT.fused_scale + common, rtol=0.02, atol=1e-8)


def test_sharpening_looks_again_at_what_is_visible_by_finer_features_of_more_points(site, network: EP2PLoc) -> None:
    found = localize(site, network, trace=True)
    aligned, sharpened = found.refinement, found.sharpening
    assert aligned is not None and aligned.trace is not None and sharpened is not None and sharpened.trace is not None
    assert aligned.trace.strides == [4, 2] and sharpened.trace.strides == [2]
    counts = [len(one.trace.points_map) for one in (aligned, sharpened)]
    assert counts[0] <= LENIENT.alignment_points < counts[1] <= LENIENT.sharpening_points
    assert sharpened.cost_after < sharpened.cost_before


def test_what_sharpening_makes_worse_is_given_up_alone(site, network: EP2PLoc, monkeypatch: pytest.MonkeyPatch) -> None:
    def worse_if_sharpened(levels: list, *arguments: object) -> Alignment:
        found = align_features(levels, *arguments)
        return found if len(levels) > 1 else replace(found, cost_after=found.cost_before * 1.001)

    monkeypatch.setattr(ep2ploc_core.aligner, "align_features", worse_if_sharpened)
    found = localize(site, network)
    assert found.refinement is not None and not found.refinement.given_up
    assert found.sharpening is not None and "less alike" in found.sharpening.given_up
    np.testing.assert_allclose(found.map_from_camera, found.sharpening.poses[0], atol=1e-4)


@pytest.mark.parametrize(
    ("worse", "complaint"),
    [
        (lambda found: replace(found, cost_after=found.cost_before * 1.001), "less alike"),
        (lambda found: replace(found, cost_after=found.cost_before * np.nan), "less alike"),
        (lambda found: replace(found, inside_after=found.inside_before * 0.5), "out of the image"),
    ],
    ids=["cost", "not a number", "outside"],
)
def test_a_refinement_that_makes_things_worse_is_given_up(
    site, network: EP2PLoc, monkeypatch: pytest.MonkeyPatch, worse, complaint: str
) -> None:
    plain = localize(site, network, refine="none")
    monkeypatch.setattr(ep2ploc_core.aligner, "align_features", lambda *args: worse(align_features(*args)))
    found = localize(site, network)
    assert found.refinement is not None and complaint in found.refinement.given_up
    np.testing.assert_array_equal(found.map_from_camera, plain.map_from_camera)
    np.testing.assert_array_equal(found.covariance, plain.covariance)
    assert found.num_inliers == plain.num_inliers
    assert found.evidence is not None and found.evidence.likeness == found.refinement.likeness_before


def test_a_refinement_that_leads_away_makes_the_pose_doubtful_and_landmarks_are_asked(
    site, network: EP2PLoc, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(found: Alignment) -> Alignment:
        moved = found.track[-1].clone()
        moved[:, 0, 3] += 1.5
        return replace(found, track=[*found.track[:-1], moved])

    plain = localize(site, network, refine="none")
    monkeypatch.setattr(ep2ploc_core.aligner, "align_features", lambda *args: away(align_features(*args)))
    found = localize(site, network)
    assert found.status == "refused" and "leads away" in found.reason
    assert found.refinement is not None and "left the surroundings" in found.refinement.given_up
    np.testing.assert_array_equal(found.candidate, plain.candidate)
    assert found.num_inliers == plain.num_inliers
    assert found.evidence is not None and found.evidence.likeness == found.refinement.likeness_before
    asked = localize(site, network, landmarks=True)
    assert asked.status == "ok" and asked.evidence is not None and asked.evidence.landmarks is not None
    assert se3.pose_error(asked.map_from_camera, site.truth)[0] < 0.1


def test_fewer_matches_that_agree_give_it_up(site, network: EP2PLoc) -> None:
    found = localize(site, network, least_inliers_kept=5.0)
    assert found.refinement is not None and "fewer matches" in found.refinement.given_up


def test_a_good_prediction_needs_no_search(site, network: EP2PLoc, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []

    def counted(*args: object, **options: object):
        searches.append(args)
        return search(*args, **options)

    search = ep2ploc_core.matcher.search_pose
    monkeypatch.setattr(ep2ploc_core.matcher, "search_pose", counted)
    error = np.array([0.1, 0.03, -0.12, 0.003, 0.006, -0.003])
    near = site.truth @ se3.exp(torch.from_numpy(error)).numpy()
    found = localize(site, network, near, refine="align_first")
    assert found.status == "ok" and not searches
    assert found.map_from_camera is not None and found.refinement is not None
    assert se3.pose_error(found.map_from_camera, site.truth)[0] < se3.pose_error(near, site.truth)[0]
    # Of an image that does not belong there it is not believed, and the search has to tell.
    strict = Localizer(network, PointMap.open(site.map_path), settings=LocalizerSettings(refine="align_first"))
    refused = strict.localize(np.ascontiguousarray(site.image[::-1]), site.camera, near)
    assert refused.status == "refused" and searches


def test_a_network_that_has_not_learned_it_says_so_or_does_without(site, network: EP2PLoc) -> None:
    older = load_network(site.map_path / SITE_CHECKPOINT)
    older.alignment_head = None
    with pytest.raises(CheckpointError, match="learned no features"):
        localize(site, older, refine="align")
    with pytest.raises(InputError, match="not known"):
        localize(site, older, refine="polish")
    assert localize(site, older).refinements == []
