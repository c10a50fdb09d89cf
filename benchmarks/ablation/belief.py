"""Fits the weights of `ep2ploc_core.pose.belief` to evaluations, and says how well they do on sites left out.

    .venv/bin/python benchmarks/ablation/belief.py SITE=a.json,b.json SITE=c.json ...

The files are what `ep2ploc evaluate --json` wrote, with the right images and with wrong ones (`--swap`, `--foreign`);
all files of a SITE are left out together. A pose is right within 2.5 voxels and 5 degrees of the truth; with a foreign
image none is. Each site counts alike.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ep2ploc_core.pose.belief import BeliefWeights, Evidence, belief

UNITS, DEGREES = 0.5, 5.0  # a unit is a metre where the map's voxels are of 0.2 m (`ep2ploc_core.map.unit`)
RIDGE = 3.0  # of the weights on standardized features, against one vote for each pose: sites are few


def read_rows(files: list[str]) -> list[dict[str, Any]]:
    """The rows of some evaluations that came as far as a pose."""
    reports = [json.loads(Path(file).read_text()) for file in files]
    rows = [{**row, "unit": report.get("metres_per_unit", 1.0)} for report in reports for row in report["results"]]
    return [row for row in rows if row["evidence"] is not None]


def is_right(row: dict[str, Any]) -> bool:
    """Whether the best pose was right; foreign images have no errors, since none can be."""
    metres, degrees = row.get("candidate_translation_error_m"), row.get("candidate_rotation_error_deg")
    return metres is not None and metres < UNITS * row["unit"] and degrees < DEGREES


def fit(sites: list[list[dict[str, Any]]]) -> BeliefWeights:
    """Logistic regression by Newton's method, on standardized features, with a small ridge."""
    features = np.array([Evidence(**row["evidence"]).features() for rows in sites for row in rows])
    right = np.array([is_right(row) for rows in sites for row in rows], float)
    share = np.concatenate([np.full(len(rows), 1 / len(rows)) for rows in sites])
    share *= len(right) / share.sum()
    mean, scale = features.mean(0), features.std(0)
    design = np.c_[(features - mean) / scale, np.ones(len(right))]
    ridge = RIDGE * np.r_[np.ones(features.shape[1]), 0]
    weights = np.zeros(design.shape[1])
    for _ in range(50):
        said = 1 / (1 + np.exp(-design @ weights))
        gradient = design.T @ (share * (right - said)) - ridge * weights
        hessian = (design * (share * said * (1 - said))[:, None]).T @ design + np.diag(ridge)
        weights = weights + np.linalg.solve(hessian, gradient)
    factors = weights[:-1] / scale
    return BeliefWeights(*map(float, factors), odds=float(weights[-1] - factors @ mean))


def main() -> None:
    """Prints the weights of all sites, and what those of the others say of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sites", nargs="+", metavar="SITE=FILE,FILE")
    parser.add_argument("--threshold", type=float, default=0.5)
    arguments = parser.parse_args()
    sites = {name: read_rows(files.split(",")) for name, files in (one.split("=", 1) for one in arguments.sites)}
    console = Console()
    table = Table("left out", "right poses", "of them given", "wrong", "of them given", "worst given, m", "log loss")
    for name, rows in sites.items():
        others = [other for key, other in sites.items() if key != name]
        weights = fit(others) if others else BeliefWeights()
        said = np.array([belief(Evidence(**row["evidence"]), weights) for row in rows])
        right, given = np.array([is_right(row) for row in rows]), said > arguments.threshold
        errors = [row.get("candidate_translation_error_m", np.inf) for row, one in zip(rows, given, strict=True) if one]
        loss = -np.log(np.where(right, said, 1 - said).clip(1e-6)).mean()
        table.add_row(
            name, f"{right.sum()}", f"{(right & given).sum() / max(1, right.sum()):.0%}", f"{(~right).sum()}",
            f"{(~right & given).sum()}", f"{max(errors, default=0):.2f}", f"{loss:.3f}",
        )  # fmt: skip
    console.print(table)
    for field, value in zip(fields(BeliefWeights), astuple(fit(list(sites.values()))), strict=True):
        console.print(f"{field.name}: float = {value:.3f}")


if __name__ == "__main__":
    main()
