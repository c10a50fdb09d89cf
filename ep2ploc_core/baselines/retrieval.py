"""Image retrieval: the pose of that view of the map whose global descriptor is most like the image's."""

from __future__ import annotations

import time

import numpy as np
import torch

from ep2ploc_core.baselines.prior_box import share_of_box
from ep2ploc_core.camera import Camera
from ep2ploc_core.errors import MapError
from ep2ploc_core.localization import Localization
from ep2ploc_core.map.place_index import PlaceIndex, open_places
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_core.map.unit import scaled_pose, unit_of
from ep2ploc_core.model.ep2ploc import EP2PLoc
from ep2ploc_core.model.image_input import prepare_image


class RetrievalFinder:
    """Answers with a view of the map, as it was stored when the map was encoded with this network; never refuses, but
    where none of the views lies near the first guess."""

    def __init__(self, network: EP2PLoc, point_map: PointMap, device: str | torch.device = "cpu") -> None:
        """Raises MapError where the map has no views described by this network."""
        places = open_places(point_map) if point_map.checkpoint == network.fingerprint else None
        if places is None or not len(places):
            raise MapError(
                f"The map {point_map.path} has no places described by the network '{network.fingerprint}'; encode it "
                "with `ep2ploc map encode`, or adapt it with `ep2ploc train --site`."
            )
        self.network = network.eval().to(device)
        self.places = places
        self.unit = unit_of(point_map.voxel_size)
        self.device = torch.device(device)

    @torch.inference_mode()
    def localize(self, image: np.ndarray, camera: Camera, prior: np.ndarray | None = None) -> Localization:
        """As `Localizer.localize`, but without a covariance. With a prior only the views in its box compete."""
        begin = time.perf_counter()
        shown = prepare_image(image, camera, self.network.config.image_width, self.device)
        described = self.network.encode_image(shown.tensor, shown.intrinsics).global_descriptor[0]
        places = self.places if prior is None else self._near(prior)
        if not len(places):
            reason = "no view of the map lies near the first guess"
            return Localization("refused", reason, seconds=time.perf_counter() - begin)
        best = places.search(described.float().cpu().numpy(), 1)[0]
        pose = places.map_from_camera[best]
        return Localization("ok", map_from_camera=pose, candidate=pose, seconds=time.perf_counter() - begin)

    def _near(self, prior: np.ndarray) -> PlaceIndex:
        poses = self.places.map_from_camera
        near = share_of_box(scaled_pose(prior, 1 / self.unit), scaled_pose(poses, 1 / self.unit)) <= 1
        return PlaceIndex(poses[near], self.places.descriptors[near])
