"""Boxes painted with random patterns, by which images can be recognized, and which laser light sees too."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from painted_world import PaintedWorld
from scipy.ndimage import map_coordinates

from ep2ploc_core.map.point_map import MapPoints


@dataclass
class TexturedWorld(PaintedWorld):
    """Grey patterns whose parts are of the `sizes`, metres; another `seed`, another pattern everywhere."""

    sizes: tuple[float, ...] = (0.25, 1.1)
    seed: int = 0

    @cached_property
    def _pattern(self) -> np.ndarray:
        return np.random.default_rng(self.seed).uniform(size=(48, 48, 48))

    def brightness(self, points: np.ndarray) -> np.ndarray:
        """0..1 of surface points `(..., 3)`."""
        parts = [map_coordinates(self._pattern, np.moveaxis(points / size, -1, 0), order=1, mode="grid-wrap")
                 for size in self.sizes]  # fmt: skip
        return np.mean(parts, axis=0)

    def paint(self, points: np.ndarray) -> np.ndarray:
        """Grey `(..., 3)` uint8, the whole range."""
        grey = ((self.brightness(points) - 0.5) * 2 + 0.5).clip(0, 1)
        return np.repeat(np.round(255 * grey).astype(np.uint8)[..., None], 3, axis=-1)

    def map_points(self, step: float, intensity: np.ndarray | None = None) -> MapPoints:
        """Points `step` metres apart on all surfaces. intensity: of each, else the darker the brighter they look."""
        xyz = np.concatenate([self.surface(room, step) for room in self.rooms])
        attributes = np.zeros((len(xyz), 6), np.float32)
        attributes[:, 0] = 0.9 - 0.8 * self.brightness(xyz) if intensity is None else intensity
        return MapPoints(xyz.astype(np.float32), attributes, np.zeros((len(xyz), 2), np.uint16))
