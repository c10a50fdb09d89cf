"""How far queries lie from what the network saw of the site: the images of the mapping run."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from ep2ploc_core.errors import InputError
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_core.map.sources import mapping_images, reopen_source

SAME_PLACE_METRES = 0.05  # nearer than this to a mapping image a query may well be that image


def distance_to_mapping(point_map: PointMap, map_from_camera: np.ndarray) -> np.ndarray | None:
    """Metres `(N,)` from each of the poses `(N, 4, 4)` to the nearest image that an adaptation to the map learns from;
    None where the map's recording is gone or has no images."""
    try:
        images = mapping_images(reopen_source(point_map.info.source))
    except (InputError, OSError):
        return None
    mapped = np.stack([image.map_from_camera[:3, 3] for image in images])
    distance: np.ndarray = cKDTree(mapped).query(map_from_camera[:, :3, 3])[0]
    return distance
