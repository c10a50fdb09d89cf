"""The main job in one command: a drive becomes a map, a network learns its site, and the rest of the drive is localized
in it, in the core and through the real ROS 2 nodes, and compared with the truth."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ep2ploc_core import se3
from ep2ploc_core.datasets.bag_writer import write_kitti_bag
from ep2ploc_core.datasets.kitti import KittiDrive
from ep2ploc_core.datasets.queries import Queries, write_queries
from ep2ploc_core.datasets.sampling import draw_start
from ep2ploc_core.datasets.synthetic import write_synthetic_drive
from ep2ploc_core.errors import InputError
from ep2ploc_core.evaluation.mapping_distance import distance_to_mapping
from ep2ploc_core.evaluation.metrics import summarize
from ep2ploc_core.evaluation.protocols import GlobalProtocol, TrackingProtocol, evaluate_global, evaluate_tracking
from ep2ploc_core.evaluation.report import summary_markdown, summary_table
from ep2ploc_core.localizer import Localizer
from ep2ploc_core.localizer_settings import DEFAULT_SETTINGS, LocalizerSettings
from ep2ploc_core.machine import describe_machine
from ep2ploc_core.map.build import build_map
from ep2ploc_core.map.encode import encode_map
from ep2ploc_core.map.place_index import places_to_search
from ep2ploc_core.map.point_map import SITE_CHECKPOINT, PointMap
from ep2ploc_core.map.sources import KittiSource
from ep2ploc_core.model.checkpoint import load_network
from ep2ploc_core.progress import progress_bar, stage_bars
from ep2ploc_core.training.processes import choose_device, run_everywhere
from ep2ploc_core.training.site import SITE_SCHEDULE, adapt_to_site
from ep2ploc_ros.demo_pictures import draw_results
from ep2ploc_ros.demo_replay import replay

# Every ISOLATED-th frame is a query by itself; one stretch of STRETCH frames in a row is left out of the mapping whole.
ISOLATED = 12
STRETCH = 30
REPEATS = 3  # wrong starts for each query; one for the control, which shows the same with fewer
NEAR_METRES = 8.0  # where the tables part the stretch, by the distance to the nearest image of the mapping run
REPLAY_RATE = 0.5  # of the drive's own speed, so that two busy cores keep up with its 10 Hz
SCORES_ALONE = LocalizerSettings(refine="none", landmarks=False)
WITHOUT_LANDMARKS = LocalizerSettings(landmarks=False)
_LEFT = {
    "report.json, tables.md": "all figures; the tables above",
    "film.gif": "the map drawn over the images, from the poses that the nodes published",
    "demo.rrd": "the same in three dimensions, for `rerun demo.rrd`",
    "*.png": "trajectory, recall; the best, the middle and the worst pose over their images",
    "bag, ros/replay_bag": "what was played, and what the nodes published",
    "ros/*.log": "what the nodes said",
}
console = Console()


@dataclass(frozen=True)
class Split:
    """Frame numbers: `isolated` queries, the `stretch`, and all of them in order."""

    isolated: list[int]
    stretch: list[int]

    @property
    def queries(self) -> list[int]:
        return sorted(self.isolated + self.stretch)


def split_drive(drive: KittiDrive) -> Split:
    """Queries of a drive: a stretch in its last half, and single frames elsewhere."""
    usable = [frame.index for frame in drive.frames if frame.image_path and frame.map_from_lidar is not None]
    if len(usable) < 2 * STRETCH:
        raise InputError(f"{drive.path} has {len(usable)} images with a pose; the demo needs {2 * STRETCH} or more.")
    begin = len(usable) // 2
    stretch = usable[begin : begin + STRETCH]
    margin = ISOLATED // 2
    apart = [index for index in usable if index < stretch[0] - margin or index > stretch[-1] + margin]
    isolated = [index for index in apart if index % ISOLATED == margin]
    return Split(isolated, stretch)


def run_demo(drive_path: Path | None, out: Path, steps: int) -> None:
    """Runs the whole demo into `out`; prints its tables and writes all there is to see of it."""
    out.mkdir(parents=True, exist_ok=True)
    stages = _Stages()
    with stages("drive"):
        drive = KittiDrive(drive_path or _synthetic(out / "drive"))
        split = split_drive(drive)
        queries = write_queries(drive, split.queries, out / "queries")
    with stages("map"):
        point_map = _build(drive, queries, out / "map")
    with stages("the network as it comes with the package"):
        reports = _evaluate(point_map, "edge", queries, "shipped")
        reports |= _evaluate_without_guess(point_map, "edge", queries, "shipped")
    with stages("adaptation to the site"):
        schedule = replace(SITE_SCHEDULE, steps=steps or (350 if drive_path is None else SITE_SCHEDULE.steps))
        run_everywhere(adapt_to_site, choose_device("auto"), point_map.path, "edge", schedule)
        point_map = PointMap.open(point_map.path)
    with stages("the network adapted to the site"):
        adapted = str(point_map.path / SITE_CHECKPOINT)
        reports |= _evaluate(point_map, adapted, queries, "adapted, by score maps alone", SCORES_ALONE)
        reports |= _evaluate(point_map, adapted, queries, "adapted, without landmarks", WITHOUT_LANDMARKS)
        reports |= _evaluate(point_map, adapted, queries, "adapted")
        reports |= _evaluate_without_guess(point_map, adapted, queries, "adapted")
    assert queries.map_from_camera is not None
    distance = distance_to_mapping(point_map, queries.map_from_camera)
    assert distance is not None  # the adaptation has learned from these images just now
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "drive": str(drive.path),
        "frames": {"isolated": split.isolated, "stretch": split.stretch},
        "adaptation_steps": schedule.steps,
        "seconds": stages.seconds,
        "tables": make_tables(reports, split, distance),
        "evaluations": reports,
    }
    # What is known is told and written at once: whatever happens to the nodes and the pictures, it is not lost.
    _tell_tables(report["tables"], out)
    _write(report, out)
    with stages("ROS 2 nodes"):
        bag = _write_bag(drive, split, queries, out / "bag")
        result = replay(bag, point_map.path, out / "ros", rate=REPLAY_RATE)
    rows = result.rows()
    report["ros"] = {"replay": result.summary(), "accuracy": summarize(rows), "results": rows}
    _tell_nodes(report["ros"])
    _write(report, out)
    with stages("pictures"):
        draw_results(out, drive, point_map, queries, reports, result)
    _write(report, out)
    _tell_end(stages.seconds, out)


class _Stages:
    """Announces the parts of the work and keeps how long each took, in `seconds`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        console.rule(name)
        begin = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - begin, 1)


def _tell_tables(tables: dict[str, dict[str, Any]], out: Path) -> None:
    """Prints the tables of the evaluations, and writes them."""
    for title, rows in tables.items():
        console.print(f"\n[bold]{title}")
        console.print(summary_table(rows))
    markdown = "".join(f"### {title}\n\n{summary_markdown(rows)}\n" for title, rows in tables.items())
    (out / "tables.md").write_text(markdown)


def _tell_nodes(ros: dict[str, Any]) -> None:
    console.print("\n[bold]Through the ROS 2 nodes; images that were dropped count as failures in the recalls")
    console.print(summary_table({"nodes": ros["accuracy"]}))
    console.print(_two_columns("replay", ros["replay"]))


def _tell_end(seconds: dict[str, float], out: Path) -> None:
    console.print(_two_columns("seconds", {**seconds, "all": round(sum(seconds.values()), 1)}))
    console.print(f"\nEverything is in {out}:")
    for name, what in _LEFT.items():
        console.print(f"  {name:24}{what}", soft_wrap=True)


def _write(report: dict[str, Any], out: Path) -> None:
    """The whole report, as far as there is one, in place of what was there."""
    aside = out / "report.json.tmp"
    aside.write_text(json.dumps(report, indent=1))
    os.replace(aside, out / "report.json")


def _two_columns(title: str, values: dict[str, Any]) -> Table:
    table = Table(title, "")
    for name, value in values.items():
        table.add_row(name, str(value))
    return table


def _synthetic(path: Path) -> Path:
    with progress_bar("making a synthetic drive") as report:
        return write_synthetic_drive(path, frames=100, seed=0, progress=report)


def _build(drive: KittiDrive, queries: Queries, path: Path) -> PointMap:
    assert queries.frames is not None
    source = KittiSource(drive.path, None, [int(frame) for frame in queries.frames])
    with stage_bars() as stages:
        point_map = build_map(source, path, progress=stages)
        encode_map(point_map, load_network("edge"), stages)
    return point_map


def _evaluate(
    point_map: PointMap, checkpoint: str, queries: Queries, name: str, settings: LocalizerSettings | None = None
) -> dict[str, Any]:
    """Reports by name: of the right images, and of the control; with settings of their own of the right ones alone."""
    localizer = Localizer(load_network(checkpoint), point_map, settings=settings or DEFAULT_SETTINGS)
    torch.set_num_threads(1)  # as the node
    reports = {}
    for swap in (False,) if settings else (False, True):
        title = f"{name}, another frame's image" if swap else name
        with progress_bar(title) as progress:
            protocol = TrackingProtocol(repeats=1 if swap else REPEATS, swap=swap)
            reports[title] = evaluate_tracking(localizer, queries, protocol, progress)
    return reports


def _evaluate_without_guess(point_map: PointMap, checkpoint: str, queries: Queries, name: str) -> dict[str, Any]:
    localizer = Localizer(load_network(checkpoint), point_map, places=places_to_search(point_map))
    title = f"{name}, without a first guess"
    with progress_bar(title) as progress:
        return {title: evaluate_global(localizer, queries, GlobalProtocol(), progress)}


def make_tables(reports: dict[str, Any], split: Split, distance: np.ndarray) -> dict[str, dict[str, Any]]:
    """Summaries for the isolated queries, and for the stretch near and far (`distance` `(N,)`) from mapping images."""
    isolated = np.isin(split.queries, split.isolated)
    near = ~isolated & (distance <= NEAR_METRES)
    far = ~isolated & ~near
    parts = {
        f"Single frames left out, {_range(distance[isolated])} from the nearest mapping image": isolated,
        f"Of {STRETCH} frames in a row left out those {_range(distance[near])} from it": near,
        f"Of {STRETCH} frames in a row left out those {_range(distance[far])} from it": far,
    }
    tables: dict[str, dict[str, Any]] = {}
    for title, chosen in parts.items():
        first = next(iter(reports.values()))
        tables[title] = {"start": summarize([row for row in first["start_results"] if chosen[row["query"]]])}
        for name, report in reports.items():
            tables[title][name] = summarize([row for row in report["results"] if chosen[row["query"]]])
    return tables


def _range(metres: np.ndarray) -> str:
    return f"{metres.min():.1f} to {metres.max():.1f} m" if len(metres) else "none"


def _write_bag(drive: KittiDrive, split: Split, queries: Queries, path: Path) -> Path:
    """All queries as a bag, with a wrong first guess before each isolated one and before the stretch."""
    rng = np.random.default_rng(1)
    guesses = {}
    for index in [*split.isolated, split.stretch[0]]:
        truth = drive.map_from_camera(drive.frame(index))
        guesses[index] = truth @ se3.exp(torch.from_numpy(draw_start(rng, 1.0))).numpy()
    write_kitti_bag(drive, path, split.queries, guesses)
    return path
