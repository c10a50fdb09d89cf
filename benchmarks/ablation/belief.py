"""Fits the weights of `ep2ploc_core.pose.belief` to evaluations, and says how well they do on sites left out.

    .venv/bin/python benchmarks/ablation/belief.py EVALUATIONS [--threshold 0.7]

EVALUATIONS is what `belief_sites.py` makes, or a directory of yours: SITE_NETWORK_right.json, ..._swap.json and
..._foreign.json, which `ep2ploc evaluate --json` wrote with the right images and with wrong ones (--swap, --foreign).
A SITE is left out as a whole. A pose is right within 2.5 voxels and 5 degrees of the truth; with a foreign image none
is. Each site counts alike. The second table tells what became of the images by all rules, as they were then.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ep2ploc_core.evaluation.calibration import LEVELS, calibrate
from ep2ploc_core.localizer_settings import LocalizerSettings
from ep2ploc_core.pose.belief import AlignmentEvidence, BeliefWeights, Evidence, belief

UNITS, DEGREES = 0.5, 5.0  # a unit is a metre where the map's voxels are of 0.2 m (`ep2ploc_core.map.unit`)
RIDGE = 3.0  # of the weights on standardized features, against one vote for each pose: sites are few


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of an evaluation, each with the metres of a unit."""
    report = json.loads(file.read_text())
    return [{**row, "unit": report["metres_per_unit"]} for row in report["results"]]


def with_evidence(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that came as far as a pose."""
    return [row for row in rows if row["evidence"] is not None]


def aligned(sites: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The sites, and of them the rows, where features were aligned to what images show."""
    of_sites = {name: [row for row in rows if row["evidence"]["likeness"] is not None] for name, rows in sites.items()}
    return {name: rows for name, rows in of_sites.items() if rows}


def unaligned(sites: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """All rows, as if nothing had been aligned."""
    return {
        name: [{**row, "evidence": {**row["evidence"], "likeness": None}} for row in rows]
        for name, rows in sites.items()
    }


def evidence_of(row: dict[str, Any]) -> Evidence | AlignmentEvidence:
    """What a row's pose was judged by."""
    numbers = row["evidence"]
    return AlignmentEvidence(**numbers) if "way" in numbers else Evidence(**numbers)


def is_right(row: dict[str, Any]) -> bool:
    """Whether the best pose was right; foreign images have no errors, since none can be."""
    metres, degrees = row.get("candidate_translation_error_m"), row.get("candidate_rotation_error_deg")
    return metres is not None and metres < UNITS * row["unit"] and degrees < DEGREES


def fit(sites: list[list[dict[str, Any]]]) -> BeliefWeights:
    """Logistic regression by Newton's method, on standardized features, with a small ridge."""
    features = np.array([evidence_of(row).features() for rows in sites for row in rows])
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
    return BeliefWeights(tuple(map(float, factors)), float(weights[-1] - factors @ mean))


def in_ellipsoids(rows: Iterable[dict[str, Any]]) -> list[str]:
    """How many of the errors, of position and of the whole pose, lie in their 50 and 90 % ellipsoids."""
    calibration = calibrate(list(rows))
    shares = [dict(zip(LEVELS, calibration[part]["observed"] or [], strict=False)) for part in ("position", "pose")]
    return [f"{share.get(0.5, 0):.0%} / {share.get(0.9, 0):.0%}" for share in shares]


def left_out(sites: dict[str, list[dict[str, Any]]], threshold: float) -> Table:
    """What the weights of the other sites say of each."""
    table = Table(
        "left out", "right poses", "of them believed", "wrong", "of them believed", "worst believed, m",
        "position in 50 / 90 % ellipsoid", "pose",
    )  # fmt: skip
    for name, rows in sites.items():
        weights = fit([other for key, other in sites.items() if key != name])
        believed = np.array([belief(evidence_of(row), weights) for row in rows]) > threshold
        right = np.array([is_right(row) for row in rows])
        errors = [row.get("candidate_translation_error_m", np.inf) for row in np.array(rows)[believed]]
        table.add_row(
            name, f"{right.sum()}", f"{(right & believed).sum() / max(1, right.sum()):.0%}", f"{(~right).sum()}",
            f"{(~right & believed).sum()}", f"{max(errors, default=0):.2f}", *in_ellipsoids(np.array(rows)[believed]),
        )  # fmt: skip
    return table


def by_all_rules(evaluations: dict[tuple[str, str, str], list[dict[str, Any]]]) -> Table:
    """What was given and what was refused, and how true the covariances were."""
    table = Table(
        "site, network", "right, of asked", "given", "of them wrong", "worst, m", "wrong images given, of asked",
        "position in 50 / 90 % ellipsoid", "pose",
    )  # fmt: skip
    for (site, network, images), rows in evaluations.items():
        if images != "right":
            continue
        wrong = [some for key, some in evaluations.items() if key[:2] == (site, network) and key[2] != "right"]
        controls = [row for some in wrong for row in some]
        given = [row for row in rows if row["status"] == "ok"]
        table.add_row(
            f"{site}, {network}",
            f"{sum(map(is_right, rows))} of {len(rows)}",
            f"{len(given)}",
            f"{sum(not is_right(row) for row in given)}",
            f"{max((row['candidate_translation_error_m'] for row in given), default=0):.2f}",
            f"{sum(row['status'] == 'ok' for row in controls)} of {len(controls)}",
            *in_ellipsoids(given),
        )
    return table


def main() -> None:
    """Prints the tables and the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", type=Path)
    parser.add_argument("--threshold", type=float, default=LocalizerSettings().least_belief)
    arguments = parser.parse_args()
    evaluations = {}
    for file in sorted(arguments.evaluations.glob("*_*_*.json")):
        site, network, images = file.stem.split("_")
        evaluations[site, network, images] = read_rows(file)
    sites: dict[str, list[dict[str, Any]]] = {}
    followed: dict[str, list[dict[str, Any]]] = {}
    anywhere: dict[str, list[dict[str, Any]]] = {}
    for (site, network, _), rows in evaluations.items():
        group = {"followed": followed, "global": anywhere}.get(network, sites)
        group.setdefault(site, []).extend(with_evidence(rows))
    if len({*sites, *followed}) < 2:
        parser.error(f"{arguments.evaluations} has evaluations of fewer sites than the two that leaving one out takes.")
    console = Console(width=110)
    settings = LocalizerSettings()
    thresholds = dict.fromkeys(("UNALIGNED", "ALIGNED", "SEARCHED"), arguments.threshold)
    thresholds["FOLLOWED"] = settings.least_belief_followed
    groups = {
        "UNALIGNED": unaligned(sites), "ALIGNED": aligned(sites), "SEARCHED": aligned(anywhere), "FOLLOWED": followed
    }  # fmt: skip
    for title, some in groups.items():
        if len(some) < 2:
            continue
        console.print(f"{title}, believed from {thresholds[title]} on")
        console.print(left_out(some, thresholds[title]))
        fitted = fit(list(some.values()))
        factors = ", ".join(f"{factor:.3g}" for factor in fitted.factors)
        console.print(f"{title} = BeliefWeights(({factors}), {fitted.odds:.3g})")
    console.print(by_all_rules({key: rows for key, rows in evaluations.items() if key[1] != "followed"}))


if __name__ == "__main__":
    main()
