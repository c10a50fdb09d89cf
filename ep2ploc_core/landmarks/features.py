"""SIFT features of an image, and which of them match those of another, or landmarks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from torch import Tensor

LEAST_CONTRAST = 0.02  # half of OpenCV's own: streets have much that is in the shade
RATIO = 0.8  # of the distances to the nearest and to the second feature, below which a match is taken
GROUP = 128  # landmarks that are compared at once
LEAST_LIKENESS = 0.7  # scalar product of the descriptors of a match


@dataclass(frozen=True)
class Features:
    """Pixels `(K, 2)` float32 and SIFT descriptors `(K, 128)` uint8, the strongest first."""

    pixels: np.ndarray
    descriptors: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    @cached_property
    def root(self) -> np.ndarray:
        """See `root_sift`."""
        return root_sift(self.descriptors)


def root_sift(descriptors: np.ndarray) -> np.ndarray:
    """RootSIFT `(K, 128)` float32 of SIFT descriptors `(K, 128)`: the scalar product of two is Hellinger's
    (Arandjelovic, Zisserman: Three things everyone should know to improve object retrieval, CVPR 2012)."""
    share = descriptors.astype(np.float32)
    share /= np.maximum(share.sum(1, keepdims=True), 1e-9)
    return np.sqrt(share)


def detect(grey: np.ndarray, most: int) -> Features:
    """The `most` strongest of an image `(H, W)` uint8."""
    keypoints, descriptors = cv2.SIFT.create(nfeatures=most, contrastThreshold=LEAST_CONTRAST).detectAndCompute(
        grey, np.full_like(grey, 255)
    )
    if descriptors is None:
        return Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8))
    order = np.argsort([-point.response for point in keypoints], kind="stable")
    pixels = np.array([point.pt for point in keypoints], np.float32)
    return Features(pixels[order], descriptors.astype(np.uint8)[order])  # OpenCV's floats hold whole numbers, 0 to 255


@dataclass(frozen=True)
class Windows:
    """Where in the image each of K landmarks may be: from low `(K, 2)` to high `(K, 2)`, pixels; a window whose low is
    infinite holds nothing."""

    low: np.ndarray
    high: np.ndarray

    def hold(self, pixels: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Which pixels `(F, 2)` lie in which of the windows `index` `(I,)`: `(F, I)` bool."""
        x, y = pixels[:, :1], pixels[:, 1:]
        low, high = self.low[index], self.high[index]
        inside: np.ndarray = (x > low[:, 0]) & (x < high[:, 0]) & (y > low[:, 1]) & (y < high[:, 1])
        return inside

    def neighbours(self, size: int) -> list[np.ndarray]:
        """The windows that hold anything, in groups of about `size` that lie close together."""
        some = np.flatnonzero(np.isfinite(self.low).all(1))
        middle = (self.low[some] + self.high[some]) / 2
        strips = max(1, round((len(some) / size) ** 0.5))
        strip = np.argsort(np.argsort(middle[:, 0])) * strips // max(1, len(some))
        return np.array_split(some[np.lexsort((middle[:, 1], strip))], max(1, round(len(some) / size)))


def match(asked: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of unit descriptors `(A, 128)` match which of `(B, 128)`: two arrays `(M,)`. Matches are alike, each
    other's nearest, and clearly nearer than the second (Lowe 2004)."""
    if len(asked) < 2 or len(known) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    likeness = torch.from_numpy(asked) @ torch.from_numpy(known).T
    best, index = likeness.topk(2, dim=1)
    return _clear_matches(best, index, likeness.argmax(0))


def match_in_windows(features: Features, known: np.ndarray, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """The same for features and the unit descriptors `(B, 128)` of landmarks, of which each may be in its window only:
    landmarks whose windows lie close together are compared with what features there are."""
    asked = torch.from_numpy(features.root)
    best = torch.full((len(features), 2), -1.0)
    index = torch.zeros(len(features), 2, dtype=torch.long)
    nearest = torch.full((len(known),), -1)
    for group in windows.neighbours(GROUP):
        if not len(group):
            continue
        low, high = windows.low[group].min(0), windows.high[group].max(0)
        rows = np.flatnonzero(((features.pixels > low) & (features.pixels < high)).all(1))
        if not len(rows):
            continue
        likeness = asked[rows] @ torch.from_numpy(known[group]).T
        likeness.masked_fill_(torch.from_numpy(~windows.hold(features.pixels[rows], group)), -1.0)
        most, row = likeness.max(0)
        nearest[group] = torch.where(most > -1, torch.from_numpy(rows)[row], -1)
        here, column = likeness.topk(min(2, len(group)), dim=1)
        together, place = torch.cat([best[rows], here], 1).topk(2, dim=1)
        index[rows] = torch.cat([index[rows], torch.from_numpy(group)[column]], 1).gather(1, place)
        best[rows] = together
    return _clear_matches(best, index, nearest)


def _clear_matches(best: Tensor, index: Tensor, nearest: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """From the likeness `best` `(A, 2)` of the two landmarks `index` `(A, 2)` most like each feature, and the feature
    `nearest` `(B,)` each landmark."""
    distance = (2 - 2 * best).clamp(min=0).sqrt()
    rows = ((best[:, 0] > LEAST_LIKENESS) & (distance[:, 0] < RATIO * distance[:, 1])).nonzero().squeeze(1)
    rows = rows[nearest[index[rows, 0]] == rows]
    return rows.numpy(), index[rows, 0].numpy()
