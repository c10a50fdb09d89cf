"""Which image a query is asked with: its own, or that of a control, at whose place it must not be found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.queries import Queries
from ep2ploc_core.errors import InputError


@dataclass
class Shown:
    """An image `(H, W, 3)` and its camera; what its row begins with; and where it was taken, `taken` `(4, 4)`
    map_from_camera, None where that is not in the map."""

    image: np.ndarray
    camera: Camera
    name: dict[str, Any]
    taken: np.ndarray | None


def show(queries: Queries, query: int, swap: bool, foreign: Queries | None = None) -> Shown:
    """The query's own image, or the control's: of another query, half the drive away, or one of the foreign ones, which
    are spread evenly over the queries. Raises InputError where another query's image is asked for and there is none."""
    if swap and (foreign or len(queries) < 2):
        raise InputError(
            "With --swap each query gets another one's image: give two queries or more, and no foreign ones."
        )
    source, number = queries, query
    if foreign:
        source, number = foreign, query * len(foreign) // len(queries)
    elif swap:
        number = (query + len(queries) // 2) % len(queries)
    name = {"image": source.image_paths[number].name, "query": query}
    return Shown(source.image(number), source.camera, name, None if foreign else true_poses(queries)[number])


def true_poses(queries: Queries) -> np.ndarray:
    """Poses map_from_camera `(N, 4, 4)` to compare with. Raises InputError where the queries have none."""
    if queries.map_from_camera is None:
        raise InputError(f"{queries.path} has no poses.txt, so there is nothing to compare with.")
    return queries.map_from_camera
