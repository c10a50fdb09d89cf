"""Whether a pose is believed: what speaks against it, by the evidence and what the settings ask of it."""

from __future__ import annotations

import numpy as np
import torch

from ep2ploc_core import se3
from ep2ploc_core.datasets.sampling import START_RANGE
from ep2ploc_core.localization import Localization
from ep2ploc_core.localizer_settings import LocalizerSettings
from ep2ploc_core.pose.belief import UNRIVALLED, Evidence, belief
from ep2ploc_core.refinement import Refinement


def doubt(found: Localization, prior: np.ndarray, settings: LocalizerSettings, unit: float) -> str:
    """Why a pose that the score maps gave should not be believed; empty when nothing speaks against it. prior `(4, 4)`:
    map_from_camera in units, where the search for it began; unit: metres, for what people read."""
    evidence = found.evidence
    assert found.map_from_camera is not None and isinstance(evidence, Evidence)
    confirmed = evidence.landmarks is not None and evidence.landmarks >= settings.enough_landmarks
    more_score = 0.0
    if evidence.landmarks is not None:  # they tell more than a score does
        more_score = settings.more_score_landmarks
    elif evidence.margin is not None:
        more_score = settings.more_score_unaligned if evidence.likeness is None else settings.more_score_searched
    if found.num_matches < settings.least_matches:
        return f"only {found.num_matches} map points were found in the image"
    if evidence.parts < settings.least_parts:
        return "all points that were found lie in one corner of the image"
    if not confirmed and evidence.inlier_ratio < settings.least_inlier_ratio:
        return f"only {evidence.inlier_ratio:.0%} of the matches agree on one pose"
    if evidence.score < settings.least_score + more_score:
        return f"the image fits the map badly there (score {evidence.score:.2f})"
    if evidence.likeness is not None and evidence.likeness < settings.least_likeness:
        return f"the image shows little of what the map's points look like (likeness {evidence.likeness:.2f})"
    if evidence.margin == UNRIVALLED and (evidence.landmarks or 0) < settings.unrivalled_landmarks:
        return f"only {evidence.landmarks or 0} landmarks tell the place, which may look like another"
    refinements = found.refinements if evidence.likeness is not None else []  # without, alignment wanders
    if evidence.landmarks is None and any(one.led_away for one in refinements):
        return "feature alignment leads away from the pose that fits the matches best"
    if evidence.landmarks is None and evidence.spread > settings.greatest_sigma:
        return f"several poses are possible, {evidence.spread * unit:.2g} m apart"
    if found.belief < settings.least_belief:
        return f"the evidence is thin: the pose is right with a probability of {found.belief:.0%}"
    off = se3.log(torch.from_numpy(np.linalg.inv(prior) @ found.map_from_camera)).abs().numpy() / START_RANGE
    if not confirmed and off.max() > 0.98 * settings.greatest_distance:
        return "the best pose lies at the limit of what the prior pose allows"
    return ""


def is_certain(refinement: Refinement, settings: LocalizerSettings) -> bool:
    """Whether a prior that alignment alone refined is right for certain. Where not, the score maps have to tell."""
    evidence = refinement.evidence
    return (
        not refinement.given_up
        and refinement.num_points >= settings.least_matches
        and evidence.parts >= settings.least_parts
        and evidence.likeness >= settings.least_likeness
        and evidence.sigma <= settings.greatest_sigma
        and belief(evidence) >= max(settings.least_belief, settings.least_belief_followed)
    )
