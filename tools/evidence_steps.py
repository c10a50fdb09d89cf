"""The steps of `evidence.py`: what is run, and the tables that come out of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
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
_BASELINES = {  # what `evaluate` is asked in the comparison with other methods, by the name of its report
    "baselines": ["--method", "network", "--method", "retrieval", "--method", "sift", "--method", "nid"]
    + ["--method", "edges"],
    "alone": ["--no-landmarks"],
    "global": ["--protocol", "global", "--method", "network", "--method", "retrieval", "--method", "sift"],
    "global_alone": ["--protocol", "global", "--no-landmarks"],
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
    drive, other = (data / f"kitti_raw/2011_09_26/2011_09_26_drive_{number}_sync" for number in ("0001", "0009"))
    short = ["--seconds", "1"] if trial else []
    return {
        "drive_0001": _demo(out / "drive_0001", ["--drive", str(drive)], trial, (drive,)),
        "street": _demo(out / "street", [], trial),
        "picture": _picture(out / "picture", out / "street", trial),
        "kitchen": _kitchen(out / "kitchen", data / "rgbd_kitchen", trial),
        "baselines_0009": _baselines_of_drive(out / "baselines_0009", other, trial),
        "baselines_0001": _baselines(out / "baselines_0001", out / "drive_0001", trial),
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


def _picture(out: Path, demo: Path, trial: bool) -> Step:
    """The README's: the map of the demo's street over one of the images that it was made with."""
    file = (out if trial else ROOT / "docs/images") / "overlay_street.jpg"
    command = [_EP2PLOC, "overlay", str(demo / "map"), "--frame", "39", "--removed", "--out", str(file)]
    return Step([command], dict, (), (demo / MEASURED,))


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


def _baselines_of_drive(out: Path, drive: Path, trial: bool) -> Step:
    """In a map that it makes itself."""
    site, queries = str(out / "map"), str(out / "queries")
    frames, steps = ("6:108:60", "2") if trial else ("6:108:12,50:80", "350")
    commands = [
        [_EP2PLOC, "queries", "from-kitti", str(drive), "--out", queries, "--frames", frames],
        [_EP2PLOC, "map", "build", str(drive), "--out", site, "--hold-out", queries],
        [_EP2PLOC, "train", "--site", site, "--steps", steps],
    ]
    step = _baselines(out, out, trial)
    return replace(step, commands=commands + step.commands, needs=(drive,))


def _baselines(out: Path, demo: Path, trial: bool) -> Step:
    """In the map of a demo, for its queries."""
    site, queries = str(demo / "map"), str(demo / "queries")
    reports = {name: out / f"{name}.json" for name in _BASELINES}
    commands = [
        [_EP2PLOC, "evaluate", site, queries, *options, "--json", str(reports[name])]
        for name, options in _BASELINES.items()
    ]

    def tables() -> dict[str, str]:
        made: dict[str, str] = {}
        for table, together, alone in (
            (out.name, "baselines", "alone"),
            (f"{out.name}_global", "global", "global_alone"),
        ):
            methods = json.loads(reports[together].read_text())["methods"]
            rows = {"network and landmarks": methods.pop("network")}
            rows["network alone"] = json.loads(reports[alone].read_text())
            made[table] = evaluation_tables("all", rows | methods)["all"]
        return _with_caption(made, out)

    return Step(commands, tables, (out.name, f"{out.name}_global"), (demo / MEASURED,))


def _localizer(out: Path, demo: Path, trial: bool) -> Step:
    """In the map of a demo: from the starts of its evaluations, and from near ones by alignment alone."""
    site = ["--map", str(demo / "map"), "--queries", str(demo / "queries")]
    site += ["--images", "2"] if trial else []
    near = ["--refine", "align_first", "--share", "0.05", "--threads", "1", "2"]
    commands = [
        [sys.executable, f"{ROOT}/benchmarks/localizer.py", *site, *options, "--markdown", f"{out}/{name}.md"]
        for name, options in (("localizer", ["--threads", "1", "2"]), ("localizer_near", near))
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
