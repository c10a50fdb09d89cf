"""How long a call keeps this process busy: what others do meanwhile does not count, so figures from a machine that does
other things, too, are nearly those of a quiet one. On one thread this is the time that it takes; see `alone`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numpy as np

P, R = ParamSpec("P"), TypeVar("R")


def alone() -> None:
    """Goes on with one thread: begins this program anew where libraries may have made more when they were loaded."""
    if os.environ.get("OMP_NUM_THREADS") != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_NUM_THREADS": "1"})


def timed(work: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> tuple[R, float]:
    """What a call returns, and its seconds."""
    begun = time.process_time()
    result = work(*arguments, **options)
    return result, time.process_time() - begun


def median_ms(work: Callable[[], object], runs: int = 7) -> float:
    """Milliseconds; one more run before warms up."""
    seconds = [timed(work)[1] for _ in range(runs + 1)]
    return 1000 * float(np.median(seconds[1:]))
