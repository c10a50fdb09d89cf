"""What figures were measured on: the machine, the versions of what ran, and the state of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "numpy")
_NO_CODE = (":!*.md", ":!benchmarks/results")
_CODE = Path(__file__).resolve().parents[1]


def describe_machine() -> dict[str, Any]:
    """`cpu`, `cores`, `threads` (that torch uses), `memory_gb`, `gpu` ("" where there is none), `load` (how many
    processes were running or waiting to, over the last minute), `python`, `torch`, `numpy`, `commit` of this code
    ("-dirty" after it where files differ that are neither pages nor results, since measuring renews these; "" where it
    is no checkout), and `date` (UTC)."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        "commit": _commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def machine_caption(machine: dict[str, Any]) -> str:
    """One sentence of what `describe_machine` found, to stand below a table."""
    parts = [f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB", machine["gpu"] or "no GPU"]
    parts.append(f"load {machine['load']}")
    parts.append(", ".join(f"{name} {machine[name]}" for name in ("python", *_PACKAGES)))
    parts.append(f"commit {machine['commit'] or 'unknown'}, {machine['date']}")
    return "; ".join(parts) + "."


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(named), platform.machine())


def _commit() -> str:
    def git(*asked: str) -> str:
        return subprocess.run(["git", "-C", str(_CODE), *asked], capture_output=True, text=True, check=True).stdout

    try:
        commit = git("rev-parse", "--short", "HEAD").strip()
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *_NO_CODE)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{commit}-dirty" if changed else commit
