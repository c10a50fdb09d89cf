"""Features for the refinement by alignment: dense ones of the image at several strides, and what each map point expects
to see at them.

A point expects what the images of the mapping run showed of it, which is kept in the map; where none showed it, what a
point of its descriptor, seen so, may look like.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ep2ploc_core import se3
from ep2ploc_core.camera import project_pinhole
from ep2ploc_core.errors import InputError
from ep2ploc_core.pose.feature_alignment import NEAREST, FeatureLevel
from ep2ploc_core.pose.feature_sampling import sample


@dataclass
class DenseFeatures:
    """Of B images at one stride: unit `features` `(B, H, W, D)` and their `confidence` `(B, H, W)`, 0..1."""

    features: Tensor
    confidence: Tensor
    stride: int


class AlignmentHead(nn.Module):
    """A decoder from the patch features to finer strides, and an MLP on the points' descriptors and what they look like
    from the pose. Levels go from coarse to fine; at the patches' own stride there is none, for that far the score maps
    lead, and features there have been seen to lead away again."""

    def __init__(self, patch_features: int, finer: list[tuple[int, int]], point_width: int, width: int) -> None:
        """patch_features: channels of the patch features; finer: channels and strides of the backbone's, with falling
        strides. Raises InputError where there are no finer ones."""
        super().__init__()
        if not finer:
            raise InputError("This backbone has no features finer than the patches to align; set alignment_width to 0.")
        self.width = width
        self.strides = [stride for _, stride in finer]
        widths = [patch_features, *(max(width, patch_features >> number) for number in range(1, len(finer) + 1))]
        self.carry = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        self.lateral = nn.ModuleList(nn.Conv2d(a, b, 1) for (a, _), b in zip(finer, widths[1:], strict=True))
        self.smooth = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, a, 3, padding=1), nn.BatchNorm2d(a), nn.GELU()) for a in widths[1:]
        )
        self.out = nn.ModuleList(nn.Conv2d(after, width + 1, 1) for after in widths[1:])
        hidden = 2 * point_width
        self.expect = nn.Sequential(
            nn.Linear(point_width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
            nn.Linear(hidden, len(self.strides) * (width + 1)),
        )  # fmt: skip
        levels = len(self.strides)
        self.log_damping = nn.Parameter(torch.full((levels, 6), math.log(0.03)))
        self.log_scale = nn.Parameter(torch.full((levels,), math.log(0.5)))
        # Of the features' inverse variance, for the losses on single points.
        self.log_precision = nn.Parameter(torch.full((levels,), 1.0))

    def forward(self, patch_features: Tensor, finer: list[Tensor]) -> list[DenseFeatures]:
        """patch_features `(B, C, R, C)` and the backbone's features at the finer strides -> all levels."""
        merged, levels = patch_features, []
        parts = zip(self.strides, finer, self.carry, self.lateral, self.smooth, self.out, strict=True)
        for stride, feature, carry, lateral, smooth, out in parts:
            grown = functional.interpolate(carry(merged), size=feature.shape[-2:], mode="bilinear", align_corners=False)
            merged = smooth(grown + lateral(feature))
            last = out(merged).float().permute(0, 2, 3, 1).contiguous()  # a cell's numbers are read together
            features, confidence = functional.normalize(last[..., :-1], dim=-1), torch.sigmoid(last[..., -1])
            levels.append(DenseFeatures(features, confidence, stride))
        return levels

    @property
    def appearance_width(self) -> int:
        """Numbers that an appearance takes."""
        return len(self.strides) * (self.width + 1)

    def known(self, appearance: Tensor | None) -> Tensor | None:
        """Which points `(V, N)` some image showed, by their appearances `(V, N, A)`."""
        return None if appearance is None else (appearance.unflatten(-1, (len(self.strides), -1))[..., -1] > 0).any(-1)

    def observe(
        self, dense: list[DenseFeatures], image: Tensor, intrinsics: Tensor, camera_from_map: Tensor, xyz: Tensor
    ) -> Tensor:
        """What images show of points `xyz` `(V, N, 3)`, map axes: appearances `(V, N, A)`, level by level the unit
        features and how much they are worth, 0..1; zero outside the image.

        image `(V,)`: which one of the dense features' images; intrinsics `(V, 4)`; camera_from_map `(V, 4, 4)`.
        """
        pixels, depth = project_pinhole(intrinsics, se3.apply(camera_from_map, xyz))
        parts = []
        for level in dense:
            place = (pixels + 0.5) / level.stride - 0.5
            height, width = level.confidence.shape[1:]
            inside = (depth > NEAREST) & (place > -0.5).all(-1)
            inside = inside & (place[..., 0] < width - 0.5) & (place[..., 1] < height - 0.5)
            value = sample(level.features, image, place)
            worth = sample(level.confidence[..., None], image, place)
            parts += [functional.normalize(value, dim=-1), worth.clamp(0, 1) * inside[..., None]]
        return torch.cat(parts, -1)

    def levels(
        self,
        images: list[DenseFeatures],
        image_of_view: Tensor,
        descriptors: Tensor,
        seen: Tensor,
        counts: Tensor,
        appearance: Tensor | None,
    ) -> list[FeatureLevel]:
        """What is to be aligned: V views of the images, `image_of_view` `(V,)`; of their points the descriptors
        `(V, N, D)`, what they look like from the pose `(V, N, 10)`, which of them count `(V, N)`, and their appearances
        `(V, N, A)`, where the map has some."""
        said = self.expect(torch.cat([descriptors, seen], -1)).float().unflatten(-1, (len(self.strides), -1))
        expected, weight = functional.normalize(said[..., :-1], dim=-1), torch.sigmoid(said[..., -1])
        if appearance is not None:
            observed = appearance.unflatten(-1, (len(self.strides), -1))
            known = observed[..., -1] > 0
            expected = torch.where(known[..., None], functional.normalize(observed[..., :-1], dim=-1), expected)
            weight = torch.where(known, observed[..., -1], weight)
        return [
            FeatureLevel(
                features=dense.features,
                confidence=dense.confidence,
                image=image_of_view,
                expected=expected[:, :, number],
                weight=weight[:, :, number] * counts,
                stride=dense.stride,
                damping=self.log_damping[number].exp(),
                scale=self.log_scale[number].exp(),
                precision=self.log_precision[number].exp(),
            )
            for number, dense in enumerate(images)
        ]
