"""From how far off a pose is found: by the search on the score maps, by feature alignment alone, by both.

    .venv/bin/python benchmarks/ablation/alignment.py MAP QUERIES [--starts 2] [--json FILE]

Each row is a size of start error: as many metres sideways and ahead (a quarter in height) and degrees of yaw (a third
of pitch and roll), drawn uniformly up to there. A pose counts as found within 1.25 voxels of the map (0.25 m in maps
with voxels of 0.2 m) and 2 degrees, refused or not; the medians are of all starts. MAP and QUERIES as for `ep2ploc
evaluate`: their scans and images must have been held out.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ep2ploc_core import se3
from ep2ploc_core.datasets.queries import Queries
from ep2ploc_core.datasets.sampling import START_RANGE, draw_start
from ep2ploc_core.localizer import Localizer
from ep2ploc_core.localizer_settings import LocalizerSettings
from ep2ploc_core.map.point_map import SITE_CHECKPOINT, PointMap
from ep2ploc_core.map.unit import unit_of
from ep2ploc_core.matcher import Matcher
from ep2ploc_core.model.checkpoint import load_network

SIZES = ((0.1, 0.5), (0.25, 1.0), (0.5, 2.5), (1.0, 5.0), (2.0, 10.0), (3.0, 15.0))  # units, degrees
FOUND = (0.25, 2.0)  # units, degrees
ANYTHING = LocalizerSettings(
    least_score=-math.inf, least_belief=-1, least_belief_followed=-1, least_inlier_ratio=0, least_matches=0,
    least_parts=0, least_likeness=-math.inf, greatest_sigma=math.inf, greatest_distance=4.0,
    landmarks=False,
)  # fmt: skip


class NoPasses(Matcher):
    """Makes none."""

    def match(self, *_: object, **__: object) -> None:
        return None


class AloneLocalizer(Localizer):
    """What alignment does not find is not found."""

    matcher_type = NoPasses


def main() -> None:
    """Measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("map", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--starts", type=int, default=2, help="for each query and size")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    point_map, queries = PointMap.open(arguments.map), Queries(arguments.queries)
    adapted = arguments.map / SITE_CHECKPOINT
    network, unit = load_network(adapted if adapted.exists() else "edge"), unit_of(point_map.voxel_size)
    localizers = {
        "search": Localizer(network, point_map, settings=replace(ANYTHING, refine="none")),
        "alignment alone": AloneLocalizer(network, point_map, settings=replace(ANYTHING, refine="align_first")),
        "search, then alignment": Localizer(network, point_map, settings=replace(ANYTHING, refine="align")),
    }
    table = Table("start error", *(f"{name}: {what}" for name in localizers for what in ("found", "m", "deg")))
    rows = []
    truths = queries.map_from_camera
    assert truths is not None
    for units, degrees in SIZES:
        scale = np.array([units / START_RANGE[0]] * 3 + [math.radians(degrees) / START_RANGE[4]] * 3)
        cells = []
        for name, localizer in localizers.items():
            rng, errors = np.random.default_rng(0), []
            for number, truth in enumerate(truths):
                image = queries.image(number)
                for _ in range(arguments.starts):
                    error = draw_start(rng, 1.0) * scale
                    error[:3] *= unit
                    start = truth @ se3.exp(torch.from_numpy(error)).numpy()
                    found = localizer.localize(image, queries.camera, start)
                    pose = start if found.candidate is None else found.candidate
                    metres, radians = se3.pose_error(pose, truth)
                    errors.append((metres, math.degrees(radians)))
            off = np.array(errors)
            share = float(((off[:, 0] <= FOUND[0] * unit) & (off[:, 1] <= FOUND[1])).mean())
            metres, degree = np.median(off, axis=0)
            rows.append({
                "start_m": units * unit, "start_deg": degrees, "by": name, "found": share, "median_m": metres,
                "median_deg": degree,
            })  # fmt: skip
            cells += [f"{share:.0%}", f"{metres:.3f}", f"{degree:.2f}"]
        table.add_row(f"{units * unit:g} m, {degrees:g} deg", *cells)
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
