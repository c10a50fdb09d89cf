"""Measures all that the README and the pages on results, speed and evaluation show in tables, and puts it there.

    .venv/bin/python tools/evidence.py [STEP ...] [--resume] [--tables] [--trial]

Without STEPs: all of them; nothing else should run meanwhile. What a step leaves is in `out/evidence/STEP`, and what it
said in `log.txt` there; its tables go into `out/evidence/tables`, and from there into the pages. A step that fails is
told, and the next one begins. `--resume` leaves out what was measured after the last change of the code, `--tables`
measures nothing and makes the tables of what lies there. `--trial` does everything as shortly as it can be done, into
`out/evidence_trial`, and leaves the pages alone: its figures mean nothing.

EP2PLOC_DATA names the directory in which `kitti_raw` and `rgbd_kitchen` are.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from evidence_steps import MEASURED, Step, all_steps
from readme_tables import ROOT, check_places, put_into_pages, read_tables

from ep2ploc_core.errors import Ep2plocError, InputError
from ep2ploc_core.machine import describe_machine

_CODE = ("ep2ploc_core", "ep2ploc_ros", "benchmarks", "config")
_KINDS = (".py", ".safetensors", ".yaml", ".xml")


def measure(step: Step, out: Path) -> None:
    """Runs a step's commands in the root of the repository, into a directory that is emptied first. Raises InputError
    when one of them fails, or something is missing that it needs."""
    for needed in step.needs:
        if not needed.exists():
            raise InputError(f"{needed} is missing; set EP2PLOC_DATA, or do the step before that makes it.")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    begun, machine = time.time(), describe_machine()
    with (out / "log.txt").open("w") as log:
        for command in step.commands:
            print("$", *command, file=log, flush=True)
            if subprocess.run(command, stdout=log, stderr=log, cwd=ROOT).returncode:
                raise InputError(f"'{' '.join(command)}' failed; {out / 'log.txt'} tells why.")
    (out / MEASURED).write_text(json.dumps({"begun": begun, "machine": machine}))


def is_newer_than(out: Path, files: Iterable[Path]) -> bool:
    """Whether what lies there was measured whole, and begun after the last change of these files."""
    if not (out / MEASURED).exists():
        return False
    begun: float = json.loads((out / MEASURED).read_text())["begun"]
    return begun > max(file.stat().st_mtime for file in files)


def collect(step: Step, directory: Path) -> None:
    """Makes a step's tables in the directory of all tables."""
    tables = step.tables()
    if set(tables) != set(step.makes):
        raise InputError(f"The tables {sorted(tables)} were made, where {sorted(step.makes)} should have been.")
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in tables.items():
        (directory / f"{name}.md").write_text(text)


def renew(steps: dict[str, Step], out: Path, resume: bool, only_tables: bool) -> bool:
    """Does these steps one after the other, each in the directory of its name in `out`; whether all of them worked."""
    code = [file for folder in _CODE for file in (ROOT / folder).rglob("*") if file.suffix in _KINDS]
    worked = True
    for name, step in steps.items():
        begun = time.monotonic()
        try:
            if not only_tables and not (resume and is_newer_than(out / name, code)):
                print(f"{name} ...", flush=True)
                measure(step, out / name)
            if (out / name / MEASURED).exists():
                collect(step, out / "tables")
                print(f"{name}: {', '.join(step.makes)} ({(time.monotonic() - begun) / 60:.1f} minutes)", flush=True)
        except Ep2plocError as error:
            worked = False
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        except (OSError, LookupError, ValueError) as error:  # results of another form
            worked = False
            print(f"{name}: its results cannot be read ({type(error).__name__}: {error})", file=sys.stderr, flush=True)
    return worked


def main() -> None:
    """Errors are one line each on stderr; exit code 2 when there was one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP")
    parser.add_argument("--resume", action="store_true", help="leave out what is newer than the code")
    parser.add_argument("--tables", action="store_true", help="measure nothing, only make the tables")
    parser.add_argument("--trial", action="store_true", help="try out all commands; the pages are left alone")
    arguments = parser.parse_args()
    out = ROOT / "out" / ("evidence_trial" if arguments.trial else "evidence")
    steps = all_steps(out, Path(os.environ.get("EP2PLOC_DATA", "EP2PLOC_DATA")), arguments.trial)
    unknown = [name for name in arguments.steps if name not in steps]
    if unknown:
        parser.error(f"there is no step '{unknown[0]}'; there are: {', '.join(steps)}")

    try:
        check_places(name for step in steps.values() for name in step.makes)  # before anything long is begun
        wanted = {name: steps[name] for name in arguments.steps or steps}
        worked = renew(wanted, out, arguments.resume, arguments.tables)
        for page in [] if arguments.trial else put_into_pages(read_tables(out / "tables")):
            print(f"{page.relative_to(ROOT)}: tables renewed")
    except InputError as error:
        print(f"evidence: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if not worked:
        raise SystemExit(2)


if __name__ == "__main__":
    main()
