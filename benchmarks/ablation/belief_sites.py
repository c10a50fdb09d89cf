"""Makes the evaluations that the weights of `ep2ploc_core.pose.belief` are fitted to, for `belief.py`.

    EP2PLOC_DATA=... .venv/bin/python benchmarks/ablation/belief_sites.py OUT [--steps 400]
    .venv/bin/python benchmarks/ablation/belief.py OUT --threshold 0.7

EP2PLOC_DATA names a directory with kitti_raw/, kitti_pairs/ and rgbd_kitchen/. Takes about 40 minutes on two cores. OUT
gets a directory per site, with its map and its queries, and a JSON per evaluation: SITE_NETWORK_IMAGES.json. The
NETWORK "followed" is the adapted one, and what is judged is what alignment alone makes of starts a tenth or two fifths
as wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from alignment import ANYTHING, AloneLocalizer
from validation import KEPT_PAIRS

from ep2ploc_core import se3
from ep2ploc_core.datasets.kitti import KittiDrive
from ep2ploc_core.datasets.queries import Queries, write_queries
from ep2ploc_core.datasets.sampling import START_RANGE, draw_start
from ep2ploc_core.datasets.synthetic import drive_path, write_synthetic_drive
from ep2ploc_core.evaluation.metrics import error_row
from ep2ploc_core.evaluation.protocols import TrackingProtocol, evaluate_tracking, result_row
from ep2ploc_core.localization import Localization
from ep2ploc_core.localizer import Localizer
from ep2ploc_core.map.encode import encode_map
from ep2ploc_core.map.point_map import SITE_CHECKPOINT, MapInfo, PointMap, write_map
from ep2ploc_core.map.unit import unit_of
from ep2ploc_core.model.checkpoint import load_network
from ep2ploc_core.training.scenes import pair_names, pair_scene
from ep2ploc_ros.demo import split_drive

STREET_SEED, FRAMES = 77, 100
KITCHEN_STEPS = 300
KITCHEN_CAMERA = "525 0 320\n0 525 240\n0 0 1\n"
VOXEL = 0.2
FOLLOWED = (0.1, 0.4)  # shares of START_RANGE


def ep2ploc(*arguments: object) -> None:
    """The command line, with this Python."""
    subprocess.run([sys.executable, "-m", "ep2ploc_core.cli", *map(str, arguments)], check=True)


def prepare_drive(drive: Path, site: Path) -> None:
    """Queries of a drive as the demo parts it, and a map without them."""
    if not (site / "map").exists():
        opened = KittiDrive(drive)
        write_queries(opened, split_drive(opened).queries, site / "queries")
        ep2ploc("map", "build", drive, "--out", site / "map", "--hold-out", site / "queries", "--checkpoint", "edge")


def prepare_kitchen(recording: Path, site: Path) -> None:
    """As in the README."""
    if not (site / "map").exists():
        site.mkdir(parents=True, exist_ok=True)
        camera = site / "colour.txt"
        camera.write_text(KITCHEN_CAMERA)
        of_camera = ("--colour-camera", camera)
        held_out = ("--voxel", 0.05, "--hold-out", "400:1000", "--checkpoint", "edge")
        ep2ploc("map", "build", recording, "--out", site / "map", *held_out, *of_camera)
        ep2ploc("queries", "from-rgbd", recording, "--out", site / "queries", "--frames", "402:700:12", *of_camera)


def evaluate(site: Path, foreign: Path, swap: bool = True) -> None:
    """From first guesses and without any, right images and wrong ones; by the network alone."""
    asked, others = (site / "map", site / "queries", "--no-landmarks"), ("--foreign", foreign / "queries")

    def name(network: str, images: str) -> Path:
        return site.with_name(f"{site.name}_{network}_{images}.json")

    ep2ploc("evaluate", *asked, "--repeats", 2, "--json", name("adapted", "right"))
    if swap:
        ep2ploc("evaluate", *asked, "--repeats", 2, "--seed", 1, "--swap", "--json", name("adapted", "swap"))
    ep2ploc("evaluate", *asked, *others, "--seed", 2, "--json", name("adapted", "foreign"))
    ep2ploc("evaluate", *asked, "--protocol", "global", "--json", name("global", "right"))
    ep2ploc("evaluate", *asked, "--protocol", "global", *others, "--json", name("global", "foreign"))


def follow(site: Path, foreign: Path, swap: bool = True) -> None:
    """The same by alignment alone."""
    point_map, queries = PointMap.open(site / "map"), Queries(site / "queries")
    finder = AloneLocalizer(
        load_network(site / "map" / SITE_CHECKPOINT), point_map, settings=replace(ANYTHING, refine="align_first")
    )
    unit = unit_of(point_map.voxel_size)
    for images, others in {"right": None, "foreign": Queries(foreign / "queries"), "swap": None}.items():
        if images == "swap" and not swap:
            continue
        rows = []
        for share in FOLLOWED:
            metres, degrees = START_RANGE[0] * unit * share, math.degrees(START_RANGE[4]) * share
            protocol = TrackingProtocol(metres, degrees, repeats=2, swap=images == "swap")
            rows += evaluate_tracking(finder, queries, protocol, foreign=others)["results"]
        report = {"metres_per_unit": unit, "results": rows}
        site.with_name(f"{site.name}_followed_{images}.json").write_text(json.dumps(report))


def evaluate_pairs(pairs: Path, out: Path) -> None:
    """The pairs kept from the training, each in the map of its own scan; foreign images are those of other pairs."""
    network = load_network("edge")
    scenes = [pair_scene(pairs, name, VOXEL) for name in pair_names(pairs, KEPT_PAIRS)]
    rows: dict[str, list[dict[str, Any]]] = {"right": [], "foreign": []}
    rng = np.random.default_rng(0)
    for number, scene in enumerate(scenes):
        truth, other = scene.map_from_camera[0], scenes[(number + 7) % len(scenes)]
        with tempfile.TemporaryDirectory() as place:
            made = write_map(Path(place) / "map", scene.points, MapInfo(voxel_size=VOXEL))
            encode_map(made, network)
            localizer = Localizer(network, PointMap.open(made.path))
            for repeat in range(3):
                start = truth @ se3.exp(torch.from_numpy(draw_start(rng, 1.0))).numpy()
                found = localizer.localize(scene.images[0], scene.cameras[0], start)
                rows["right"].append(_row(number, found, truth))
                if repeat < 2:
                    rows["foreign"].append(_row(number, localizer.localize(other.images[0], other.cameras[0], start)))
    for images, some in rows.items():
        report = {"metres_per_unit": 1.0, "results": some}
        out.with_name(f"{out.name}_shipped_{images}.json").write_text(json.dumps(report))


def _row(query: int, found: Localization, truth: np.ndarray | None = None) -> dict[str, Any]:
    errors = {} if truth is None else error_row(found.candidate, truth, "candidate_")
    return {"query": query, **result_row(found), **errors}


def main() -> None:
    """Makes what is missing in OUT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=400, help="of adaptation")
    arguments = parser.parse_args()
    out, data = arguments.out, Path(os.environ["EP2PLOC_DATA"])
    raw = data / "kitti_raw" / "2011_09_26"
    torch.set_num_threads(1)
    street = drive_path(out / "street_drive", STREET_SEED)
    if not street.exists():
        write_synthetic_drive(out / "street_drive", frames=FRAMES, seed=STREET_SEED)
    drives = {
        "0009": raw / "2011_09_26_drive_0009_sync",
        "0005": raw / "2011_09_26_drive_0005_sync",
        "street": street,
    }
    for name, drive in drives.items():
        prepare_drive(drive, out / name)
    for name in drives:
        ep2ploc("train", "--site", out / name / "map", "--steps", arguments.steps)
        evaluate(out / name, out / ("0005" if name == "0009" else "0009"))
        follow(out / name, out / ("0005" if name == "0009" else "0009"))
    evaluate_pairs(data / "kitti_pairs", out / "pairs")
    prepare_kitchen(data / "rgbd_kitchen", out / "kitchen")
    ep2ploc("train", "--site", out / "kitchen" / "map", "--steps", min(KITCHEN_STEPS, arguments.steps))
    # Another image of the same room may be rightly placed near the start: no swapping.
    evaluate(out / "kitchen", out / "0009", swap=False)
    follow(out / "kitchen", out / "0009", swap=False)


if __name__ == "__main__":
    main()
