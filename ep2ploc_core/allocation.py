"""Keeps freed memory for the next tensor of its size.

glibc gives large blocks back to the system as soon as they are freed, and every tensor of a few megabytes that is made
anew then costs a page fault for each 4 kB of it: about a fifth of the time that an image takes on a CPU
(`benchmarks/localizer.py --give-back` measures without).
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST_MMAP_THRESHOLD = 32 << 20  # bytes; glibc takes no more
_KEPT = 1 << 30  # bytes


def keep_freed_memory() -> None:
    """For this process, from now on; does nothing where there is no glibc."""
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, _KEPT)
