"""Which way is up in a room, by its level surfaces."""

from __future__ import annotations

import numpy as np

_FARTHEST = np.radians(45.0)  # of up from the first guess
_SPREAD = np.radians(5.0)  # of the normals of one direction
_CANDIDATES = 500
_LEAST_SHARE = 0.02  # of all surface that has to be level


def up_direction(normals: np.ndarray, areas: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """The unit vector `(3,)` within 45 deg of `guess` `(3,)` to which the most surface is normal.

    normals: unit vectors `(N, 3)`, of either sign; areas `(N,)`. Floor, tables and ceiling agree on it. Where less than
    2 % of the surface does, or there is none, the guess itself comes back as a unit vector.
    """
    guess = guess / np.linalg.norm(guess)
    normals = normals * np.where(normals @ guess < 0, -1.0, 1.0)[:, None]
    near = np.flatnonzero(normals @ guess > np.cos(_FARTHEST))
    if not len(near):
        return guess
    candidates = normals[near[:: -(-len(near) // _CANDIDATES)]]
    share = [areas[normals @ candidate > np.cos(_SPREAD)].sum() for candidate in candidates]
    if max(share) < _LEAST_SHARE * areas.sum():
        return guess
    up = candidates[int(np.argmax(share))]
    for _ in range(5):  # the mean of what lies within the spread, until it stays
        level = normals @ up > np.cos(_SPREAD)
        mean = (areas[level, None] * normals[level]).sum(axis=0)
        up = mean / np.linalg.norm(mean)
    return up
