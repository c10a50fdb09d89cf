"""A training that is killed leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PARENT = """
import time
import torch
from ep2ploc_core.training.processes import run_everywhere

def work(device, directory):
    import os, pathlib
    (pathlib.Path(directory) / str(os.getpid())).touch()
    time.sleep(600)

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
    deadline = time.monotonic() + 60
    while len(list(started.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    children = [int(file.name) for file in started.iterdir()]
    assert len(children) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(map(_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_alive, children))


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
