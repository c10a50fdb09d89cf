"""From an image to a pose: the stages of EP2P-Loc in the order in which an image meets them."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from ep2ploc_core import se3
from ep2ploc_core.aligner import Aligner
from ep2ploc_core.camera import Camera
from ep2ploc_core.errors import CheckpointError, InputError, MapError
from ep2ploc_core.landmarks.finder import LandmarkFinder, LandmarkPose
from ep2ploc_core.landmarks.lens_check import FocalRatio, LensCheck, fit_focal_ratio
from ep2ploc_core.landmarks.search import LandmarkSearch
from ep2ploc_core.landmarks.sighting import Sighting
from ep2ploc_core.landmarks.surroundings import RADIUS
from ep2ploc_core.localization import Localization
from ep2ploc_core.localizer_settings import DEFAULT_SETTINGS, REFINEMENTS, LocalizerSettings
from ep2ploc_core.map.place_index import PlaceIndex
from ep2ploc_core.map.point_map import MapSource
from ep2ploc_core.map.unit import MapInUnits, scaled_pose, unit_of
from ep2ploc_core.matcher import Matcher, Surroundings
from ep2ploc_core.matching import Matches, Matching, Query, show_inliers
from ep2ploc_core.model.ep2ploc import NOT_LEARNED, EP2PLoc
from ep2ploc_core.model.image_input import prepare_image
from ep2ploc_core.place_search import likely_places
from ep2ploc_core.pose.belief import Evidence, belief
from ep2ploc_core.pose.prior_box import share_of_box
from ep2ploc_core.refinement import Refinement
from ep2ploc_core.se3 import fuse_poses, moved
from ep2ploc_core.verdict import doubt, is_certain

MOST_CAMERAS = 16  # whose lenses are kept in mind
CONTRADICTION = 0.5  # units; farther apart the pose with landmarks and that without cannot both be right


class Localizer:
    """Finds camera poses in one map. The map and the settings may be replaced between calls."""

    matcher_type = Matcher  # how passes are made; comparisons put another in its place

    def __init__(
        self,
        network: EP2PLoc,
        point_map: MapSource,
        device: str | torch.device = "cpu",
        settings: LocalizerSettings = DEFAULT_SETTINGS,
        places: PlaceIndex | None = None,
    ) -> None:
        self.network = network.eval().to(device)
        self.point_map = point_map
        self.device = torch.device(device)
        self.settings = settings
        self.places = places
        self.landmark_finder = LandmarkFinder()
        self._landmarks_thread = ThreadPoolExecutor(1, "landmarks")
        self._landmarks_wanted = False  # of the last image
        self._lens: LensCheck | None = None  # of the image's camera
        self._fitted: list[FocalRatio | None] = []  # by the landmarks of the image, place by place

    @property
    def point_map(self) -> MapSource:
        """The map."""
        return self._point_map

    @point_map.setter
    def point_map(self, point_map: MapSource) -> None:
        self._point_map = point_map
        self._lenses: dict[Camera, LensCheck] = {}  # what another map told of a camera may be that map's fault

    @property
    def settings(self) -> LocalizerSettings:
        """How images are localized."""
        return self._settings

    @settings.setter
    def settings(self, settings: LocalizerSettings) -> None:
        self.check(settings)
        self._settings = settings

    def check(self, settings: LocalizerSettings) -> None:
        """Raises InputError or CheckpointError where this network cannot do what the settings ask for."""
        if settings.refine not in REFINEMENTS:
            raise InputError(f"The refinement '{settings.refine}' is not known; there are: {', '.join(REFINEMENTS)}.")
        if settings.refine in ("align", "align_first") and self.network.alignment_head is None:
            raise CheckpointError(NOT_LEARNED)

    @torch.inference_mode()
    def localize(self, image: np.ndarray, camera: Camera, prior: np.ndarray | None = None) -> Localization:
        """Where the camera was when it took the image.

        image: `(H, W, 3)` RGB or `(H, W)` grey, uint8. prior: a guess of map_from_camera `(4, 4)`, wrong by no more
        than START_RANGE units: to the sides and ahead about ten voxels of the map (2 m with voxels of 0.2 m), in height
        a quarter of it; 10 degrees of yaw, 3 degrees of pitch and roll; without one the places of the map are searched.
        Raises InputError when image and camera do not fit, MapError when the map was not encoded with this network, or
        its landmarks are broken.
        """
        unit = unit_of(self.point_map.voxel_size)
        found = self._localize_in_units(image, camera, None if prior is None else scaled_pose(prior, 1 / unit))
        return found.scaled(unit)

    def _localize_in_units(self, image: np.ndarray, camera: Camera, prior: np.ndarray | None) -> Localization:
        begin = time.perf_counter()
        likely, self._landmarks_wanted = self._landmarks_wanted, False
        self.check_map()
        matcher = self.matcher_type(self.network, self.point_map, self.settings, self._encode(image, camera))
        self._lens, self._fitted = self._lens_of(camera), []
        if prior is not None:
            found = self._localize_from(matcher, prior, None, likely or self._doubts_lens)
        else:
            for place in likely_places(matcher, self.places, self.landmark_finder):
                found = _refused(place) if isinstance(place, str) else self._localize_from(matcher, *place, likely=True)
                if found.status == "ok":
                    break
        if self._fitted:
            self._lens.learn(self._fitted[-1])
        if self.settings.landmarks:
            found.focal_ratio = self._lens.ratio
            if self._lens.complaint:
                _refuse(found, self._lens.complaint)
        found.seconds = time.perf_counter() - begin
        return found

    def _localize_from(self, matcher: Matcher, prior: np.ndarray, margin: float | None, likely: bool) -> Localization:
        """The pose around a prior `(4, 4)`. margin: see `Evidence`; likely: whether landmarks will likely be asked."""
        around = matcher.around(prior)
        if len(around.points) < self.settings.least_points:
            return _refused(f"the map has only {len(around.points)} points around the prior pose")
        if self.settings.refine == "align_first" and margin is None and not self._doubts_lens:
            found = self._follow(matcher, around)
            if found is not None:
                return found
        landmarks = self._landmark_search(matcher.query, prior, begun=likely)
        passes: list[Matching] = []
        guess = around.guess
        for number, stage in enumerate(self.settings.passes, 1):
            last = number == len(self.settings.passes)
            matching = matcher.match(around, guess, stage, by_parts=last)
            if matching is None:
                return _refused("too few map points are visible from where the camera should be")
            passes.append(matching)
            guess = matching.map_from_camera
        found = self._refine(matcher, around, passes, margin)
        self._landmarks_wanted = self._wants_landmarks(found, prior)
        if self._landmarks_wanted:
            found = self._ask_landmarks(matcher, around, landmarks, found, prior)
        reason = self._doubt(found, prior)
        if reason:
            _refuse(found, reason)
        return found

    def check_map(self) -> None:
        """Raises MapError when the map was not encoded with this network."""
        if self.point_map.checkpoint != self.network.fingerprint:
            raise MapError(
                f"The map was encoded with network '{self.point_map.checkpoint or 'none'}' but this is "
                f"'{self.network.fingerprint}'; encode it again with `ep2ploc map encode`."
            )

    def _encode(self, image: np.ndarray, camera: Camera) -> Query:
        """Undistorts and resizes the image and runs the image encoder on it."""
        shown = prepare_image(image, camera, self.network.config.image_width, self.device)
        features = self.network.encode_image(shown.tensor, shown.intrinsics)
        scale = np.array([camera.width / shown.camera.width, camera.height / shown.camera.height])
        return Query(features, shown.camera, shown.intrinsics, scale, Sighting(image, camera))

    def _refine(
        self, matcher: Matcher, around: Surroundings, passes: list[Matching], margin: float | None
    ) -> Localization:
        """The pose of the last pass, refined by feature alignment where that is asked for. What search and alignment
        tell counts by their covariances, since where features tell little alignment wanders; from the pose of the two
        together the finest features lead on alone."""
        first, last, settings = passes[0], passes[-1], self.settings
        matches = matcher.decide(last.view, last.scores)
        found = self._conclude(
            matcher, last, matches, float(first.covariance[:3, :3].trace().sqrt()), around.origin, margin
        )
        aligner = Aligner(matcher)
        if not aligner.is_wanted(last.view):
            return found
        assert found.map_from_camera is not None and found.covariance is not None
        assert isinstance(found.evidence, Evidence)
        searched = found.covariance
        aligned = aligner.align(around, last)
        fused = fuse_poses(
            found.map_from_camera, searched, aligned.poses[-1], aligned.covariance * settings.covariance_scale
        )
        self._take(matcher, around, matches, found, aligned, *fused)
        sharpened = aligner.sharpen(around, found.map_from_camera)
        if sharpened is not None:
            pose = sharpened.poses[-1]
            fused = fuse_poses(pose, searched, pose, sharpened.covariance * settings.covariance_scale)
            self._take(matcher, around, matches, found, sharpened, *fused)
        if aligner.is_shown(last.view):  # else it is not known what likeness means
            evidence = replace(found.evidence, likeness=aligned.likeness, least_likeness=aligned.least_likeness)
            found = replace(found, evidence=evidence, belief=belief(evidence))
        return replace(found, refinement=aligned, sharpening=sharpened)

    def _take(
        self,
        matcher: Matcher,
        around: Surroundings,
        matches: Matches,
        found: Localization,
        refinement: Refinement,
        map_from_camera: np.ndarray,
        covariance: np.ndarray,
    ) -> None:
        """Moves what was found to a refined pose, unless the refinement was given up, or is now, since fewer matches
        agree with the pose."""
        agreeing = matcher.agreeing(matches, moved(map_from_camera, -around.origin))
        if not refinement.given_up and agreeing.sum() < self.settings.least_inliers_kept * found.num_inliers:
            refinement.given_up = "fewer matches agree with its pose"
        if refinement.given_up:
            return
        found.map_from_camera = found.candidate = map_from_camera
        found.covariance = covariance * self.settings.fused_scale + _common(self.settings.aligned_sigma)
        show_inliers(found, matches, agreeing, matcher.query, around.origin)

    def _landmark_search(self, query: Query, prior: np.ndarray, begun: bool) -> LandmarkSearch:
        """The search for landmarks around a prior `(4, 4)`; begun: by the thread, where they are to be asked at all."""
        views = partial(MapInUnits(self.point_map).landmarks, prior[:3, 3], RADIUS)
        search = LandmarkSearch(self.landmark_finder, query.sighting, views, prior)
        if begun and self.settings.landmarks:
            search.begin(self._landmarks_thread)
        return search

    def _lens_of(self, camera: Camera) -> LensCheck:
        """What is known of a camera in this map."""
        lens = self._lenses.get(camera)
        if lens is None:
            while len(self._lenses) >= MOST_CAMERAS:
                self._lenses.pop(next(iter(self._lenses)))
            lens = self._lenses[camera] = LensCheck()
        return lens

    @property
    def _doubts_lens(self) -> bool:
        """Whether landmarks still have to tell that the camera is as it is said to be."""
        return self.settings.landmarks and self._lens is not None and self._lens.is_open

    def _wants_landmarks(self, found: Localization, prior: np.ndarray) -> bool:
        """Whether landmarks are to be asked: they take longer than all else, so not where pose and lens are sure."""
        evidence = found.evidence
        assert isinstance(evidence, Evidence) and found.covariance is not None
        unsure = evidence.margin is not None or math.sqrt(found.covariance[:3, :3].trace()) > self.settings.sure_sigma
        return self.settings.landmarks and (self._doubts_lens or unsure or bool(self._doubt(found, prior)))

    def _ask_landmarks(
        self, matcher: Matcher, around: Surroundings, search: LandmarkSearch, found: Localization, prior: np.ndarray
    ) -> Localization:
        """What was found, counted together with the pose that the landmarks give. Where the two are apart, or together
        in doubt, the last pass and the refinement are made once more, from there. What was found without them stays
        where they give no pose, or where it alone is not in doubt, and the other is, or contradicts it and is less
        likely to be right."""
        seen = search.result()
        self._fitted.append(None if seen is None else fit_focal_ratio(seen, matcher.query.sighting.camera))
        if seen is None:
            return found
        assert found.map_from_camera is not None and isinstance(found.evidence, Evidence)
        if share_of_box(found.map_from_camera, seen.map_from_camera) < self.settings.passes[-1].scale / 2:
            together = self._count_together(matcher, found, seen, found.evidence.spread)
            if together is not None and not self._doubt(together, prior):
                return together
        guess = around.local(seen.map_from_camera)
        matching = matcher.match(around, guess, self.settings.passes[-1], by_parts=True)
        if matching is None:
            return found
        again = self._refine(matcher, around, [matching], found.evidence.margin)
        together = self._count_together(matcher, again, seen, found.evidence.spread)
        if together is None:  # the network says otherwise, and the two are not reconciled
            return found
        if self._doubt(found, prior):
            return together
        assert together.map_from_camera is not None
        apart = se3.pose_error(found.map_from_camera, together.map_from_camera)[0]
        contradicts = apart > CONTRADICTION and together.belief < found.belief
        return found if contradicts or self._doubt(together, prior) else together

    def _count_together(
        self, matcher: Matcher, found: Localization, seen: LandmarkPose, spread: float
    ) -> Localization | None:
        """What the network found and what the landmarks show, each by its covariance; None where landmarks do not agree
        with the outcome. Of the inliers those stay that agree with it too. spread: see `Evidence`."""
        assert found.map_from_camera is not None and found.covariance is not None
        assert isinstance(found.evidence, Evidence)
        scaled = seen.covariance * self.settings.landmarks_scale
        pose, covariance = fuse_poses(found.map_from_camera, found.covariance, seen.map_from_camera, scaled)
        agreeing = self.landmark_finder.agreeing(seen, pose, matcher.query.sighting.camera)
        if agreeing < self.landmark_finder.settings.least_inliers:
            return None
        pixels = (found.pixels + 0.5) / matcher.query.scale - 0.5
        kept = matcher.agreeing(Matches(found.points_map, pixels, np.ones(len(pixels))), pose)
        evidence = replace(found.evidence, spread=spread, landmarks=agreeing)
        return replace(
            found,
            map_from_camera=pose,
            candidate=pose,
            covariance=covariance + _common(self.settings.landmarks_sigma),
            num_inliers=int(kept.sum()),
            points_map=found.points_map[kept],
            pixels=found.pixels[kept],
            evidence=evidence,
            belief=belief(evidence),
        )

    def _doubt(self, found: Localization, prior: np.ndarray) -> str:
        return doubt(found, prior, self.settings, unit_of(self.point_map.voxel_size))

    def _follow(self, matcher: Matcher, around: Surroundings) -> Localization | None:
        """The prior refined by feature alignment alone; None where that is not certain to be right."""
        settings = self.settings
        refinement = Aligner(matcher).follow(around)
        if refinement is None or not is_certain(refinement, settings):
            return None
        return Localization(
            status="ok",
            map_from_camera=refinement.poses[-1],
            candidate=refinement.poses[-1],
            covariance=refinement.covariance * settings.covariance_scale * settings.followed_scale,
            num_matches=refinement.num_points,
            num_inliers=len(refinement.pixels),
            belief=belief(refinement.evidence),
            evidence=refinement.evidence,
            refinement=refinement,
            points_map=refinement.points_map,
            pixels=refinement.pixels,
        )

    def _conclude(
        self,
        matcher: Matcher,
        matching: Matching,
        matches: Matches,
        spread: float,
        origin: np.ndarray,
        margin: float | None,
    ) -> Localization:
        """The pose of a matching with the evidence for it; spread and margin: see `Evidence`."""
        pose = matching.map_from_camera.double().cpu().numpy()
        agreeing = matcher.agreeing(matches, pose)
        assert matching.jackknife is not None
        covariance = (matching.covariance + matching.jackknife.covariance).double().numpy()
        evidence = Evidence(
            score=matcher.score(matching),
            gain=matching.jackknife.gain,
            parts=matching.jackknife.parts,
            inlier_ratio=float(agreeing.mean()) if len(agreeing) else 0.0,
            spread=spread,
            sigma=math.sqrt(covariance[:3, :3].trace()),
            margin=margin,
        )
        pose = moved(pose, origin)
        found = Localization(
            status="ok",
            map_from_camera=pose,
            candidate=pose,
            covariance=covariance * self.settings.covariance_scale,
            num_matches=len(matches.points),
            belief=belief(evidence),
            evidence=evidence,
        )
        show_inliers(found, matches, agreeing, matcher.query, origin)
        return found


def _common(sigma: tuple[float, float]) -> np.ndarray:
    """The covariance `(6, 6)` of what all that was seen errs by together: standard deviations of position (each axis)
    and rotation."""
    return np.diag(np.repeat(sigma, 3) ** 2)


def _refuse(found: Localization, reason: str) -> None:
    """Takes back a pose that was found, and says why."""
    found.status, found.reason, found.map_from_camera, found.covariance = "refused", reason, None, None


def _refused(reason: str) -> Localization:
    """No pose, and why."""
    return Localization("refused", reason)
