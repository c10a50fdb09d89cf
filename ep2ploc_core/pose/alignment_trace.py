"""An alignment step by step, for people who want to look at it; made only when somebody asks, since it costs as much as
the alignment itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ep2ploc_core.pose.feature_alignment import Alignment, FeatureLevel, look


@dataclass
class AlignmentTrace:
    """What N points met in the image from each of K + 1 poses, the start first, on the level that led to the pose.

    level_of `(K + 1,)`: 0 is the coarsest, and the start's; strides: pixels of the network's image per cell, of each
    level; confidence: of the image, 0..1, `(H, W)` of each level. points_map `(N, 3)`; pixels `(K + 1, N, 2)`; inside
    `(K + 1, N)`: the image; unlike `(K + 1, N)`: 0..2, 1.4 is as unlike as chance; weight `(K + 1, N)`, 0..1.
    """

    level_of: np.ndarray
    strides: list[int]
    confidence: list[np.ndarray]
    points_map: np.ndarray
    pixels: np.ndarray
    inside: np.ndarray
    unlike: np.ndarray
    weight: np.ndarray


def trace_alignment(levels: list[FeatureLevel], xyz: Tensor, intrinsics: Tensor, found: Alignment) -> AlignmentTrace:
    """Of an alignment of a single view: points `xyz` `(1, N, 3)`, intrinsics `(1, 4)`. Points and pixels are those that
    were aligned: in the frame of the alignment, and of the image that the levels are of."""
    looks = [
        look(levels[number], xyz, pose, intrinsics) for number, pose in zip(found.level_of, found.track, strict=True)
    ]
    return AlignmentTrace(
        level_of=np.array(found.level_of),
        strides=[level.stride for level in levels],
        confidence=[level.confidence[int(level.image[0])].cpu().numpy() for level in levels],
        points_map=xyz[0].double().cpu().numpy(),
        pixels=np.stack([one.pixels[0].double().cpu().numpy() for one in looks]),
        inside=np.stack([one.inside[0].cpu().numpy() for one in looks]),
        unlike=np.stack([one.unlike[0].cpu().numpy() for one in looks]),
        weight=np.stack([one.weight[0].cpu().numpy() for one in looks]),
    )
