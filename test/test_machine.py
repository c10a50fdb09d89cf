"""What figures were measured on can be told from what is written beside them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

import ep2ploc_core.machine
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


def test_pages_that_measuring_renews_do_not_make_the_code_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("code.py", "page.md"):
        (tmp_path / name).write_text("as it was\n")
    author = ("-c", "user.name=A", "-c", "user.email=a@b")
    for command in (("init", "-q"), ("add", "."), (*author, "commit", "-qm", "first")):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    monkeypatch.setattr(ep2ploc_core.machine, "_CODE", tmp_path)
    clean = describe_machine()["commit"]
    (tmp_path / "page.md").write_text("a new table\n")
    assert describe_machine()["commit"] == clean and not clean.endswith("-dirty")
    (tmp_path / "code.py").write_text("changed\n")
    assert describe_machine()["commit"] == f"{clean}-dirty"
