"""Whether a map is whole and plausible, tile by tile, so that maps larger than the memory can be looked at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ep2ploc_core.errors import MapError
from ep2ploc_core.map.point_map import SITE_CHECKPOINT, PointMap

_THIN = 0.3  # points per square metre


@dataclass
class MapReport:
    """low, high `(3,)`: the extent in the coordinates of the recording, metres. bytes: on disk. problems: sentences,
    none when the map is well."""

    low: np.ndarray
    high: np.ndarray
    bytes: int
    adapted: bool
    problems: list[str]


def inspect_map(point_map: PointMap) -> MapReport:
    """Reads every tile; raises MapError where one cannot be read at all."""
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    problems = []
    bad, thin = 0, 0
    for name in point_map.info.tiles:
        points = point_map.unpack(name)
        finite = np.isfinite(points.xyz).all(1) & np.isfinite(points.attributes).all(1)
        bad += int((~finite).sum())
        thin += len(points) < _THIN * point_map.info.tile_size**2
        if finite.any():
            low = np.minimum(low, points.xyz[finite].min(0))
            high = np.maximum(high, points.xyz[finite].max(0))
    if not np.isfinite(low).all():
        raise MapError(f"The map {point_map.path} holds no point that is a number; build it again.")
    if bad:
        problems.append(f"{bad:,} points are no numbers: build it again")
    if thin > len(point_map.info.tiles) / 2:
        problems.append(f"{thin} of {len(point_map.info.tiles)} tiles are hardly filled: are the poses right?")
    if not point_map.checkpoint:
        problems.append("not encoded, so nothing can be localized in it: run `ep2ploc map encode`")
    size = sum(file.stat().st_size for file in point_map.path.rglob("*") if file.is_file())
    adapted = (point_map.path / SITE_CHECKPOINT).exists()
    return MapReport(low + point_map.origin, high + point_map.origin, size, adapted, problems)
