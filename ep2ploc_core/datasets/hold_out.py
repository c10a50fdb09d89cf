"""Frames that a map must not know, because it is tested on them."""

from __future__ import annotations

# Frames around a held-out query whose scans and whose images stay out of the map and of the adaptation to it.
SCAN_MARGIN = 3
IMAGE_MARGIN = 2


def far_from(queries: list[int], frame: int, margin: int) -> bool:
    """Whether no held-out frame number lies within `margin` of this one."""
    return all(abs(frame - query) > margin for query in queries)
