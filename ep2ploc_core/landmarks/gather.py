"""Gives a map its landmarks, from the images of the recording that it was made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ep2ploc_core.datasets.posed_image import PosedImage
from ep2ploc_core.errors import InputError
from ep2ploc_core.landmarks.lifting import lift_features
from ep2ploc_core.landmarks.store import LandmarkWriter
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_core.map.unit import scaled_pose, unit_of
from ep2ploc_core.map.views import apart
from ep2ploc_core.progress import console

MOST_LANDMARKS = 1500  # of an image
SPACING, TURN = 1.0, np.radians(10)  # units and radians: what images nearer to one before show adds little


def gather_landmarks(
    point_map: PointMap,
    images: list[PosedImage],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Stores the landmarks that the images show in the map. Images that cannot be read are left out, and told."""
    unit = unit_of(point_map.voxel_size)
    poses = np.array([image.map_from_camera for image in images]).reshape(-1, 4, 4)
    chosen = [images[number] for number in apart(scaled_pose(poses, 1 / unit), SPACING, float(TURN))]
    unreadable = []
    with LandmarkWriter(point_map.path) as writer:
        for number, image in enumerate(chosen):
            try:
                writer.add(lift_features(point_map, image).strongest(MOST_LANDMARKS))
            except InputError as error:
                unreadable.append(error)
            progress(number + 1, len(chosen))
    if unreadable:
        console.print(f"{len(unreadable)} of {len(chosen)} images give no landmarks: {unreadable[0]}")
