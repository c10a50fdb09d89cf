"""The steps of `evidence.py`: what is run, and the tables that come out of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evidence_tables import demo_tables, evaluation_tables
from readme_tables import ROOT, read_tables

from ep2ploc_core.machine import machine_caption

MEASURED = "measured.json"  # in the directory of a step that was done whole: when it began, and on what machine
_EP2PLOC = str(Path(sys.executable).with_name("ep2ploc"))
_KITCHEN = {  # what `evaluate` is asked there, by the name of its row
    "adapted, by score maps alone": ["--refine", "none", "--no-landmarks"],
    "adapted, without landmarks": ["--no-landmarks"],
    "adapted": [],
    "adapted, another frame's image": ["--swap"],
    "adapted, without a first guess": ["--protocol", "global"],
}
_SCALE = ("map", "places", "visibility", "matches", "pnp", "image", "voxels")


@dataclass(frozen=True)
class Step:
    """Commands, one after the other; `tables` by name, made of what they left; `makes`: these names. needs: what must
    be there before."""

    commands: list[list[str]]
    tables: Callable[[], dict[str, str]]
    makes: tuple[str, ...]
    needs: tuple[Path, ...] = ()


def all_steps(out: Path, data: Path, trial: bool) -> dict[str, Step]:
    """By name, in the order in which they are done, into directories of that name in `out`. data: where the recordings
    are. trial: as short as can be."""
    drive = data / "kitti_raw/2011_09_26/2011_09_26_drive_0001_sync"
    short = ["--seconds", "1"] if trial else []
    return {
        "drive_0001": _demo(out / "drive_0001", ["--drive", str(drive)], trial, (drive,)),
        "street": _demo(out / "street", [], trial),
        "kitchen": _kitchen(out / "kitchen", data / "rgbd_kitchen", trial),
        "localizer": _localizer(out / "localizer", out / "drive_0001", trial),
        "ros": _benchmark(out / "ros", "ros", *short),
        "ros_minutes": _benchmark(out / "ros_minutes", "ros", "--minutes", "0.2" if trial else "5"),
        "ros_images": _benchmark(out / "ros_images", "ros_images", *short),
        "scale": _scale(out / "scale", trial),
    }


def _demo(out: Path, options: list[str], trial: bool, needs: tuple[Path, ...] = ()) -> Step:
    def tables() -> dict[str, str]:
        report = json.loads((out / "report.json").read_text())
        return _with_caption(demo_tables(out.name, report), out)

    steps = ["--steps", "2"] if trial else []
    makes = tuple(f"{out.name}{part}" for part in ("", "_answers", "_nodes", "_minutes"))
    return Step([[_EP2PLOC, "demo", *options, "--out", str(out), *steps]], tables, makes, needs)


def _kitchen(out: Path, recording: Path, trial: bool) -> Step:
    """As the README tells it."""
    site, queries, colour = str(out / "map"), str(out / "queries"), ["--colour-camera", str(out / "colour.txt")]
    frames, steps = ("402:700:120", "2") if trial else ("402:700:12", "300")
    hold_out = ["--voxel", "0.05", "--hold-out", "400:1000"]
    reports = {row: out / f"{number}.json" for number, row in enumerate(_KITCHEN)}
    commands = [
        ["sh", "-c", f"printf '525 0 320\\n0 525 240\\n0 0 1\\n' > '{colour[1]}'"],
        [_EP2PLOC, "map", "build", str(recording), "--out", site, *hold_out, *colour],
        [_EP2PLOC, "train", "--site", site, "--steps", steps],
        [_EP2PLOC, "queries", "from-rgbd", str(recording), "--out", queries, "--frames", frames, *colour],
    ]
    for row, options in _KITCHEN.items():
        commands.append([_EP2PLOC, "evaluate", site, queries, *options, "--json", str(reports[row])])

    def tables() -> dict[str, str]:
        read = {row: json.loads(file.read_text()) for row, file in reports.items()}
        return _with_caption(evaluation_tables(out.name, read), out)

    return Step(commands, tables, (out.name, f"{out.name}_answers"), (recording,))


def _localizer(out: Path, demo: Path, trial: bool) -> Step:
    """In the map of a demo: from the starts of its evaluations, and from near ones by alignment alone."""
    site = ["--map", str(demo / "map"), "--queries", str(demo / "queries"), "--threads", "1"]
    site += ["--images", "2"] if trial else []
    near = ["--refine", "align_first", "--share", "0.05"]
    commands = [
        [sys.executable, f"{ROOT}/benchmarks/localizer.py", *site, *options, "--markdown", f"{out}/{name}.md"]
        for name, options in (("localizer", []), ("localizer_near", near))
    ]
    return Step(commands, lambda: read_tables(out), ("localizer", "localizer_near"), (demo / MEASURED,))


def _benchmark(out: Path, name: str, *options: str) -> Step:
    command = [sys.executable, f"{ROOT}/benchmarks/{name}.py", *options, "--markdown", f"{out}/{out.name}.md"]
    return Step([command], lambda: read_tables(out), (out.name,))


def _scale(out: Path, trial: bool) -> Step:
    """Its results and plots are kept in the repository."""
    where = ["--out", str(out if trial else ROOT / "benchmarks/results"), "--tables", str(out)]
    command = [sys.executable, f"{ROOT}/benchmarks/scale.py", *where]
    makes = tuple(f"scale_{name}" for name in _SCALE)
    return Step([command if trial else [*command, "--full"]], lambda: read_tables(out), makes)


def _with_caption(tables: dict[str, str], out: Path) -> dict[str, str]:
    """The first table, which is named as the step is, says on what they were measured."""
    machine = json.loads((out / MEASURED).read_text())["machine"]
    return {**tables, out.name: f"{tables[out.name]}\n{machine_caption(machine)}\n"}
