"""What is asked of a pose before it is believed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ep2ploc_core.datasets.sampling import START_RANGE
from ep2ploc_core.localization import Localization
from ep2ploc_core.localizer_settings import LocalizerSettings
from ep2ploc_core.pose.belief import LEAST_LOG_ODDS, UNRIVALLED, AlignmentEvidence, Evidence, belief, log_odds
from ep2ploc_core.refinement import LED_AWAY, Refinement
from ep2ploc_core.verdict import doubt, is_certain

SETTINGS = LocalizerSettings()
STRONG = Evidence(
    score=0.3, gain=1.5, inlier_ratio=0.5, spread=0.1, sigma=0.1, parts=8, likeness=0.5, least_likeness=0.4
)


def why(
    evidence: Evidence, settings: LocalizerSettings = SETTINGS, aside: float = 0.0, **refinements: Refinement
) -> str:
    """What speaks against a pose so many units beside its prior."""
    prior = np.eye(4)
    prior[0, 3] = aside
    found = Localization("ok", map_from_camera=np.eye(4), num_matches=500, belief=belief(evidence), evidence=evidence)
    return doubt(replace(found, **refinements), prior, settings, unit=0.25)


def test_a_place_that_was_searched_for_must_fit_better_than_one_that_was_given() -> None:
    fair = replace(STRONG, score=0.03)
    assert not why(fair)
    assert "fits the map badly" in why(replace(fair, margin=0.3))
    assert not why(replace(fair, score=0.08, margin=0.3))
    # More so where nothing is known of what the points look like.
    blind = replace(STRONG, score=0.08, likeness=None, least_likeness=None)
    assert not why(blind) and "fits the map badly" in why(replace(blind, margin=0.3))


def test_landmarks_speak_for_a_pose_that_would_be_doubted_and_few_do_not() -> None:
    weak = replace(STRONG, score=-0.03, inlier_ratio=0.3, likeness=0.15, least_likeness=0.05, margin=0.1)
    assert why(weak)
    assert not why(replace(weak, landmarks=60))
    assert why(replace(weak, landmarks=2))
    assert not why(replace(STRONG, spread=2.0, landmarks=60))  # landmarks tell which of several poses it is
    odds = [belief(replace(weak, landmarks=count)) for count in (0, 5, 20, 100)]
    assert odds == sorted(odds) and odds[0] < 0.3
    assert "fits the map badly" in why(replace(weak, landmarks=60, score=-0.2))


def test_many_landmarks_do_without_the_network_and_without_room_around_the_pose() -> None:
    """A network that does not know the site has matches that agree on nothing, wherever the camera is."""
    lost = replace(STRONG, score=-0.05, inlier_ratio=0.02, gain=-1.0, likeness=None, least_likeness=None)
    assert log_odds(lost) < 2 * LEAST_LOG_ODDS
    assert "2% of the matches" in why(replace(lost, landmarks=30)) and not why(replace(lost, landmarks=60))
    farthest = 1.245 * START_RANGE[0]
    assert "limit of what the prior" in why(replace(STRONG, landmarks=30), aside=farthest)
    assert not why(replace(STRONG, landmarks=60), aside=farthest)


def test_a_place_that_was_compared_with_none_needs_more_landmarks() -> None:
    """Streets repeat their houses: on a synthetic one 41 showed a place that was a block off."""
    alone = replace(STRONG, margin=UNRIVALLED)
    assert "only 41 landmarks" in why(replace(alone, landmarks=41)) and "only 0" in why(alone)
    assert not why(replace(alone, landmarks=80)) and not why(replace(STRONG, margin=0.1, landmarks=41))


@pytest.mark.parametrize(
    ("weak", "reason"),
    [
        ({"parts": 3}, "one corner"),
        ({"inlier_ratio": 0.1}, "10% of the matches"),
        ({"likeness": 0.05}, "shows little"),
        ({"spread": 2.0}, "0.5 m apart"),
        ({"score": float("nan")}, "evidence is thin"),
    ],
)
def test_each_weak_point_is_named(weak: dict[str, float], reason: str) -> None:
    assert not why(STRONG)
    assert reason in why(replace(STRONG, **weak))


@pytest.mark.parametrize("which", ["refinement", "sharpening"])
def test_what_alignment_leads_away_from_is_doubted_unless_landmarks_confirm_it(which: str) -> None:
    evidence = AlignmentEvidence(likeness=0.6, least=0.5, sigma=0.03, way=0.5, parts=8)
    away = Refinement(
        of="search", given_up=LED_AWAY, cost_before=0.4, cost_after=0.2, likeness_before=0.3, likeness_after=0.6,
        least_likeness_before=0.1, poses=np.eye(4)[None], covariance=np.eye(6), evidence=evidence, num_points=400,
        points_map=np.zeros((0, 3)), pixels=np.zeros((0, 2)),
    )  # fmt: skip
    assert "leads away" in why(STRONG, **{which: away})
    assert not why(STRONG, **{which: replace(away, given_up="it moved points out of the image")})
    assert not why(replace(STRONG, landmarks=80), **{which: away})
    assert not why(replace(STRONG, likeness=None, least_likeness=None), **{which: away})  # it wanders, without images


def test_following_asks_for_whatever_belief_the_user_asks_for() -> None:
    evidence = AlignmentEvidence(likeness=0.6, least=0.5, sigma=0.03, way=0.02, parts=8)
    followed = Refinement(
        of="prior", given_up="", cost_before=0.4, cost_after=0.2, likeness_before=0.3, likeness_after=0.6,
        least_likeness_before=0.1, poses=np.eye(4)[None], covariance=np.eye(6), evidence=evidence, num_points=400,
        points_map=np.zeros((0, 3)), pixels=np.zeros((0, 2)),
    )  # fmt: skip
    assert is_certain(followed, SETTINGS)
    assert not is_certain(followed, replace(SETTINGS, least_belief=1.0))
    assert not is_certain(replace(followed, given_up="it moved points out of the image"), SETTINGS)
    for weak in ({"likeness": 0.05}, {"parts": 2}, {"sigma": float("nan")}, {"way": 1.0, "least": 0.0}):
        assert not is_certain(replace(followed, evidence=replace(evidence, **weak)), SETTINGS), weak
