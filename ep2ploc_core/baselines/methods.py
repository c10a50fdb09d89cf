"""What can be judged in place of the network, by the names of `ep2ploc evaluate --method`."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import torch

from ep2ploc_core.baselines.alignment import AlignmentFinder
from ep2ploc_core.baselines.depth_edges import EDGE_PLAN, DepthEdges
from ep2ploc_core.baselines.nid import NID_PLAN, InformationDistance
from ep2ploc_core.baselines.sift import SiftFinder
from ep2ploc_core.landmarks.lifting import lift_features
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_core.map.sources import mapping_images, reopen_source
from ep2ploc_core.map.unit import MapInUnits

CLASSICAL = ("nid", "edges", "sift")  # these know nothing of any network; a map need not be encoded for them


def classical_finder(
    method: str, point_map: PointMap, progress: Callable[[int, int], None] = lambda done, total: None
) -> AlignmentFinder | SiftFinder:
    """The finder of a method of CLASSICAL in a map. progress: of what it does before the first image. Raises InputError
    where it needs the mapping run's images and there are none."""
    # One core, as for the localizer: else their seconds could not be compared.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if method == "nid":
        return AlignmentFinder(point_map, InformationDistance(), NID_PLAN)
    if method == "edges":
        return AlignmentFinder(point_map, DepthEdges(), EDGE_PLAN)
    images = mapping_images(reopen_source(point_map.info.source))  # without those held out
    views = []
    for number, image in enumerate(images):
        views.append(lift_features(point_map, image))
        progress(number + 1, len(images))
    units = MapInUnits(point_map)
    return SiftFinder([units.view(view) for view in views], units.unit)
