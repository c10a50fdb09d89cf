"""Networks other than the one that comes along: any backbone of timm, and the paper's choices for comparison."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ep2ploc_core.errors import CheckpointError, InputError
from ep2ploc_core.model.checkpoint import WEIGHTS_DIRECTORY, load_network, save_network
from ep2ploc_core.model.ep2ploc import EP2PLoc, NetworkConfig, PointView
from ep2ploc_core.model.image_encoder import ImageEncoder
from ep2ploc_core.model.pair_score import PairScore

SMALL = NetworkConfig(descriptor_width=16, image_feature_width=24, point_width=8, classifier_width=16, clusters=2)
BACKBONES = (
    "swin_tiny_patch4_window7_224", "convnext_atto", "mobilenetv4_conv_small", "resnet18", "efficientvit_b1",
)  # fmt: skip


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbones_give_patches_of_any_image_and_learn_from_the_first_layer_on(backbone: str) -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(backbone, width=24, out_width=16, patch=8)
    first = next(encoder.parameters())
    for height, width in ((64, 96), (96, 256)):
        image, intrinsics = torch.rand(2, 3, height, width), torch.tensor([[100.0, 100, 48, 32]] * 2)
        patches, features = encoder(image, intrinsics)
        assert patches.shape == (2, 16, height // 8, width // 8) and features.shape == (2, 24, height // 8, width // 8)
        assert torch.isfinite(patches).all()
        (gradient,) = torch.autograd.grad(patches.square().sum(), first)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("backbone", BACKBONES[:2])
def test_what_a_patch_shows_is_told_where_it_is(backbone: str) -> None:
    """The descriptor that a change in the image changes most is that of the patch in which it happened."""
    torch.manual_seed(0)
    encoder = ImageEncoder(backbone, width=24, out_width=16, patch=8).eval()
    image, intrinsics = torch.rand(1, 3, 64, 128), torch.tensor([[100.0, 100, 64, 32]])
    changed = image.clone()
    changed[:, :, 16:32, 80:96] = 1 - changed[:, :, 16:32, 80:96]
    with torch.no_grad():
        difference = (encoder(image, intrinsics)[0] - encoder(changed, intrinsics)[0]).norm(dim=1)[0]
    row, column = divmod(int(difference.argmax()), 16)
    assert 1 <= row <= 4 and 9 <= column <= 12


@pytest.mark.parametrize(
    ("backbone", "complaint"),
    [("no_such_net", "no_such_net"), ("vit_tiny_patch16_224", "vit_tiny"), ("resnet18", "strides")],
)
def test_a_backbone_that_does_not_serve_is_named(backbone: str, complaint: str, tmp_path: Path) -> None:
    patch = 64 if backbone == "resnet18" else 8
    with pytest.raises(InputError, match=complaint) as error:
        EP2PLoc(replace(SMALL, backbone=backbone, patch=patch))
    assert "\n" not in str(error.value) and "name" in str(error.value)
    config = {**NetworkConfig().__dict__, "backbone": backbone, "patch": patch}
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1)}, str(file), {"kind": "ep2ploc network", "config": json.dumps(config)})
    with pytest.raises(CheckpointError, match="another version"):
        load_network(file)


def test_unknown_choices_are_named() -> None:
    for choice in ({"score": "sum"}, {"encode": "twice"}):
        with pytest.raises(InputError, match=r"it can be \w+ or \w+"):
            EP2PLoc(replace(SMALL, **choice))


@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_the_score_mlp_is_a_layer_on_the_concatenated_descriptors(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ep2ploc_core.model.pair_score._CHUNK", chunk)
    torch.manual_seed(0)
    score = PairScore(6, 5)
    points, patches = torch.randn(2, 7, 6, requires_grad=True), torch.randn(2, 6, 11, requires_grad=True)
    pairs = torch.cat([points[:, :, None].expand(-1, -1, 11, -1), patches.mT[:, None].expand(-1, 7, -1, -1)], -1)
    first = torch.cat([score.point_in.weight, score.patch_in.weight], 1) * 6**0.5
    plain = torch.relu(pairs @ first.T + score.point_in.bias) @ score.out.weight[0] + score.out.bias
    ours = score(points, patches)
    torch.testing.assert_close(ours, plain)
    with torch.no_grad():
        torch.testing.assert_close(score(points, patches), plain)
    direction = torch.randn_like(plain)
    of = [points, patches, *score.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad((ours * direction).sum(), of),
        torch.autograd.grad((plain * direction).sum(), of),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("score", ["dot", "mlp"])
def test_scores_are_probabilities_and_the_prior_is_in_both(score: str) -> None:
    torch.manual_seed(0)
    network = EP2PLoc(replace(SMALL, score=score)).eval()
    xyz = torch.rand(1, 9, 3) * 4 + torch.tensor([-2.0, -1, 6])
    view = PointView(
        xyz, torch.rand(1, 9, 6), torch.nn.functional.normalize(torch.randn(1, 9, 16), dim=-1),
        torch.ones(1, 9, dtype=torch.bool), torch.eye(4)[None], torch.tensor([[1.0, 0.3, 1, 0.02, 0.1, 0.02]]),
    )  # fmt: skip
    with torch.no_grad():
        scores = network.classify(view, torch.randn(1, 16, 8, 24), torch.tensor([[100.0, 100, 96, 32]]))
    torch.testing.assert_close(scores.log_posterior.exp().sum(-1), torch.ones(1, 9))
    prior = scores.log_posterior[..., :-1] - scores.log_likelihood.flatten(2)
    pixels = xyz[0, :, :2] / xyz[0, :, 2:] * 100 + torch.tensor([96.0, 32])
    likeliest = prior[0].argmax(-1)
    centres = torch.stack([likeliest % 24, likeliest // 24], 1) * 8 + 3.5
    assert (centres - pixels).abs().max() < 8


def test_choices_are_kept_with_the_weights(tmp_path: Path) -> None:
    config = replace(SMALL, score="mlp", score_width=7, encode="view")
    network = EP2PLoc(config)
    save_network(network, tmp_path / "a.safetensors")
    again = load_network(tmp_path / "a.safetensors")
    assert again.config == config
    assert torch.equal(
        again.patch_classifier.pair_score.point_in.weight,
        network.patch_classifier.pair_score.point_in.weight.half().float(),
    )


def test_the_weights_that_come_along_were_made_before_there_were_choices() -> None:
    with safe_open(str(WEIGHTS_DIRECTORY / "edge.safetensors"), framework="pt") as file:
        assert "score" not in json.loads(file.metadata()["config"])
    network = load_network("edge")
    assert (network.config.score, network.config.encode) == ("dot", "map")
