"""What becomes of poses when the camera's file gives a wrong focal length, and whether the landmarks tell.

    .venv/bin/python benchmarks/focal_length.py MAP QUERIES [--markdown FILE]

Each query starts once from a wrong first guess (up to 2 m and 10 degrees off, in proportion to the voxels), with focal
lengths that are so many times the right ones; with the check of the lens, and without. MAP and QUERIES as for `ep2ploc
evaluate`; the map has landmarks.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from support.table import show_table  # beside this benchmark

from ep2ploc_core import se3
from ep2ploc_core.datasets.queries import Queries
from ep2ploc_core.datasets.sampling import draw_start
from ep2ploc_core.evaluation.report import Grid
from ep2ploc_core.landmarks.lens_check import LensCheck
from ep2ploc_core.localizer import Localizer
from ep2ploc_core.machine import describe_machine, machine_caption
from ep2ploc_core.map.point_map import SITE_CHECKPOINT, PointMap
from ep2ploc_core.map.unit import unit_of
from ep2ploc_core.model.checkpoint import load_network

TIMES = (0.7, 0.9, 0.95, 0.98, 1.0, 1.02, 1.05, 1.1, 1.4)


def measure(localizer: Localizer, queries: Queries, times: float) -> list[str]:
    """Cells: how many were given a pose; how far off these are, median and worst; the ratio that landmarks found."""
    assert queries.map_from_camera is not None
    camera = replace(queries.camera, fx=queries.camera.fx * times, fy=queries.camera.fy * times)
    rng, off, ratio = np.random.default_rng(0), [], None
    for number, truth in enumerate(queries.map_from_camera):
        error = draw_start(rng, 1.0) * np.repeat([unit_of(localizer.point_map.voxel_size), 1.0], 3)
        start = truth @ se3.exp(torch.from_numpy(error)).numpy()
        found = localizer.localize(queries.image(number), camera, start)
        ratio = found.focal_ratio
        if found.map_from_camera is not None:
            off.append(se3.pose_error(found.map_from_camera, truth)[0])
    errors = f"{np.median(off):.2f} / {max(off):.2f}" if off else "-"
    return [f"{len(off)} of {len(queries)}", errors, "-" if ratio is None else f"{ratio:.3f}"]


def main() -> None:
    """Measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("map", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    point_map, queries = PointMap.open(arguments.map), Queries(arguments.queries)
    adapted = arguments.map / SITE_CHECKPOINT
    network = load_network(adapted if adapted.exists() else "edge")
    rows = []
    for times in TIMES:
        with patch.object(LensCheck, "tolerance", math.inf):
            unchecked = measure(Localizer(network, point_map), queries, times)
        checked = measure(Localizer(network, point_map), queries, times)
        rows.append([f"{times:g}", *unchecked[:2], *checked])
    columns = ["focal length, times the right one", "unchecked: given", "off, m, median / worst", "given",
               "off, m, median / worst", "landmarks fit one so many times that"]  # fmt: skip
    show_table(f"{arguments.map.name}", Grid(columns, rows), arguments.markdown, machine_caption(describe_machine()))


if __name__ == "__main__":
    main()
