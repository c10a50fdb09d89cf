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
from ep2ploc_core.pose.feature_alignment import NEAREST, FeatureLevel, sample_with_slope


@dataclass
class DenseFeatures:
    """Of B images at one stride: unit `features` `(B, H, W, D)` and their `confidence` `(B, H, W)`, 0..1."""

    features: Tensor
    confidence: Tensor
    stride: int


class AlignmentHead(nn.Module):
    """A decoder from the patch features to finer strides, and an MLP on the points' descriptors and what they look like
    from the pose. Levels go from coarse to fine."""

    def __init__(self, coarse: tuple[int, int], finer: list[tuple[int, int]], point_width: int, width: int) -> None:
        """coarse: channels and stride of the patch features; finer: of the backbone's, with falling strides."""
        super().__init__()
        self.width = width
        self.strides = [coarse[1], *(stride for _, stride in finer)]
        widths = [coarse[0], *(max(width, coarse[0] >> number) for number in range(1, len(self.strides)))]
        self.carry = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        self.lateral = nn.ModuleList(
            nn.Conv2d(channels, after, 1) for (channels, _), after in zip(finer, widths[1:], strict=True)
        )
        self.smooth = nn.ModuleList(
            nn.Sequential(nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.GELU())
            for after in widths[1:]
        )
        self.out = nn.ModuleList(nn.Conv2d(after, width + 1, 1) for after in widths)
        hidden = 2 * point_width
        self.expect = nn.Sequential(
            nn.Linear(point_width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
            nn.Linear(hidden, len(self.strides) * (width + 1)),
        )  # fmt: skip
        levels = len(self.strides)
        self.log_damping = nn.Parameter(torch.full((levels, 6), math.log(0.03)))
        self.log_scale = nn.Parameter(torch.full((levels,), math.log(0.5)))
        # Of the features' inverse variance, for the loss on single points (GN-Net's).
        self.log_precision = nn.Parameter(torch.full((levels,), 1.0))

    def forward(self, patch_features: Tensor, finer: list[Tensor]) -> list[DenseFeatures]:
        """patch_features `(B, C, R, C)` and the backbone's features at the finer strides -> all levels."""
        merged = patch_features
        levels = [self._dense(0, merged)]
        for number, (carry, lateral, smooth) in enumerate(zip(self.carry, self.lateral, self.smooth, strict=True)):
            feature = finer[number]
            grown = functional.interpolate(carry(merged), size=feature.shape[-2:], mode="bilinear", align_corners=False)
            merged = smooth(grown + lateral(feature))
            levels.append(self._dense(number + 1, merged))
        return levels

    def _dense(self, number: int, merged: Tensor) -> DenseFeatures:
        out = self.out[number](merged).float().permute(0, 2, 3, 1)
        return DenseFeatures(
            functional.normalize(out[..., :-1], dim=-1), torch.sigmoid(out[..., -1]), self.strides[number]
        )

    @property
    def appearance_width(self) -> int:
        """Numbers that an appearance takes."""
        return len(self.strides) * (self.width + 1)

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
            value, _ = sample_with_slope(level.features, image, place)
            worth, _ = sample_with_slope(level.confidence[..., None], image, place)
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
