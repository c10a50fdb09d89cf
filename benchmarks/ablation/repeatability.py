"""How far apart the poses are that one image gets from different first guesses: what is left of its error when all
that the guesses do not change, the recording's own poses and calibration, is taken away.

    .venv/bin/ep2ploc evaluate MAP QUERIES --repeats 3 --json FILE
    .venv/bin/python benchmarks/ablation/repeatability.py FILE [FILE ...]

Each pair of poses given for the same image counts; refused ones have none.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ep2ploc_core import se3


def main() -> None:
    """Prints a row for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="results of `ep2ploc evaluate`")
    table = Table("results", "pairs", "m, median", "deg", "m, 90 %", "deg")
    for file in parser.parse_args().files:
        poses = defaultdict(list)
        for row in json.loads(file.read_text())["results"]:
            if row["map_from_camera"] is not None:
                poses[row["image"]].append(np.array(row["map_from_camera"]))
        apart = [se3.pose_error(one, other) for given in poses.values() for one, other in combinations(given, 2)]
        if not apart:
            table.add_row(file.stem, "0", *"----")
            continue
        median, most = (np.percentile(apart, share, axis=0) for share in (50, 90))
        cells = [f"{metres:.3f} {math.degrees(radians):.2f}".split() for metres, radians in (median, most)]
        table.add_row(file.stem, str(len(apart)), *cells[0], *cells[1])
    Console().print(table)


if __name__ == "__main__":
    main()
