"""How long a call takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numpy as np

P, R = ParamSpec("P"), TypeVar("R")


def timed(work: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> tuple[R, float]:
    """What a call returns, and its seconds."""
    begun = time.perf_counter()
    result = work(*arguments, **options)
    return result, time.perf_counter() - begun


def median_ms(work: Callable[[], object], runs: int = 7) -> float:
    """Milliseconds; one more run before warms up."""
    seconds = [timed(work)[1] for _ in range(runs + 1)]
    return 1000 * float(np.median(seconds[1:]))
