"""A training that is killed leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PARENT = """
import signal
import torch
from ep2ploc_core.training.processes import run_everywhere

def work(device, directory):
    import os, pathlib
    (pathlib.Path(directory) / str(os.getpid())).touch()
    signal.pause()

if __name__ == "__main__":
    import sys
    run_everywhere(work, torch.device("cpu"), sys.argv[1], processes=2)
"""


def test_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    started = tmp_path / "started"
    started.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(started)])
    children: list[int] = []
    try:
        assert _within_minutes(lambda: len(list(started.iterdir())) == 2)
        children = [int(file.name) for file in started.iterdir()]
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert _within_minutes(lambda: not any(map(_alive, children)))
    finally:
        parent.kill()
        for child in filter(_alive, children):
            os.kill(child, signal.SIGKILL)


def _within_minutes(happens: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 240
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.1)
    return happens()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
