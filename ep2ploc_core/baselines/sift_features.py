"""SIFT features of an image, and which of two images' features match."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

LEAST_CONTRAST = 0.02  # half of OpenCV's own: streets have much that is in the shade
RATIO = 0.8  # of the distances to the nearest and to the second feature, below which a match is taken
LEAST_LIKENESS = 0.7  # scalar product of the descriptors of a match


@dataclass(frozen=True)
class Features:
    """Pixels `(K, 2)` float32 and unit descriptors `(K, 128)` float32, the strongest first."""

    pixels: np.ndarray
    descriptors: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, index: np.ndarray) -> Features:
        """Those of a boolean mask or of indices."""
        return Features(self.pixels[index], self.descriptors[index])


def detect(grey: np.ndarray, most: int) -> Features:
    """The `most` strongest of an image `(H, W)` uint8. Descriptors are RootSIFT: their scalar product is Hellinger's
    (Arandjelovic, Zisserman: Three things everyone should know to improve object retrieval, CVPR 2012)."""
    keypoints, descriptors = cv2.SIFT.create(nfeatures=most, contrastThreshold=LEAST_CONTRAST).detectAndCompute(
        grey, np.full_like(grey, 255)
    )
    if descriptors is None:
        return Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32))
    strength = np.array([point.response for point in keypoints])
    order = np.argsort(-strength, kind="stable")
    pixels = np.array([point.pt for point in keypoints], np.float32)[order]
    root = np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-9))[order]
    return Features(pixels, root.astype(np.float32))


def match(asked: np.ndarray, known: np.ndarray, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Which of descriptors `(A, 128)` match which of `(B, 128)`: two arrays `(M,)`. Matches are alike, each other's
    nearest, and clearly nearer than the second (Lowe 2004). allowed `(A, B)` bool: the pairs that come into question.
    """
    if len(asked) < 2 or len(known) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    likeness = torch.from_numpy(asked) @ torch.from_numpy(known).T
    if allowed is not None:
        likeness.masked_fill_(torch.from_numpy(~allowed), -1.0)
    nearest, index = likeness.topk(2, dim=1)
    distance = (2 - 2 * nearest).clamp(min=0).sqrt()
    rows = ((nearest[:, 0] > LEAST_LIKENESS) & (distance[:, 0] < RATIO * distance[:, 1])).nonzero().squeeze(1)
    rows = rows[likeness[:, index[rows, 0]].argmax(0) == rows]
    return rows.numpy(), index[rows, 0].numpy()
