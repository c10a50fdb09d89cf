"""Image encoder: a timm backbone and a feature pyramid, one descriptor per image patch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ep2ploc_core.errors import InputError
from ep2ploc_core.timm_import import timm

FINER_LEVELS = 2  # as many levels of the backbone below the patches are handed on


class ImageEncoder(nn.Module):
    """Descriptors on a grid of patches of `patch` pixels, from any timm backbone that gives features by stride.

    `finer`: channels and strides of the backbone's features that are finer than the patches, with falling strides.

    Raises InputError when there is no backbone of this name, or none with the strides that are needed.
    """

    def __init__(self, backbone: str, width: int, out_width: int, patch: int) -> None:
        super().__init__()
        self.backbone = _create(backbone)
        levels: Any = self.backbone.feature_info
        strides, channels = levels.reduction(), levels.channels()
        self.levels = [level for level, stride in enumerate(strides) if stride >= patch]
        needed = [patch << step for step in range(len(self.levels))]
        if not needed or [strides[level] for level in self.levels] != needed:
            raise InputError(
                f"The backbone {backbone} has features at strides {strides}, but {patch}, {2 * patch}, ... are needed; "
                "name another one or another size of patches."
            )
        below = [level for level, stride in enumerate(strides) if stride < patch]
        self.finer_levels = below[: -FINER_LEVELS - 1 : -1]
        self.finer = [(channels[level], strides[level]) for level in self.finer_levels]
        # Some backbones, such as Swin, put the channels last.
        self.channels_last = str(getattr(self.backbone, "output_fmt", "")).endswith("NHWC")
        self.lateral = nn.ModuleList(nn.Conv2d(channels[level], width, 1) for level in self.levels)
        # Two more channels tell each patch its viewing direction, so that what it sees has a place under any lens.
        self.smooth = nn.Sequential(nn.Conv2d(width + 2, width, 3, padding=1), nn.BatchNorm2d(width), nn.GELU())
        self.out = nn.Conv2d(width, out_width, 1)

    def forward(self, image: Tensor, intrinsics: Tensor) -> tuple[Tensor, list[Tensor]]:
        """image `(B, 3, H, W)` 0..1, H and W multiples of 32; intrinsics `(B, 4)` in pixels.

        Returns patch descriptors `(B, D, H/patch, W/patch)` and features: first those `(B, width, H/patch, W/patch)`
        that they come from, then the finer ones.
        """
        features = self.backbone((image - 0.45) / 0.25)
        if self.channels_last:
            features = [level.permute(0, 3, 1, 2) for level in features]
        merged = self.lateral[-1](features[self.levels[-1]])
        for lateral, level in zip(reversed(self.lateral[:-1]), reversed(self.levels[:-1]), strict=True):
            merged = functional.interpolate(merged, scale_factor=2.0, mode="nearest") + lateral(features[level])
        rays = patch_rays(intrinsics, merged.shape[-2], merged.shape[-1], image.shape[-1] // merged.shape[-1])
        smooth = self.smooth(torch.cat([merged, rays.to(merged.dtype)], 1))
        return self.out(smooth).float(), [smooth.float(), *(features[level] for level in self.finer_levels)]


def _create(name: str) -> nn.Module:
    """The timm backbone of this name, for images of any size."""
    try:
        known = timm.get_pretrained_cfg(name)
        # What was made for one size, such as Swin, takes others when it is told not to insist.
        sizes = {"strict_img_size": False} if known is not None and known.fixed_input_size else {}
        backbone: nn.Module = timm.create_model(name, pretrained=False, features_only=True, **sizes)
    except Exception as error:  # each family of backbones has errors of its own
        raise InputError(
            f"The backbone '{name}' cannot be used: {str(error).splitlines()[0] if str(error) else repr(error)}; name "
            "one of timm's that gives features by stride and takes images of any size, such as regnety_002."
        ) from error
    return backbone


def patch_rays(intrinsics: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """Viewing directions x/z and y/z `(B, 2, rows, columns)` of the centres of patches of `patch` pixels."""
    centre_x = (torch.arange(columns, device=intrinsics.device) + 0.5) * patch - 0.5
    centre_y = (torch.arange(rows, device=intrinsics.device) + 0.5) * patch - 0.5
    x = (centre_x - intrinsics[:, 2:3]) / intrinsics[:, 0:1]
    y = (centre_y - intrinsics[:, 3:4]) / intrinsics[:, 1:2]
    return torch.stack([x[:, None, :].expand(-1, rows, -1), y[:, :, None].expand(-1, -1, columns)], 1)
