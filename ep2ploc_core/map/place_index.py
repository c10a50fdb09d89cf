"""Finds the views of a map near which an image may have been taken, by their global descriptors and their depths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ep2ploc_core.camera import Camera
from ep2ploc_core.errors import MapError
from ep2ploc_core.map.array_file import load_array, save_array
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_core.map.unit import scaled_pose, unit_of
from ep2ploc_core.map.views import CELLS, apart, choose_views, look, sample_at_cells
from ep2ploc_core.model.ep2ploc import MIDDLE_LOG_DEPTH, EP2PLoc, ImageFeatures
from ep2ploc_core.model.image_input import prepare_image

NO_DEPTH = -128  # of a cell without points
MOST_LANDMARK_VIEWS = 3000  # that are looked at where no network has learned places: four seconds of work
LANDMARKS_APART = 20.0  # units; less than the radius in which landmarks are looked for around each place
LOG_DEPTHS = (-1.5, 5.0)  # of the codes; 0.22 to 148 units
DEPTH_ERROR, OUTLIERS = 0.2, 0.05  # by which an image errs in the logarithm of a depth, and how often by anything
_CODES = np.arange(256, dtype=np.uint8).view(np.int8)  # in the order in which a code's byte is a number


@dataclass
class Impression:
    """What an image tells of its place: the unit global `descriptor` `(G,)`, and the `log_depth` `(CELLS,)` at the rays
    of a view's cells, NaN where the image tells nothing."""

    descriptor: np.ndarray
    log_depth: np.ndarray


@dataclass
class PlaceIndex:
    """map_from_camera `(V, 4, 4)` float64, unit descriptors `(V, G)` float16 and `depths` `(V, CELLS)` int8, coded by
    `encode_depth`, of V views; may be memory-mapped. Where no network has learned them there are no descriptors, G is
    0, and nothing to `search` by."""

    map_from_camera: np.ndarray
    descriptors: np.ndarray
    depths: np.ndarray

    def __len__(self) -> int:
        return len(self.map_from_camera)

    @property
    def is_learned(self) -> bool:
        """Whether there is something to search by."""
        return self.descriptors.shape[1] > 0

    def search(self, image: Impression, count: int) -> list[int]:
        """The `count` views from near which an image is likeliest, best first: in turn one of those most like its
        global descriptor, which knows again what images of the mapping run showed, and one of those whose depths are
        most like what the image tells of them, which needs none to have been there."""
        told = [self._likeness(image), self._depth_likelihood(image)]
        rankings = [_best(scores, count) for scores in told if scores is not None]
        in_turn = np.stack(rankings, 1).ravel()
        _, first = np.unique(in_turn, return_index=True)
        return [int(index) for index in in_turn[np.sort(first)][:count]]

    def _likeness(self, image: Impression) -> np.ndarray:
        descriptor = image.descriptor.astype(np.float32)
        blocks = self._blocks(self.descriptors, 16384)
        return np.concatenate([block.astype(np.float32) @ descriptor for block in blocks])

    def _depth_likelihood(self, image: Impression) -> np.ndarray | None:
        """How much likelier the image's depths are at each view than at the average view `(V,)`, in nats; an image errs
        in single cells by any amount. None where no view shows a cell of which the image tells anything."""
        known = np.isfinite(image.log_depth)[:, None] & (_CODES != NO_DEPTH)
        count = self._counts * known
        if not count.any():
            return None
        error = np.abs(decode_depth(_CODES) - np.nan_to_num(image.log_depth)[:, None])
        likelihood = np.log(OUTLIERS + np.exp(error / -DEPTH_ERROR))  # of each code in each cell
        average = (count * likelihood).sum(1, keepdims=True) / np.maximum(count.sum(1, keepdims=True), 1)
        table = np.where(known, likelihood - average, 0).astype(np.float32).ravel()
        return np.concatenate([table[_row_in_table(block)].sum(1) for block in self._blocks(self.depths, 2048)])

    @cached_property
    def _counts(self) -> np.ndarray:
        """How many views have each code in each cell, `(CELLS, 256)`."""
        counts = np.zeros(CELLS * len(_CODES), np.int64)
        for block in self._blocks(self.depths, 2048):
            counts += np.bincount(_row_in_table(block).ravel(), minlength=len(counts))
        return counts.reshape(CELLS, -1)

    def _blocks(self, rows: np.ndarray, size: int) -> list[np.ndarray]:
        """So many views at a time: as many as stay in a core's cache."""
        return [rows[start : start + size] for start in range(0, max(1, len(self)), size)]


NO_PLACES = PlaceIndex(np.zeros((0, 4, 4)), np.zeros((0, 1), np.float16), np.zeros((0, CELLS), np.int8))


def encode_depth(log_depth: np.ndarray) -> np.ndarray:
    """Logarithms of depths in units as int8, NO_DEPTH where they are NaN."""
    code = (log_depth - LOG_DEPTHS[0]) / (LOG_DEPTHS[1] - LOG_DEPTHS[0]) * 254 - 127
    return np.where(np.isfinite(code), np.clip(np.nan_to_num(code).round(), -127, 127), NO_DEPTH).astype(np.int8)


def decode_depth(code: np.ndarray) -> np.ndarray:
    """The inverse, float32; without meaning where the code is NO_DEPTH."""
    share = (code.astype(np.float32) + 127) / 254
    return LOG_DEPTHS[0] + share * np.float32(LOG_DEPTHS[1] - LOG_DEPTHS[0])


def _row_in_table(codes: np.ndarray) -> np.ndarray:
    """Which row of a table `(CELLS * 256,)` is that of each code `(V, CELLS)`."""
    return np.ascontiguousarray(codes).view(np.uint8) + (np.arange(CELLS) * len(_CODES)).astype(np.int32)


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` highest, best first."""
    best = np.argpartition(-scores, min(count, len(scores)) - 1)[:count]
    return best[np.argsort(-scores[best], kind="stable")]


def encode_places(
    point_map: PointMap, network: EP2PLoc, progress: Callable[[int, int], None] = lambda done, total: None
) -> PlaceIndex:
    """Stores the global descriptors and depths of views all over an encoded map in it."""
    views = choose_views(point_map)
    device = next(network.parameters()).device
    parts: list[Tensor] = []
    depths: list[np.ndarray] = []
    done = 0
    for seen in look(point_map, views, network.config.descriptor_width, device):
        parts.append(describe_views(network, seen.descriptors, seen.valid))
        depths.append(encode_depth(seen.log_depth.cpu().numpy()))
        done += len(seen.valid)
        progress(done, len(views))
    descriptors = torch.cat(parts).half().cpu().numpy() if parts else np.zeros((0, network.config.global_width), "f2")
    kept = np.zeros(len(views), _place_type(descriptors.shape[1]))
    kept["map_from_camera"], kept["descriptor"] = views, descriptors
    kept["depths"] = np.concatenate(depths) if depths else np.zeros((0, CELLS), np.int8)
    save_array(_file(point_map, network.fingerprint), kept)
    return PlaceIndex(views, descriptors, kept["depths"])


@torch.inference_mode()
def describe_views(network: EP2PLoc, descriptors: Tensor, valid: Tensor) -> Tensor:
    """Unit global descriptors `(V, G)` from the int8 descriptors `(V, N, D)` of the points that each view shows."""
    return network.point_vlad(descriptors.float() / 127, valid.float())


@torch.inference_mode()
def describe_image(network: EP2PLoc, image: np.ndarray, camera: Camera) -> Impression:
    """What an image `(H, W, 3)` uint8 RGB tells of its place."""
    shown = prepare_image(image, camera, network.config.image_width, next(network.parameters()).device)
    return impression(network.encode_image(shown.tensor, shown.intrinsics), shown.intrinsics, network.config.patch)


def impression(features: ImageFeatures, intrinsics: Tensor, patch: int) -> Impression:
    """What the features of a single image with intrinsics `(1, 4)` tell of its place."""
    log_depth = sample_at_cells(features.geometry[0, 0] + MIDDLE_LOG_DEPTH, intrinsics[0], patch)
    return Impression(features.global_descriptor[0].float().cpu().numpy(), log_depth.float().cpu().numpy())


def open_places(point_map: PointMap) -> PlaceIndex | None:
    """The views stored in a map, None when it was encoded without. Raises MapError when the file is broken."""
    file = _file(point_map, point_map.checkpoint)
    if not file.exists():
        return None
    try:
        kept = load_array(file)
        return PlaceIndex(kept["map_from_camera"], kept["descriptor"], kept["depths"])
    except (OSError, ValueError, EOFError, IndexError) as error:
        raise MapError(
            f"The places of the map {point_map.path} are cut off or of an older version; encode it again."
        ) from error


def places_to_search(point_map: PointMap) -> PlaceIndex | None:
    """The views stored in a map; where it was encoded without, places all along the images of its landmarks, which tell
    no more than where to look for these; None where it has none of either, or is so large that to look for them
    everywhere would take too long. Raises MapError when a file is broken."""
    stored = open_places(point_map)
    if stored is not None:
        return stored
    landmarks = point_map.landmark_store
    if landmarks is None or len(landmarks.views) > MOST_LANDMARK_VIEWS:
        return None
    poses = np.array(landmarks.views["map_from_camera"])
    chosen = apart(scaled_pose(poses, 1 / unit_of(point_map.voxel_size)), LANDMARKS_APART, np.radians(45))
    nothing = np.zeros((len(chosen), 0), np.float16), np.full((len(chosen), CELLS), NO_DEPTH, np.int8)
    return PlaceIndex(poses[chosen], *nothing)


def _file(point_map: PointMap, fingerprint: str) -> Path:
    return point_map.path / f"places.{fingerprint}.npy"


def _place_type(width: int) -> np.dtype:
    return np.dtype([("map_from_camera", "<f8", (4, 4)), ("descriptor", "<f2", (width,)), ("depths", "i1", (CELLS,))])
