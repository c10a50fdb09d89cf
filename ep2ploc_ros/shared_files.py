"""Where the files lie that come with the package: beside it in a checkout, under `share` when it is installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ep2ploc_core.errors import InputError

PACKAGE = "ep2ploc_ros"


def shared_file(name: str) -> Path:
    """A file such as `config/fastdds_shm.xml`; raises InputError when the installation lacks it."""
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    roots = [Path(__file__).resolve().parents[1], *(Path(prefix) / "share" / PACKAGE for prefix in prefixes if prefix)]
    for root in roots:
        if (root / name).is_file():
            return root / name
    raise InputError(f"The file {name} of {PACKAGE} is not found; install the package again.")
