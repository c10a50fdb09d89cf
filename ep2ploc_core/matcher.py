"""One image against one map: from a guess of the pose to the pose that the network's scores like best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ep2ploc_core import se3
from ep2ploc_core.camera import project_pinhole
from ep2ploc_core.datasets.sampling import START_RANGE, spread_over_image, start_sigma
from ep2ploc_core.errors import CheckpointError, MapError
from ep2ploc_core.localizer_settings import LocalizerSettings, Pass
from ep2ploc_core.map.point_map import MapPoints, MapSource
from ep2ploc_core.map.unit import MapInUnits
from ep2ploc_core.matching import Matches, Matching, Query
from ep2ploc_core.model.ep2ploc import EP2PLoc, PointView
from ep2ploc_core.model.patch_classifier import PatchScores
from ep2ploc_core.pose.pnp import reprojection_errors
from ep2ploc_core.pose.pose_posterior import Box, PosePosterior, pose_log_likelihood
from ep2ploc_core.pose.score_search import search_pose
from ep2ploc_core.se3 import moved
from ep2ploc_core.visibility import remove_invisible

ORIGIN_STEP = 4.0  # units; from one local origin to the next
BROKEN = "The network's answers are no numbers: its weights are broken; train it again."


@dataclass
class Surroundings:
    """The map around a prior, in units: its points, and where they are, `xyz` `(N, 3)` float32, and the prior, `guess`
    `(4, 4)` float32 map_from_camera, both relative to a local `origin` `(3,)` that keeps numbers small; `box`: how far
    the pose may be from there."""

    origin: np.ndarray
    points: MapPoints
    xyz: Tensor
    guess: Tensor
    box: Box

    def local(self, map_from_camera: np.ndarray) -> Tensor:
        """A pose `(4, 4)` of the map, relative to the origin."""
        return torch.from_numpy(moved(map_from_camera, -self.origin)).to(self.guess)


class Matcher:
    """The passes of matching of one image in one map. Poses are map_from_camera, lengths units of `map.unit`, pixels
    those of the network's image."""

    remove_invisible = staticmethod(remove_invisible)

    def __init__(self, network: EP2PLoc, point_map: MapSource, settings: LocalizerSettings, query: Query) -> None:
        self.network = network
        self.point_map = point_map
        self.settings = settings
        self.query = query
        self._map = MapInUnits(point_map)
        self._device = query.intrinsics.device

    def around(self, prior: np.ndarray) -> Surroundings:
        """The map around a pose `(4, 4)`. Points and origin change from grid place to grid place only: maps know the
        answer to a question that they were asked before."""
        map_origin = self._map.origin
        origin = map_origin + np.round((prior[:3, 3] - map_origin) / ORIGIN_STEP) * ORIGIN_STEP
        points = self._map.query(origin, self.settings.radius)
        xyz = torch.from_numpy(points.xyz + (map_origin - origin).astype(np.float32)).to(self._device)
        guess = torch.from_numpy(moved(prior, -origin)).float().to(self._device)
        allowed = torch.from_numpy(START_RANGE * self.settings.greatest_distance).float().to(self._device)
        return Surroundings(origin, points, xyz, guess, Box(guess, allowed))

    def attempt(self, prior: np.ndarray, stage: Pass) -> tuple[float, np.ndarray] | None:
        """Score (nats per point) and pose `(4, 4)` of a single pass from a prior `(4, 4)`, both in the map; None where
        too little is visible."""
        around = self.around(prior)
        matching = self.match(around, around.guess, stage)
        if matching is None:
            return None
        return self.score(matching), moved(matching.map_from_camera.double().cpu().numpy(), around.origin)

    def match(self, around: Surroundings, guess: Tensor, stage: Pass, by_parts: bool = False) -> Matching | None:
        """Removes the points hidden from a guess `(4, 4)`, scores the rest against the patches, and finds the pose that
        the scores like best; None where too little is visible. by_parts: with the jackknife's covariance too. Raises
        CheckpointError when the weights are broken, MapError when the map holds no descriptors."""
        view = self.view(around, guess, stage)
        if view is None:
            return None
        scores = self.network.classify(view, self.query.features.patches, self.query.intrinsics)
        if not torch.isfinite(scores.log_likelihood_none + scores.confidence).all():  # each holds all of its patches
            raise CheckpointError(BROKEN)
        posterior = PosePosterior(
            scores, view.xyz, view.valid, guess, view.sigma[0], self.query.intrinsics, self.network.config.patch,
            float(self.network.log_pose_temperature.exp()), around.box,
        )  # fmt: skip
        found = search_pose(posterior, stage.search, by_parts)
        return Matching(view, scores, found.map_from_camera, found.covariance, found.jackknife)

    def view(self, around: Surroundings, guess: Tensor, stage: Pass) -> PointView | None:
        """Those of the points visible from a guess `(4, 4)` that a pass matches, spread over the image; None where too
        few are visible. Raises MapError when the map holds no descriptors."""
        query, camera_from_map = self.query, se3.inverse(guess)
        size = (query.camera.width, query.camera.height)
        visible = self.remove_invisible(
            around.xyz, camera_from_map, query.intrinsics, size, self._map.voxel_size, self.settings.visibility
        )
        if len(visible.index) < self.settings.least_points:
            return None
        # Within an image cell the point nearest to the middle of its pixel comes first: any fixed order would do.
        order = (visible.pixels - visible.pixels.round()).abs().sum(1)
        place = spread_over_image(visible.pixels, order, stage.points)
        chosen = visible.index[place]
        index = chosen.cpu().numpy()
        descriptors, appearance = self._descriptors(around, visible.index, place)
        return PointView(
            xyz=around.xyz[chosen][None],
            attributes=torch.from_numpy(around.points.attributes[index]).to(self._device)[None],
            descriptors=descriptors[None],
            appearance=None if appearance is None else appearance[None],
            valid=torch.ones(1, len(index), dtype=torch.bool, device=self._device),
            camera_from_map=camera_from_map[None],
            sigma=torch.from_numpy(start_sigma(stage.scale)).float().to(self._device)[None],
        )

    def _descriptors(self, around: Surroundings, visible: Tensor, place: Tensor) -> tuple[Tensor, Tensor | None]:
        """Descriptors `(N, D)` of the points `visible[place]`: the map's, or made of what is visible from here; and
        what the points look like `(N, A)`, where the map knows."""
        width, stored = self.network.config.descriptor_width, around.points.descriptors
        if stored is None:
            raise MapError("The map holds no descriptors; encode it with `ep2ploc map encode`.")
        kept = torch.from_numpy(stored[visible[place].cpu().numpy()].astype(np.float32)).to(self._device) / 127
        appearance = kept[:, width:] if kept.shape[1] > width else None
        if self.network.config.encode == "map":
            return kept[:, :width], appearance
        attributes = torch.from_numpy(around.points.attributes[visible.cpu().numpy()]).to(self._device)
        cloud = torch.zeros_like(visible)
        return self.network.encode_points(around.xyz[visible], attributes, cloud, wanted=place), appearance

    def decide(self, view: PointView, scores: PatchScores) -> Matches:
        """The pixel of each point: its most likely patch, then the pixel inside that patch."""
        network = self.network
        patch, columns = network.config.patch, scores.log_likelihood.shape[-1]
        best = scores.log_posterior[0].argmax(-1)
        inside = best < scores.log_posterior.shape[-1] - 1
        best = best[inside]
        descriptor = self.query.features.patches[0].flatten(1)[:, best].T
        # In pieces that a CPU core's cache holds.
        pieces = zip(scores.query[0][inside].split(128), descriptor.split(128), strict=True)
        pixel = torch.cat([network.locate_in_patch(*piece) for piece in pieces])
        share = pixel.exp().view(-1, patch, patch)
        step = torch.arange(patch, device=self._device, dtype=torch.float32)
        offset = torch.stack([(share.sum(1) * step).sum(1), (share.sum(2) * step).sum(1)], 1)
        corner = torch.stack([best % columns, torch.div(best, columns, rounding_mode="floor")], 1) * patch
        certainty = scores.log_posterior[0][inside].gather(1, best[:, None]).squeeze(1).exp()
        weights = certainty * scores.confidence[0][inside]
        return Matches(
            points=view.xyz[0][inside].double().cpu().numpy(),
            pixels=(corner + offset).double().cpu().numpy(),
            weights=weights.double().cpu().numpy(),
        )

    def agreeing(self, matches: Matches, map_from_camera: np.ndarray) -> np.ndarray:
        """Which matches `(M,)` agree with a pose `(4, 4)`, both relative to the same origin."""
        errors = reprojection_errors(map_from_camera, matches.points, matches.pixels, self.query.camera.matrix)
        agreeing: np.ndarray = errors < self.settings.match_threshold
        return agreeing

    def score(self, matching: Matching) -> float:
        """How much likelier the image makes the places of the points inside it than the prior does: nats per point. A
        pose that keeps less than a third of the points inside gets less."""
        query, camera_from_map = self.query, se3.inverse(matching.map_from_camera)[None]
        pixels, depth = project_pinhole(query.intrinsics, se3.apply(camera_from_map, matching.view.xyz))
        inside = (depth > 0.5) & (pixels > -0.5).all(-1)
        inside &= (pixels[..., 0] < query.camera.width - 0.5) & (pixels[..., 1] < query.camera.height - 0.5)
        scores = matching.scores.tempered(self.settings.score_power)
        evidence = pose_log_likelihood(
            scores, matching.view.xyz, inside, camera_from_map[None], query.intrinsics, self.network.config.patch
        )
        weight = scores.confidence.sum()
        return float(evidence / (scores.confidence * inside).sum().clamp(min=0.3 * weight))
