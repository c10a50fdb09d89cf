"""timm can be imported and used beside a CPU-only torch too."""

import torch

from ep2ploc_core.timm_import import timm


def test_a_backbone_runs():
    backbone = timm.create_model("mobilenetv4_conv_small", pretrained=False, features_only=True).eval()
    with torch.inference_mode():
        features = backbone(torch.zeros(1, 3, 64, 64))
    assert [tuple(level.shape[-2:]) for level in features] == [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
