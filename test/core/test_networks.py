"""Networks other than the one that comes along: any backbone of timm, and the paper's choices for comparison."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.sampling import Sampler, SamplingSettings, Scene
from ep2ploc_core.errors import CheckpointError, InputError
from ep2ploc_core.localizer import Localizer
from ep2ploc_core.map.point_map import MapInfo, MapPoints, write_map
from ep2ploc_core.model.checkpoint import WEIGHTS_DIRECTORY, load_network, save_network
from ep2ploc_core.model.ep2ploc import EP2PLoc, NetworkConfig, PointView
from ep2ploc_core.model.image_encoder import ImageEncoder
from ep2ploc_core.model.pair_score import PairScore
from ep2ploc_core.training.losses import LossWeights, compute_losses
from ep2ploc_core.visibility import VisibilitySettings, remove_invisible

SMALL = NetworkConfig(descriptor_width=16, image_feature_width=24, point_width=8, classifier_width=16, clusters=2)
NEW_CHOICES = ("score", "score_width", "encode")
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
        assert patches.shape == (2, 16, height // 8, width // 8)
        strides = [(24, 8), *encoder.finer]
        assert [tuple(one.shape) for one in features] == [(2, count, height // s, width // s) for count, s in strides]
        assert len(strides) > 1 and torch.isfinite(patches).all()
        (gradient,) = torch.autograd.grad(patches.square().sum(), first)
        assert gradient.abs().max() > 0


def test_a_backbone_without_finer_features_has_nothing_to_align() -> None:
    with pytest.raises(InputError, match="finer than the patches"):
        EP2PLoc(replace(SMALL, backbone="swin_tiny_patch4_window7_224", patch=4, alignment_width=8))


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
    xyz = torch.rand(1, 9, 3) * torch.tensor([4.0, 2, 4]) + torch.tensor([-2.0, -1, 6])
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


def test_weights_from_before_there_were_choices_load(tmp_path: Path) -> None:
    with safe_open(str(WEIGHTS_DIRECTORY / "edge.safetensors"), framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys() if name != "log_match_scale"}  # noqa: SIM118
    config = {name: value for name, value in json.loads(metadata["config"]).items() if name not in NEW_CHOICES}
    save_file(tensors, str(tmp_path / "old.safetensors"), metadata | {"config": json.dumps(config)})
    network = load_network(tmp_path / "old.safetensors")
    assert (network.config.score, network.config.encode) == ("dot", "map")
    kept = load_network("edge").state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items() if name in tensors)


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A wall 8 m ahead of the camera, and another one that it hides, 14 m ahead."""
    rng = np.random.default_rng(0)
    xyz = np.r_[rng.uniform([-9, -4, 8], [9, 4, 8], (9000, 3)), rng.uniform([-6, -2, 14], [6, 2, 14], (3000, 3))]
    points = MapPoints(xyz.astype(np.float32), rng.random((12000, 6), np.float32), np.zeros((12000, 2), np.uint16))
    camera = Camera.from_matrix(256, 96, np.array([[130.0, 0, 128], [0, 130, 48], [0, 0, 1]]))
    image = rng.integers(0, 256, (96, 256, 3), np.uint8)
    return Scene(points, [image], [camera], np.eye(4)[None], None)


def test_encoded_per_view_the_loss_depends_on_what_is_visible_from_the_starts_alone(scene: Scene) -> None:
    torch.manual_seed(0)
    settings = SamplingSettings(images=2, group=1, starts=2, points=64, world=False, crop_radius=40)
    batch = Sampler([scene], 256, settings, 0).batch(0, 0.3)
    assert torch.equal(batch.seen_point[batch.seen_of_view], batch.point_of_view)
    for view, start in enumerate(batch.start_camera_from_map):
        image = int(batch.image_of_view[view])
        own = batch.cloud == batch.cloud[batch.point_of_view[view, 0]]
        seen = remove_invisible(
            batch.xyz[own], start, batch.intrinsics[image], (256, 96), 0.2, VisibilitySettings(margin=0.15)
        )
        first = int(own.nonzero()[0])
        assert torch.equal(batch.seen_point[batch.seen_view == view].sort().values, (seen.index + first).sort().values)
    hidden = torch.ones(len(batch.xyz), dtype=torch.bool)
    hidden[batch.seen_point] = False
    assert 1000 < hidden.sum() < len(hidden) - 1000
    other = replace(batch, attributes=torch.where(hidden[:, None], -batch.attributes, batch.attributes))
    for encode in ("view", "map"):
        network = EP2PLoc(replace(SMALL, image_width=256, encode=encode))
        totals = []
        for one in (batch, other):
            losses = compute_losses(network, one, LossWeights(), torch.Generator().manual_seed(0))
            totals.append(losses.total)
        assert (totals[0] == totals[1]) == (encode == "view")
        (gradient,) = torch.autograd.grad(totals[0], network.point_encoder.point_mlp[0].weight)
        assert gradient.abs().max() > 0


def test_encoded_per_view_the_descriptors_of_the_map_are_not_used(scene: Scene, tmp_path: Path) -> None:
    torch.manual_seed(0)
    poses = {}
    for encode in ("view", "map"):
        network = EP2PLoc(replace(SMALL, image_width=256, encode=encode)).eval()
        network.fingerprint = "cafe0123"
        for fill in (0, 9):
            point_map = write_map(tmp_path / f"{encode}{fill}", scene.points, MapInfo(voxel_size=0.2))
            descriptors = np.full((len(scene.points), 16), fill, np.int8)
            descriptors[::2] *= -1
            point_map.store_descriptors(descriptors, network.fingerprint)
            result = Localizer(network, point_map).localize(scene.images[0], scene.cameras[0], np.eye(4))
            assert result.candidate is not None, result.reason
            poses[encode, fill] = result.candidate
    assert np.array_equal(poses["view", 0], poses["view", 9])
    assert not np.array_equal(poses["map", 0], poses["map", 9])
