"""How well images find the places of a map: which of its views have the global descriptors most like theirs.

A view is right when it is within some metres of where the image was taken, and looks within 45 degrees of where it
looked: views turned farther than that share less than half of what a camera of 90 degrees sees. Views are two units
apart and look in 18 directions, so there are always several right ones; what chance would reach stands beside.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import hypergeom

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.queries import Queries
from ep2ploc_core.evaluation.shown import show, true_poses
from ep2ploc_core.map.place_index import PlaceIndex

COUNTS = (1, 5, 10)  # among how many views a right one must be


@dataclass(frozen=True)
class RetrievalProtocol:
    """Right is a view within each of `metres`, and within `degrees` of the true direction. `swap`: each query gets the
    image of another one, half the drive away, and must do no better than chance."""

    metres: tuple[float, ...] = (5.0, 10.0)
    degrees: float = 45.0
    swap: bool = False


def evaluate_retrieval(
    describe: Callable[[np.ndarray, Camera], np.ndarray],
    places: PlaceIndex,
    queries: Queries,
    protocol: RetrievalProtocol,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """`{"protocol", "summary", "chance", "results": a row per query}`.

    describe: the global descriptor `(G,)` of an image `(H, W, 3)` and its camera. A row has, for each of the distances,
    `right_views_5m`, how many of the map's views are right, and `rank_5m`, at which place the first right one came, 1
    being the first; None where there is none. The summary has `recall_at_1_5m` and so on, over all queries; `chance`
    the same for views drawn at random. Raises InputError when there is nothing to compare with.
    """
    truths = true_poses(queries)
    rows: list[dict[str, Any]] = []
    for query, truth in enumerate(truths):
        shown = show(queries, query, protocol.swap)
        begin = time.perf_counter()
        order = places.search(describe(shown.image, shown.camera), len(places))
        seconds = time.perf_counter() - begin
        ranked = np.asarray(places.map_from_camera[order])
        away = np.linalg.norm(ranked[:, :3, 3] - truth[:3, 3], axis=1)
        turned = np.degrees(np.arccos((ranked[:, :3, 2] @ truth[:3, 2]).clip(-1, 1)))
        row = {
            **shown.name,
            "first_view_m": round(float(away[0]), 3),
            "first_view_deg": round(float(turned[0]), 3),
            "seconds": round(seconds, 4),
        }
        for metres in protocol.metres:
            right = np.flatnonzero((away <= metres) & (turned <= protocol.degrees))
            row[f"right_views_{metres:g}m"] = len(right)
            row[f"rank_{metres:g}m"] = int(right[0]) + 1 if len(right) else None
        rows.append(row)
        progress(len(rows), len(queries))
    return {
        "protocol": {"name": "retrieval", **asdict(protocol)},
        "summary": summarize_retrieval(rows, protocol.metres, len(places)),
        "chance": chance_of_retrieval(rows, protocol.metres, len(places)),
        "results": rows,
    }


def summarize_retrieval(rows: list[dict[str, Any]], distances: tuple[float, ...], views: int) -> dict[str, Any]:
    """Recalls over all queries; `without_right_view_5m` are the queries for which the map of `views` has none."""
    summary: dict[str, Any] = {"queries": len(rows), "views": views}
    for metres in distances:
        ranks = np.array([row[f"rank_{metres:g}m"] or math.inf for row in rows])
        for count in COUNTS:
            summary[f"recall_at_{count}_{metres:g}m"] = round(float((ranks <= count).mean()), 4)
        summary[f"without_right_view_{metres:g}m"] = int(np.isinf(ranks).sum())
    summary["median_seconds"] = round(float(np.median([row["seconds"] for row in rows])), 4)
    return summary


def chance_of_retrieval(rows: list[dict[str, Any]], distances: tuple[float, ...], views: int) -> dict[str, Any]:
    """The recalls to be expected of views drawn at random from the map's `views`."""
    chance: dict[str, Any] = {"queries": len(rows), "views": views}
    for metres in distances:
        for count in COUNTS:
            recall = recall_by_chance([row[f"right_views_{metres:g}m"] for row in rows], views, count)
            chance[f"recall_at_{count}_{metres:g}m"] = round(recall, 4)
    return chance


def recall_by_chance(right: list[int], views: int, count: int) -> float:
    """How often at least one of `count` of the `views`, drawn without putting back, is among the right ones, of which
    each query has `right`: the mean over queries."""
    return float((1 - hypergeom.pmf(0, views, right, min(count, views))).mean())
