"""Where in a map an image may have been taken, when nothing is known of its pose."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from ep2ploc_core import se3
from ep2ploc_core.datasets.sampling import START_RANGE
from ep2ploc_core.landmarks.finder import LandmarkFinder
from ep2ploc_core.landmarks.surroundings import SurroundingLandmarks
from ep2ploc_core.localizer_settings import LocalizerSettings, Pass
from ep2ploc_core.map.place_index import PlaceIndex, impression
from ep2ploc_core.map.unit import MapInUnits, scaled_pose, unit_of
from ep2ploc_core.matcher import Matcher
from ep2ploc_core.pose.belief import UNRIVALLED

GREATEST_MARGIN = 0.3  # nats per point, of score; more tells nothing more

Attempt = tuple[float, np.ndarray]  # score and pose of one pass
Place = tuple[np.ndarray, float]  # pose and margin


def likely_places(matcher: Matcher, places: PlaceIndex | None, finder: LandmarkFinder) -> Iterator[Place | str]:
    """Where the camera may be, the next asked for when one was refused: map_from_camera `(4, 4)` in units, to be used
    as a prior, and by how much more score than any other place, at the most GREATEST_MARGIN, or UNRIVALLED; or why
    there is none.

    First what the landmarks know again around the views that are most like the image, or, in a map whose places no
    network has learned, around all: a place and its rival, each verified by the last pass. Then, from each of the
    views, one quick pass is made; the best of them, and what the landmarks proposed, are verified so: the quick one's
    wide prior lets wrong places fit nearly as well as the right one.
    """
    settings, query, point_map = matcher.settings, matcher.query, matcher.point_map
    if places is None or not len(places) or not (places.is_learned or settings.landmarks):
        yield "no prior pose, and the map has no places to search: give a first guess of the pose"
        return
    views = list(range(len(places)))
    if places.is_learned:
        image = impression(query.features, query.intrinsics, matcher.network.config.patch)
        views = sorted(places.search(image, settings.places))  # in order of place: maps are read so
    starts = [scaled_pose(places.map_from_camera[view], 1 / unit_of(point_map.voxel_size)) for view in views]
    proposed: list[np.ndarray] = []
    known: list[Attempt] = []
    if settings.landmarks:
        around, sighting = SurroundingLandmarks(MapInUnits(point_map)), query.sighting
        seen = chain.from_iterable(map(around.of, starts))  # each when its turn comes
        proposed = [one.map_from_camera for one in finder.recognize(sighting.features, sighting.camera, seen)]
        known = _attempts(matcher, proposed, settings.passes[-1])
        if proposed:
            yield _best_place(known, settings, compared=False)
    if not places.is_learned:
        if not proposed:
            yield "the image shows no landmarks that the map knows: give a first guess of the pose"
        return
    tried = _attempts(matcher, starts, settings.scouting)
    best = sorted(range(len(tried)), key=lambda number: -tried[number][0])[: settings.verified_places]
    scouted = _attempts(matcher, [tried[number][1] for number in sorted(best)], settings.passes[-1])
    yield _best_place(scouted + known, settings, compared=bool(scouted))


def _attempts(matcher: Matcher, starts: list[np.ndarray], stage: Pass) -> list[Attempt]:
    """Score and pose `(4, 4)`, in units, of one pass from each of these `(4, 4)`, where enough is visible."""
    return [one for start in starts if (one := matcher.attempt(start, stage))]


def _best_place(found: list[Attempt], settings: LocalizerSettings, compared: bool) -> Place | str:
    """Of what was found the pose with most score, and its margin; or why no place is to be believed. compared: whether
    other places were scouted; where not, that none comes near is no evidence: it is UNRIVALLED."""
    if not found:
        return "nothing of the map is visible from the places that look like the image"
    score, place = max(found, key=lambda one: one[0])
    others = [other for other, pose in found if not _same_place(pose, place)]
    margin = min([GREATEST_MARGIN, *(score - other for other in others)])
    if margin < settings.least_margin:
        if compared and score < settings.least_score + settings.more_score_searched:
            return f"the image fits no place of the map well (best score {score:.2f})"
        return f"two places fit the image as well (scores {score:.2f} and {score - margin:.2f})"
    return place, margin if compared else UNRIVALLED


def _same_place(pose: np.ndarray, other: np.ndarray) -> bool:
    """Whether two poses `(4, 4)` found from different views may be the same one, so that neither is the other's rival:
    from a view that is farther off than its search reaches one ends beside the true pose."""
    metres, radians = se3.pose_error(pose, other)
    return bool(metres < 2 * START_RANGE[0] and radians < 2 * START_RANGE[4])
