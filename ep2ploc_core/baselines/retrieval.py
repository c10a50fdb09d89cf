"""Image retrieval: the pose of that view of the map whose global descriptor is most like the image's."""

from __future__ import annotations

import time

import numpy as np

from ep2ploc_core.camera import Camera
from ep2ploc_core.localization import Localization
from ep2ploc_core.map.place_index import PlaceIndex, describe_image
from ep2ploc_core.model.ep2ploc import EP2PLoc

# How far views may lie from a first guess, in units of `map.unit` and radians: as far as the pose may, and half of the
# way from view to view. Views are level, which a camera or a guess need not be, so no box is asked for.
FARTHEST, MOST_TURNED = 3.5, np.radians(20)


class RetrievalFinder:
    """Answers with a view of the map; never refuses, but where none of the views lies near the first guess."""

    def __init__(self, network: EP2PLoc, places: PlaceIndex, unit: float = 1.0) -> None:
        """places: as described by this network, of a map whose unit is `unit` metres."""
        self.network = network.eval()
        self.places = places
        self.unit = unit

    def localize(self, image: np.ndarray, camera: Camera, prior: np.ndarray | None = None) -> Localization:
        """As `Localizer.localize`, but without a covariance. With a prior only the views near it compete."""
        begin = time.perf_counter()
        described = describe_image(self.network, image, camera)
        places = self.places if prior is None else self._near(prior)
        if not len(places):
            reason = "no view of the map lies near the first guess"
            return Localization("refused", reason, seconds=time.perf_counter() - begin)
        pose = places.map_from_camera[places.search(described, 1)[0]]
        return Localization("ok", map_from_camera=pose, candidate=pose, seconds=time.perf_counter() - begin)

    def _near(self, prior: np.ndarray) -> PlaceIndex:
        poses = self.places.map_from_camera
        away = np.linalg.norm(poses[:, :3, 3] - prior[:3, 3], axis=1)
        alike = poses[:, :3, 2] @ prior[:3, 2]
        near = (away <= FARTHEST * self.unit) & (alike >= np.cos(MOST_TURNED))
        return PlaceIndex(poses[near], self.places.descriptors[near], self.places.depths[near])
