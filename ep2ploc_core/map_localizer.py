"""The localizer of a map: the network that it was encoded with, and its places."""

from __future__ import annotations

from pathlib import Path

import torch

from ep2ploc_core.localizer import Localizer
from ep2ploc_core.localizer_settings import LocalizerSettings
from ep2ploc_core.map.place_index import open_places, places_to_search
from ep2ploc_core.map.point_map import SITE_CHECKPOINT, PointMap
from ep2ploc_core.model.checkpoint import load_network
from ep2ploc_core.training.processes import choose_device


def open_localizer(
    map_path: Path, checkpoint: str, device: str, settings: LocalizerSettings, search: bool
) -> tuple[Localizer, PointMap]:
    """The localizer and its map.

    checkpoint: name or file of the weights; "auto": the map's own, else those shipped. `search`: without a first guess
    too. Raises MapError and CheckpointError where they cannot be read.
    """
    point_map = PointMap.open(map_path)
    if checkpoint == "auto":
        adapted = map_path / SITE_CHECKPOINT
        checkpoint = str(adapted) if adapted.exists() else "edge"
    where = choose_device(device)
    # A second thread hardly makes an image faster; on busy cores the two wait for each other, many times as long.
    torch.set_num_threads(1)
    network = load_network(checkpoint, where)
    find_places = places_to_search if settings.landmarks else open_places
    places = find_places(point_map) if search else None
    return Localizer(network, point_map, where, settings, places), point_map
