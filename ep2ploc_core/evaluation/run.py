"""An evaluation from files: opens what a protocol needs, runs it, and adds where everything came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ep2ploc_core.baselines.methods import CLASSICAL, classical_finder
from ep2ploc_core.baselines.retrieval import RetrievalFinder
from ep2ploc_core.datasets.queries import Queries
from ep2ploc_core.errors import InputError
from ep2ploc_core.evaluation.mapping_distance import SAME_PLACE_METRES, distance_to_mapping
from ep2ploc_core.evaluation.protocols import (
    GlobalProtocol,
    PoseFinder,
    Progress,
    TrackingProtocol,
    evaluate_global,
    evaluate_tracking,
)
from ep2ploc_core.evaluation.registration import RegistrationProtocol, evaluate_registration, scan_localizer
from ep2ploc_core.evaluation.retrieval import RetrievalProtocol, evaluate_retrieval
from ep2ploc_core.localizer import Localizer
from ep2ploc_core.localizer_settings import LocalizerSettings
from ep2ploc_core.map.place_index import PlaceIndex, describe_image
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_core.map.sources import open_source
from ep2ploc_core.map.unit import unit_of
from ep2ploc_core.map_localizer import open_localizer
from ep2ploc_core.model.checkpoint import load_network
from ep2ploc_core.training.processes import choose_device

SHIPPED = "edge"
METHODS = ("network", "retrieval", *CLASSICAL)


@dataclass(frozen=True)
class Evaluation:
    """What is asked for. noise: metres and degrees, or the protocol's own; foreign: queries of another site;
    checkpoint: name or file of weights, or "auto"; refine, landmarks: see `LocalizerSettings`; device: cpu, cuda or
    auto; method: what is judged, one of METHODS."""

    protocol: str
    noise: tuple[float, float] | None = None
    repeats: int = 1
    seed: int = 0
    swap: bool = False
    foreign: Queries | None = None
    checkpoint: str = "auto"
    refine: str = "auto"
    landmarks: bool = True
    device: str = "auto"
    method: str = "network"


def evaluate_in_map(
    map_path: Path, queries: Queries, asked: Evaluation, progress: Progress
) -> tuple[dict[str, Any], PointMap]:
    """The report of "tracking", "global" or "retrieval", and the map. The summary has `queries_at_mapping_images` where
    the map's recording has images: queries that were most likely not held out."""
    finder, point_map, fingerprint = _open_finder(map_path, asked, progress)
    unit = unit_of(point_map.voxel_size)
    if asked.protocol == "tracking":
        metres, degrees = asked.noise or (2.0 * unit, 10.0)
        tracking = TrackingProtocol(metres, degrees, asked.repeats, asked.seed, asked.swap)
        report = evaluate_tracking(finder, queries, tracking, progress, asked.foreign)
    elif asked.protocol == "global":
        report = evaluate_global(finder, queries, GlobalProtocol(asked.swap), progress, asked.foreign)
    else:
        assert isinstance(finder, Localizer)  # no other method ranks views
        retrieval = RetrievalProtocol(tuple(unit * metres for metres in RetrievalProtocol.metres), swap=asked.swap)
        report = evaluate_retrieval(
            lambda image, camera: describe_image(finder.network, image, camera),
            _places(finder, map_path), queries, retrieval, progress,
        )  # fmt: skip
    if queries.map_from_camera is not None:
        distance = distance_to_mapping(point_map, queries.map_from_camera)
        if distance is not None:
            for row in report["results"]:
                row["distance_to_mapping_m"] = round(float(distance[row["query"]]), 3)
            report["summary"]["queries_at_mapping_images"] = int((distance < SAME_PLACE_METRES).sum())
    origin = {"map": str(map_path), "metres_per_unit": unit, **_origin(queries, asked, fingerprint)}
    return {**origin, **report}, point_map


def evaluate_in_scans(recording: Path, queries: Queries, asked: Evaluation, progress: Progress) -> dict[str, Any]:
    """The report of "registration": each query in the map of its own scan of the recording."""
    source = open_source(recording)
    torch.set_num_threads(1)  # as for a map
    network = load_network(SHIPPED if asked.checkpoint == "auto" else asked.checkpoint, choose_device(asked.device))
    metres, degrees = asked.noise or (RegistrationProtocol.metres, RegistrationProtocol.degrees)
    registration = RegistrationProtocol(metres, degrees, asked.repeats, asked.seed, asked.swap)
    make_finder = scan_localizer(network, LocalizerSettings(refine=asked.refine))
    report = evaluate_registration(make_finder, source, queries, registration, progress)
    return {"recording": str(recording), **_origin(queries, asked, network.fingerprint), **report}


def _open_finder(map_path: Path, asked: Evaluation, progress: Progress) -> tuple[PoseFinder, PointMap, str]:
    """What is judged, its map, and the fingerprint of its network, "" where it has none."""
    if asked.method in CLASSICAL:
        point_map = PointMap.open(map_path)
        return classical_finder(asked.method, point_map, progress), point_map, ""
    search = asked.protocol != "tracking" or asked.method == "retrieval"
    settings = LocalizerSettings(refine=asked.refine, landmarks=asked.landmarks)
    localizer, point_map = open_localizer(map_path, asked.checkpoint, asked.device, settings, search)
    fingerprint = localizer.network.fingerprint
    if asked.method == "network":
        return localizer, point_map, fingerprint
    places = _places(localizer, map_path)
    return RetrievalFinder(localizer.network, places, unit_of(point_map.voxel_size)), point_map, fingerprint


def _places(localizer: Localizer, map_path: Path) -> PlaceIndex:
    """The views of the map. Raises MapError where they are another network's, InputError where there are none."""
    localizer.check_map()
    if not localizer.places or not localizer.places.is_learned:
        raise InputError(f"The map {map_path} has no places; `ep2ploc train --site` finds and learns them.")
    return localizer.places


def _origin(queries: Queries, asked: Evaluation, fingerprint: str) -> dict[str, Any]:
    return {
        "queries": str(queries.path),
        "method": asked.method,
        "network": fingerprint,
        "refine": asked.refine,
        "landmarks": asked.landmarks,
    }
