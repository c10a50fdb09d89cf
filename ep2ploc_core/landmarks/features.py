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

    def neighbours(self, size: int) -> list[np.ndarray]:
        """The windows that hold anything, in groups of about `size` that lie close together."""
        some = np.flatnonzero(np.isfinite(self.low).all(1))
        middle = (self.low[some] + self.high[some]) / 2
        strips = max(1, round((len(some) / size) ** 0.5))
        strip = np.argsort(np.argsort(middle[:, 0])) * strips // max(1, len(some))
        return np.array_split(some[np.lexsort((middle[:, 1], strip))], max(1, round(len(some) / size)))


class _Holding:
    """Which pixels `(F, 2)` lie in which of K windows. Both are compared by the places of the pixels in the orders of x
    and of y: whole numbers of 16 bits are compared several times as fast as floats."""

    def __init__(self, pixels: np.ndarray, windows: Windows) -> None:
        orders = [np.sort(pixels[:, axis]) for axis in (0, 1)]
        ends = list(zip(orders, windows.low.T, windows.high.T, strict=True))
        self._rank = _short([np.searchsorted(order, pixels[:, axis]) for axis, order in enumerate(orders)])
        self._from = _short([np.searchsorted(order, low, "right") for order, low, _ in ends])
        self._to = _short([np.searchsorted(order, high) for order, _, high in ends])

    def of_any(self, index: np.ndarray) -> np.ndarray:
        """The pixels in the rectangle around these windows."""
        low, high = self._from[:, index].min(1), self._to[:, index].max(1)
        return np.flatnonzero(((self._rank >= low[:, None]) & (self._rank < high[:, None])).all(0))

    def outside(self, rows: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Which of these pixels `(R,)` lie outside of which of these windows `(I,)`: `(R, I)` bool."""
        (x, y), (left, top), (right, bottom) = self._rank[:, rows, None], self._from[:, index], self._to[:, index]
        out: np.ndarray = (x < left) | (x >= right) | (y < top) | (y >= bottom)
        return out


def _short(numbers: list[np.ndarray]) -> np.ndarray:
    return np.stack(numbers).astype(np.int16)


def match(asked: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of unit descriptors `(A, 128)` match which of `(B, 128)`: two arrays `(M,)`. Matches are alike, each
    other's nearest, and clearly nearer than the second (Lowe 2004)."""
    if len(asked) < 2 or len(known) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    best = _Best(len(asked), len(known))
    best.see(torch.arange(len(asked)), torch.arange(len(known)), torch.from_numpy(asked) @ torch.from_numpy(known).T)
    return best.clear_matches()


def match_in_windows(features: Features, known: np.ndarray, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """The same for features and the unit descriptors `(B, 128)` of landmarks, of which each may be in its window only:
    landmarks whose windows lie close together are compared with what features there are."""
    if not len(features) or not len(known):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    asked, holding = torch.from_numpy(features.root), _Holding(features.pixels, windows)
    best = _Best(len(features), len(known))
    for group in windows.neighbours(GROUP):
        rows = holding.of_any(group) if len(group) > 1 else group[:0]  # a single one has no second to be clearer than
        if len(rows):
            likeness = asked[rows] @ torch.from_numpy(known[group]).T
            likeness.masked_fill_(torch.from_numpy(holding.outside(rows, group)), -1.0)
            best.see(torch.from_numpy(rows), torch.from_numpy(group), likeness)
    return best.clear_matches()


class _Best:
    """The two landmarks most like each feature, and how like the feature is that is most like each landmark, as far as
    matches need them."""

    def __init__(self, features: int, landmarks: int) -> None:
        self._first, self._second = torch.full((2, features), -1.0)
        self._index = torch.zeros(features, dtype=torch.long)
        self._most = torch.full((landmarks,), -1.0)

    def see(self, rows: Tensor, columns: Tensor, likeness: Tensor) -> None:
        """The likeness `(R, C)` of features `rows` and landmarks `columns`, of which each is seen once."""
        most, here = likeness.amax(0), likeness.amax(1)
        self._most[columns] = most
        # A feature that is not most like any of these landmarks has no match among them: most are so, and of them only
        # what may be nearer than a match elsewhere has to be known.
        mutual = (likeness == most).any(1) & (here > LEAST_LIKENESS)
        cold, hot = (~mutual).nonzero().squeeze(1), mutual.nonzero().squeeze(1)
        self._second[rows[cold]] = torch.maximum(self._second[rows[cold]], here[cold])
        two, column = likeness[hot].topk(2, dim=1)
        rows = rows[hot]
        first = self._first[rows]
        self._index[rows] = torch.where(two[:, 0] > first, columns[column[:, 0]], self._index[rows])
        self._first[rows] = torch.maximum(first, two[:, 0])
        lesser = torch.minimum(first, two[:, 0])
        self._second[rows] = torch.maximum(torch.maximum(self._second[rows], two[:, 1]), lesser)

    def clear_matches(self) -> tuple[np.ndarray, np.ndarray]:
        """Features and landmarks that match, two arrays `(M,)`."""
        away, beyond = ((2 - 2 * likeness).clamp(min=0).sqrt() for likeness in (self._first, self._second))
        clear = (self._first > LEAST_LIKENESS) & (away < RATIO * beyond)
        rows = (clear & (self._first == self._most[self._index])).nonzero().squeeze(1).numpy()
        matched, place = np.unique(self._index.numpy()[rows], return_index=True)  # of features quite the same the first
        order = np.argsort(place)
        return rows[place[order]], matched[order]
