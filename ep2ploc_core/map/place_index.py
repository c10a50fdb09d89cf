"""Finds the views of a map that look most like an image, by their global descriptors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ep2ploc_core.camera import Camera
from ep2ploc_core.errors import MapError
from ep2ploc_core.map.point_map import PointMap, load_array, save_array
from ep2ploc_core.map.views import choose_views, look
from ep2ploc_core.model.ep2ploc import EP2PLoc
from ep2ploc_core.model.image_input import prepare_image

_BLOCK = 65536  # views that are compared at a time


@dataclass
class PlaceIndex:
    """map_from_camera `(V, 4, 4)` float64 and unit descriptors `(V, G)` float16 of V views; may be memory-mapped."""

    map_from_camera: np.ndarray
    descriptors: np.ndarray

    def __len__(self) -> int:
        return len(self.map_from_camera)

    def search(self, descriptor: np.ndarray, count: int) -> list[int]:
        """The `count` views most like an image with the global descriptor `(G,)`, best first."""
        likeness = np.concatenate([
            self.descriptors[start : start + _BLOCK].astype(np.float32) @ descriptor.astype(np.float32)
            for start in range(0, len(self), _BLOCK)
        ])  # fmt: skip
        best = np.argpartition(-likeness, min(count, len(self)) - 1)[:count]
        return [int(index) for index in best[np.argsort(-likeness[best], kind="stable")]]


NO_PLACES = PlaceIndex(np.zeros((0, 4, 4)), np.zeros((0, 1), np.float16))


def encode_places(
    point_map: PointMap, network: EP2PLoc, progress: Callable[[int, int], None] = lambda done, total: None
) -> PlaceIndex:
    """Stores the global descriptors of views all over an encoded map in it."""
    views = choose_views(point_map)
    device = next(network.parameters()).device
    parts: list[Tensor] = []
    done = 0
    for seen in look(point_map, views, network.config.descriptor_width, device):
        parts.append(describe_views(network, seen.descriptors, seen.valid))
        done += len(seen.valid)
        progress(done, len(views))
    descriptors = torch.cat(parts).half().cpu().numpy() if parts else np.zeros((0, network.config.global_width), "f2")
    kept = np.zeros(len(views), _place_type(descriptors.shape[1]))
    kept["map_from_camera"], kept["descriptor"] = views, descriptors
    save_array(_file(point_map, network.fingerprint), kept)
    return PlaceIndex(views, descriptors)


@torch.inference_mode()
def describe_views(network: EP2PLoc, descriptors: Tensor, valid: Tensor) -> Tensor:
    """Unit global descriptors `(V, G)` from the int8 descriptors `(V, N, D)` of the points that each view shows."""
    return network.point_vlad(descriptors.float() / 127, valid.float())


@torch.inference_mode()
def describe_image(network: EP2PLoc, image: np.ndarray, camera: Camera) -> np.ndarray:
    """The unit global descriptor `(G,)` float32 of an image `(H, W, 3)` uint8 RGB."""
    shown = prepare_image(image, camera, network.config.image_width, next(network.parameters()).device)
    features = network.encode_image(shown.tensor, shown.intrinsics)
    descriptor: np.ndarray = features.global_descriptor[0].float().cpu().numpy()
    return descriptor


def open_places(point_map: PointMap) -> PlaceIndex | None:
    """The views stored in a map, None when it was encoded without. Raises MapError when the file is broken."""
    file = _file(point_map, point_map.checkpoint)
    if not file.exists():
        return None
    try:
        kept = load_array(file)
        return PlaceIndex(kept["map_from_camera"], kept["descriptor"])
    except (OSError, ValueError, EOFError, IndexError) as error:
        raise MapError(f"The places of the map {point_map.path} are cut off; encode it again.") from error


def _file(point_map: PointMap, fingerprint: str) -> Path:
    return point_map.path / f"places.{fingerprint}.npy"


def _place_type(width: int) -> np.dtype:
    return np.dtype([("map_from_camera", "<f8", (4, 4)), ("descriptor", "<f2", (width,))])
