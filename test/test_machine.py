"""What figures were measured on can be told from what is written beside them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import torch

from ep2ploc_core.machine import describe_machine, machine_caption


def test_the_description_names_this_code_and_goes_into_json() -> None:
    machine = json.loads(json.dumps(describe_machine()))
    assert machine["torch"] == torch.__version__ and machine["cpu"] and machine["memory_gb"] > 0
    root = Path(__file__).resolve().parents[1]
    asked = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if asked.returncode == 0:
        assert asked.stdout.startswith(machine["commit"].removesuffix("-dirty"))
    else:
        assert machine["commit"] == ""


def test_the_caption_says_what_is_known() -> None:
    machine = {
        "cpu": "A",
        "cores": 2,
        "memory_gb": 8,
        "gpu": "",
        "load": 0.5,
        "python": "3",
        "torch": "2",
        "numpy": "1",
    }
    caption = machine_caption({**machine, "commit": "0123abc", "date": "2026-01-01"})
    assert "A, 2 cores, 8 GB; no GPU; load 0.5" in caption and "0123abc, 2026-01-01" in caption
    assert "unknown" in machine_caption({**machine, "commit": "", "date": "2026-01-01"})
