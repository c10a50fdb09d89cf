"""From an image to a pose: the stages of EP2P-Loc in the order in which an image meets them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from ep2ploc_core import se3
from ep2ploc_core.camera import Camera, project_pinhole
from ep2ploc_core.datasets.sampling import START_RANGE, spread_over_image, start_sigma
from ep2ploc_core.errors import CheckpointError, InputError, MapError
from ep2ploc_core.landmarks.finder import LandmarkFinder
from ep2ploc_core.landmarks.landmark_view import LandmarkView
from ep2ploc_core.landmarks.search import LandmarkSearch
from ep2ploc_core.landmarks.sighting import Sighting
from ep2ploc_core.landmarks.surroundings import RADIUS, SurroundingLandmarks
from ep2ploc_core.localization import Localization
from ep2ploc_core.localizer_settings import DEFAULT_SETTINGS, REFINEMENTS, LocalizerSettings, Pass
from ep2ploc_core.map.place_index import PlaceIndex, impression
from ep2ploc_core.map.point_map import MapPoints, MapSource
from ep2ploc_core.map.unit import MapInUnits, scaled_pose, unit_of
from ep2ploc_core.matching import Matches, Matching, Query, first_points, show_inliers
from ep2ploc_core.model.ep2ploc import NOT_LEARNED, EP2PLoc, PointView
from ep2ploc_core.model.image_input import prepare_image
from ep2ploc_core.model.patch_classifier import PatchScores
from ep2ploc_core.pose.alignment_trace import trace_alignment
from ep2ploc_core.pose.belief import Evidence, belief
from ep2ploc_core.pose.feature_alignment import AlignmentSettings, align_features
from ep2ploc_core.pose.pnp import reprojection_errors
from ep2ploc_core.pose.pose_posterior import Box, PosePosterior, pose_log_likelihood
from ep2ploc_core.pose.score_search import search_pose
from ep2ploc_core.refinement import Refinement
from ep2ploc_core.se3 import fuse_poses, moved
from ep2ploc_core.verdict import doubt, is_certain
from ep2ploc_core.visibility import remove_invisible

LEAST_SHOWN = 0.5  # share of the points that mapping images show; where it is less, points expect mere guesses
ORIGIN_STEP = 4.0  # units; from one local origin to the next
GREATEST_MARGIN = 0.3  # nats per point, of score; more tells nothing more
CONTRADICTION = 0.5  # units; farther apart the pose with landmarks and that without cannot both be right
BROKEN = "The network's answers are no numbers: its weights are broken; train it again."


class Localizer:
    """Finds camera poses in one map. The map and the settings may be replaced between calls."""

    remove_invisible = staticmethod(remove_invisible)

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
        query = self._encode(image, camera)
        margin = None  # only places that were searched for have one
        if prior is None:
            place = self._find_place(query)
            if isinstance(place, str):
                return self._refuse(place, begin)
            prior, margin = place
        origin, points = self._surroundings(prior)
        if len(points) < self.settings.least_points:
            return self._refuse(f"the map has only {len(points)} points around the prior pose", begin)
        guess = torch.from_numpy(moved(prior, -origin)).float().to(self.device)

        box = self._box(guess)
        if self.settings.refine == "align_first" and margin is None:
            found = self._follow(query, points, origin, guess)
            if found is not None:
                found.seconds = time.perf_counter() - begin
                return found
        views = partial(MapInUnits(self.point_map).landmarks, prior[:3, 3], RADIUS)
        landmarks = LandmarkSearch(self.landmark_finder, query.sighting, views, prior)
        if self.settings.landmarks and (likely or margin is not None):
            landmarks.begin(self._landmarks_thread)
        passes: list[Matching] = []
        for number, stage in enumerate(self.settings.passes, 1):
            last = number == len(self.settings.passes)
            matching = self._match(query, points, origin, guess, stage, box, by_parts=last)
            if matching is None:
                return self._refuse("too few map points are visible from where the camera should be", begin)
            passes.append(matching)
            guess = matching.map_from_camera
        found = self._refine(query, passes, origin, margin)
        self._landmarks_wanted = self._wants_landmarks(found, prior)
        if self._landmarks_wanted:
            found = self._ask_landmarks(query, points, origin, landmarks, box, found)
        found.reason = doubt(found, prior, self.settings, unit_of(self.point_map.voxel_size))
        if found.reason:
            found.status, found.map_from_camera, found.covariance = "refused", None, None
        found.seconds = time.perf_counter() - begin
        return found

    def check_map(self) -> None:
        """Raises MapError when the map was not encoded with this network."""
        if self.point_map.checkpoint != self.network.fingerprint:
            raise MapError(
                f"The map was encoded with network '{self.point_map.checkpoint or 'none'}' but this is "
                f"'{self.network.fingerprint}'; encode it again with `ep2ploc map encode`."
            )

    def _find_place(self, query: Query) -> tuple[np.ndarray, float] | str:
        """map_from_camera `(4, 4)` of the place that fits the image best, to be used as a prior, and by how much more
        score than any other place, at the most GREATEST_MARGIN; or why there is none.

        From each of the views that are most like the image one quick pass of matching is made. The best of them, and
        the places that the landmarks around the views know again, are verified by the last pass: the first one's wide
        prior lets wrong places fit nearly as well as the right one. The best is believed when no other place comes near
        its score. In a map whose places no network has learned, landmarks alone propose places, out of all.
        """
        settings, unit = self.settings, unit_of(self.point_map.voxel_size)
        if self.places is None or not len(self.places) or not (self.places.is_learned or settings.landmarks):
            return "no prior pose, and the map has no places to search: give a first guess of the pose"
        views = list(range(len(self.places)))
        if self.places.is_learned:
            image = impression(query.features, query.intrinsics, self.network.config.patch)
            views = sorted(self.places.search(image, settings.places))  # in order of place: maps are read so
        starts = [scaled_pose(self.places.map_from_camera[view], 1 / unit) for view in views]
        tried: list[tuple[float, np.ndarray]] = []
        around = SurroundingLandmarks(MapInUnits(self.point_map))
        landmarks: Iterable[LandmarkView] = chain.from_iterable(map(around.of, starts))  # each when its turn comes
        if self.places.is_learned:
            seen: list[LandmarkView] = []
            for start in starts:
                if one := self._attempt(query, start, settings.scouting):
                    tried.append(one)
                if settings.landmarks:
                    seen += around.of(start)
            landmarks = seen
        best = sorted(range(len(tried)), key=lambda number: -tried[number][0])[: settings.verified_places]
        starts = [tried[number][1] for number in sorted(best)]
        if settings.landmarks:
            sighting = query.sighting
            recognized = self.landmark_finder.recognize(sighting.features, sighting.camera, landmarks)
            starts += [one.map_from_camera for one in recognized]
        if not starts and not self.places.is_learned:
            return "the image shows no landmarks that the map knows: give a first guess of the pose"
        found = [one for start in starts if (one := self._attempt(query, start, settings.passes[-1]))]
        if not found:
            return "nothing of the map is visible from the places that look like the image"
        score, place = max(found, key=lambda one: one[0])
        others = [other for other, pose in found if not _same_place(pose, place)]
        if not others and not self.places.is_learned:  # nothing was compared with it, so that is no evidence
            return place, 0.0
        margin = min([GREATEST_MARGIN, *(score - other for other in others)])
        if margin < settings.least_margin:
            return f"two places fit the image as well (scores {score:.2f} and {score - margin:.2f})"
        return place, margin

    def _attempt(self, query: Query, start: np.ndarray, stage: Pass) -> tuple[float, np.ndarray] | None:
        """Score and pose `(4, 4)` of a single pass from a start `(4, 4)`; None where too little is visible."""
        origin, points = self._surroundings(start)
        guess = torch.from_numpy(moved(start, -origin)).float().to(self.device)
        matching = self._match(query, points, origin, guess, stage, self._box(guess))
        if matching is None:
            return None
        return self._score(query, matching), moved(matching.map_from_camera.double().cpu().numpy(), origin)

    def _surroundings(self, pose: np.ndarray) -> tuple[np.ndarray, MapPoints]:
        """The points around a pose `(4, 4)`, and the local origin `(3,)` that keeps numbers small. Both change from
        grid place to grid place only: maps know the answer to a question that they were asked before."""
        units = MapInUnits(self.point_map)
        origin = units.origin + np.round((pose[:3, 3] - units.origin) / ORIGIN_STEP) * ORIGIN_STEP
        return origin, units.query(origin, self.settings.radius)

    def _box(self, guess: Tensor) -> Box:
        allowed = torch.from_numpy(START_RANGE * self.settings.greatest_distance).float().to(self.device)
        return Box(guess, allowed)

    def _encode(self, image: np.ndarray, camera: Camera) -> Query:
        """Undistorts and resizes the image and runs the image encoder on it."""
        shown = prepare_image(image, camera, self.network.config.image_width, self.device)
        features = self.network.encode_image(shown.tensor, shown.intrinsics)
        scale = np.array([camera.width / shown.camera.width, camera.height / shown.camera.height])
        return Query(features, shown.camera, shown.intrinsics, scale, Sighting(image, camera))

    def _match(
        self,
        query: Query,
        points: MapPoints,
        origin: np.ndarray,
        guess: Tensor,
        stage: Pass,
        box: Box,
        by_parts: bool = False,
    ) -> Matching | None:
        """Removes hidden points, scores the rest against the patches, and finds the pose that the scores like best."""
        view = self._view(query, points, origin, guess, stage)
        if view is None:
            return None
        scores = self._scores(query, view)
        found = search_pose(self._posterior(query, view, scores, guess, box), stage.search, by_parts)
        return Matching(view, scores, found.map_from_camera, found.covariance, found.jackknife)

    def _scores(self, query: Query, view: PointView) -> PatchScores:
        """The points of a view against the patches of the image. Raises CheckpointError when the weights are broken."""
        scores = self.network.classify(view, query.features.patches, query.intrinsics)
        if not torch.isfinite(scores.log_likelihood_none + scores.confidence).all():  # each holds all of its patches
            raise CheckpointError(BROKEN)
        return scores

    def _posterior(self, query: Query, view: PointView, scores: PatchScores, guess: Tensor, box: Box) -> PosePosterior:
        return PosePosterior(
            scores, view.xyz, view.valid, guess, view.sigma[0], query.intrinsics, self.network.config.patch,
            float(self.network.log_pose_temperature.exp()), box,
        )  # fmt: skip

    def _view(
        self, query: Query, points: MapPoints, origin: np.ndarray, guess: Tensor, stage: Pass
    ) -> PointView | None:
        """The points that are visible from a guess `(4, 4)`, where this pass starts."""
        units = MapInUnits(self.point_map)
        xyz = torch.from_numpy(points.xyz + (units.origin - origin).astype(np.float32)).to(self.device)
        camera_from_map = se3.inverse(guess)
        size = (query.camera.width, query.camera.height)
        visible = self.remove_invisible(
            xyz, camera_from_map, query.intrinsics, size, units.voxel_size, self.settings.visibility
        )
        if len(visible.index) < self.settings.least_points:
            return None
        # Within an image cell the point nearest to the middle of its pixel comes first: any fixed order would do.
        order = (visible.pixels - visible.pixels.round()).abs().sum(1)
        place = spread_over_image(visible.pixels, order, stage.points)
        chosen = visible.index[place]
        index = chosen.cpu().numpy()
        descriptors, appearance = self._descriptors(points, xyz, visible.index, place)
        return PointView(
            xyz=xyz[chosen][None],
            attributes=torch.from_numpy(points.attributes[index]).to(self.device)[None],
            descriptors=descriptors[None],
            appearance=None if appearance is None else appearance[None],
            valid=torch.ones(1, len(index), dtype=torch.bool, device=self.device),
            camera_from_map=camera_from_map[None],
            sigma=torch.from_numpy(start_sigma(stage.scale)).float().to(self.device)[None],
        )

    def _descriptors(
        self, points: MapPoints, xyz: Tensor, visible: Tensor, place: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Descriptors `(N, D)` of the points `visible[place]`: the map's, or made of what is visible from here; and
        what the points look like `(N, A)`, where the map knows."""
        width, stored = self.network.config.descriptor_width, points.descriptors
        if stored is None:
            raise MapError("The map holds no descriptors; encode it with `ep2ploc map encode`.")
        kept = torch.from_numpy(stored[visible[place].cpu().numpy()].astype(np.float32)).to(self.device) / 127
        appearance = kept[:, width:] if kept.shape[1] > width else None
        if self.network.config.encode == "map":
            return kept[:, :width], appearance
        attributes = torch.from_numpy(points.attributes[visible.cpu().numpy()]).to(self.device)
        cloud = torch.zeros_like(visible)
        return self.network.encode_points(xyz[visible], attributes, cloud, wanted=place), appearance

    def _decide(self, query: Query, view: PointView, scores: PatchScores) -> Matches:
        """The pixel of each point: its most likely patch, then the pixel inside that patch."""
        network = self.network
        patch, columns = network.config.patch, scores.log_likelihood.shape[-1]
        best = scores.log_posterior[0].argmax(-1)
        inside = best < scores.log_posterior.shape[-1] - 1
        best = best[inside]
        descriptor = query.features.patches[0].flatten(1)[:, best].T
        # In pieces that a CPU core's cache holds.
        pieces = zip(scores.query[0][inside].split(128), descriptor.split(128), strict=True)
        pixel = torch.cat([network.locate_in_patch(*piece) for piece in pieces])
        share = pixel.exp().view(-1, patch, patch)
        step = torch.arange(patch, device=self.device, dtype=torch.float32)
        offset = torch.stack([(share.sum(1) * step).sum(1), (share.sum(2) * step).sum(1)], 1)
        corner = torch.stack([best % columns, torch.div(best, columns, rounding_mode="floor")], 1) * patch
        certainty = scores.log_posterior[0][inside].gather(1, best[:, None]).squeeze(1).exp()
        weights = certainty * scores.confidence[0][inside]
        return Matches(
            points=view.xyz[0][inside].double().cpu().numpy(),
            pixels=(corner + offset).double().cpu().numpy(),
            weights=weights.double().cpu().numpy(),
        )

    def _refine(self, query: Query, passes: list[Matching], origin: np.ndarray, margin: float | None) -> Localization:
        """The pose of the last pass, refined by feature alignment where that is asked for: what each of the two tells
        counts by its covariance, since where features tell little alignment wanders."""
        first, last = passes[0], passes[-1]
        matches = self._decide(query, last.view, last.scores)
        found = self._conclude(query, last, matches, float(first.covariance[:3, :3].trace().sqrt()), origin, margin)
        if not self._is_to_be_aligned(last.view):
            return found
        view = replace(last.view, camera_from_map=se3.inverse(last.map_from_camera)[None])
        farthest = self.settings.passes[-1].scale
        refinement = self._align("search", query, view, last.map_from_camera, self.settings.alignment, farthest)
        assert found.map_from_camera is not None and found.covariance is not None
        assert isinstance(found.evidence, Evidence)
        aligned = refinement.covariance * self.settings.covariance_scale
        pose, covariance = fuse_poses(
            moved(found.map_from_camera, -origin), found.covariance, refinement.poses[-1], aligned
        )
        agreeing = self._agreeing(query, matches, pose)
        if not refinement.given_up and agreeing.sum() < self.settings.least_inliers_kept * found.num_inliers:
            refinement.given_up = "fewer matches agree with its pose"
        if not refinement.given_up:
            found.map_from_camera = found.candidate = moved(pose, origin)
            found.covariance = covariance * self.settings.fused_scale
            show_inliers(found, matches, agreeing, query, origin)
        if self._is_shown(last.view):  # else it is not known what likeness means
            evidence = replace(found.evidence, likeness=refinement.likeness, least_likeness=refinement.least_likeness)
            found = replace(found, evidence=evidence, belief=belief(evidence))
        return replace(found, refinement=refinement.moved(origin))

    def _wants_landmarks(self, found: Localization, prior: np.ndarray) -> bool:
        """Whether landmarks are to be asked: they take longer than all else, so not for a pose that is sure."""
        evidence = found.evidence
        assert isinstance(evidence, Evidence) and found.covariance is not None
        unsure = math.sqrt(found.covariance[:3, :3].trace()) > self.settings.sure_sigma
        doubtful = bool(doubt(found, prior, self.settings, unit_of(self.point_map.voxel_size)))
        return self.settings.landmarks and (evidence.margin is not None or unsure or doubtful)

    def _ask_landmarks(
        self, query: Query, points: MapPoints, origin: np.ndarray, search: LandmarkSearch, box: Box, found: Localization
    ) -> Localization:
        """The last pass and the refinement once more, from the pose that the landmarks give, and counted together with
        that; what was found without them where they give none, or one that is less likely to be right."""
        seen = search.result()
        if seen is None:
            return found
        finder, camera = self.landmark_finder, query.sighting.camera
        guess = torch.from_numpy(moved(seen.map_from_camera, -origin)).float().to(self.device)
        matching = self._match(query, points, origin, guess, self.settings.passes[-1], box, by_parts=True)
        if matching is None:
            return found
        assert isinstance(found.evidence, Evidence)
        again = self._refine(query, [matching], origin, found.evidence.margin)
        assert again.map_from_camera is not None and again.covariance is not None
        assert isinstance(again.evidence, Evidence)
        pose, covariance = fuse_poses(
            again.map_from_camera, again.covariance, seen.map_from_camera,
            seen.covariance * self.settings.landmarks_scale,
        )  # fmt: skip
        agreeing = finder.agreeing(seen, pose, camera)
        if agreeing < finder.settings.least_inliers:  # the network says otherwise, and the two are not reconciled
            return found
        pixels = (again.pixels + 0.5) / query.scale - 0.5
        kept = self._agreeing(query, Matches(again.points_map, pixels, np.ones(len(pixels))), pose)
        evidence = replace(again.evidence, spread=found.evidence.spread, landmarks=agreeing)
        assert found.map_from_camera is not None
        if se3.pose_error(found.map_from_camera, pose)[0] > CONTRADICTION and belief(evidence) < found.belief:
            return found
        return replace(
            again,
            map_from_camera=pose,
            candidate=pose,
            covariance=covariance + np.diag(np.repeat(self.settings.landmarks_sigma, 3) ** 2),
            num_inliers=int(kept.sum()),
            points_map=again.points_map[kept],
            pixels=again.pixels[kept],
            evidence=evidence,
            belief=belief(evidence),
        )

    def _is_to_be_aligned(self, view: PointView) -> bool:
        """Whether the pose found from these points is to be refined; "auto" leaves it where no images made the map."""
        if self.settings.refine == "none" or self.network.alignment_head is None:
            return False
        return self.settings.refine != "auto" or self._is_shown(view)

    def _is_shown(self, view: PointView) -> bool:
        """Whether mapping images show most of the points."""
        assert self.network.alignment_head is not None
        known = self.network.alignment_head.known(view.appearance)
        return known is not None and float(known.float().mean()) > LEAST_SHOWN

    def _follow(self, query: Query, points: MapPoints, origin: np.ndarray, guess: Tensor) -> Localization | None:
        """The prior refined by feature alignment alone; None where that is not certain to be right, or where images do
        not show what the points look like: then nothing could tell."""
        settings = self.settings
        view = self._view(query, points, origin, guess, replace(settings.passes[-1], points=settings.alignment_points))
        if view is None or not self._is_shown(view):
            return None
        refinement = self._align("prior", query, view, guess, settings.following, settings.greatest_distance)
        if not is_certain(refinement, settings):
            return None
        refinement = refinement.moved(origin)
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

    def _align(
        self, of: str, query: Query, view: PointView, start: Tensor, settings: AlignmentSettings, farthest: float
    ) -> Refinement:
        """Aligns the features of a view's points from a pose `(4, 4)`, by no more than `farthest` times START_RANGE."""
        view = first_points(view, self.settings.alignment_points)
        dense = self.network.dense_features(query.features)
        levels = self.network.align_to(dense, torch.zeros(1, dtype=torch.long, device=self.device), view)
        prior = torch.from_numpy(start_sigma(1.0)).float().to(self.device)
        found = align_features(levels, view.xyz, start[None], query.intrinsics, settings, prior)
        if found.covariance is None:
            raise CheckpointError(BROKEN)
        trace = trace_alignment(levels, view.xyz, query.intrinsics, found) if self.settings.trace else None
        return Refinement.of_alignment(of, found, view.xyz, query.scale, farthest, trace)

    def _conclude(
        self,
        query: Query,
        matching: Matching,
        matches: Matches,
        spread: float,
        origin: np.ndarray,
        margin: float | None,
    ) -> Localization:
        """The pose of a matching with the evidence for it; spread and margin: see `Evidence`."""
        pose = matching.map_from_camera.double().cpu().numpy()
        agreeing = self._agreeing(query, matches, pose)
        assert matching.jackknife is not None
        covariance = (matching.covariance + matching.jackknife.covariance).double().numpy()
        evidence = Evidence(
            score=self._score(query, matching),
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
        show_inliers(found, matches, agreeing, query, origin)
        return found

    def _agreeing(self, query: Query, matches: Matches, map_from_camera: np.ndarray) -> np.ndarray:
        """Which matches `(M,)` agree with a pose `(4, 4)`."""
        errors = reprojection_errors(map_from_camera, matches.points, matches.pixels, query.camera.matrix)
        agreeing: np.ndarray = errors < self.settings.match_threshold
        return agreeing

    def _score(self, query: Query, matching: Matching) -> float:
        """How much likelier the image makes the places of the points inside it than the prior does: nats per point. A
        pose that keeps less than a third of the points inside gets less."""
        camera_from_map = se3.inverse(matching.map_from_camera)[None]
        pixels, depth = project_pinhole(query.intrinsics, se3.apply(camera_from_map, matching.view.xyz))
        inside = (depth > 0.5) & (pixels > -0.5).all(-1)
        inside &= (pixels[..., 0] < query.camera.width - 0.5) & (pixels[..., 1] < query.camera.height - 0.5)
        scores = matching.scores.tempered(self.settings.score_power)
        evidence = pose_log_likelihood(
            scores, matching.view.xyz, inside, camera_from_map[None], query.intrinsics, self.network.config.patch
        )
        weight = scores.confidence.sum()
        return float(evidence / (scores.confidence * inside).sum().clamp(min=0.3 * weight))

    @staticmethod
    def _refuse(reason: str, begin: float) -> Localization:
        return Localization("refused", reason, seconds=time.perf_counter() - begin)


def _same_place(pose: np.ndarray, other: np.ndarray) -> bool:
    """Whether two poses `(4, 4)` found from different views may be the same one, so that neither is the other's rival:
    from a view that is farther off than its search reaches one ends beside the true pose."""
    metres, radians = se3.pose_error(pose, other)
    return bool(metres < 2 * START_RANGE[0] and radians < 2 * START_RANGE[4])
