"""The network learns, remembers, and goes on exactly where it stopped."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ep2ploc_core import se3
from ep2ploc_core.camera import Camera, project_pinhole
from ep2ploc_core.datasets.sampling import Batch, Sampler, SamplingSettings, Scene, network_size
from ep2ploc_core.datasets.synthetic import write_synthetic_drive
from ep2ploc_core.errors import CheckpointError, InputError
from ep2ploc_core.map.sources import KittiSource
from ep2ploc_core.model.checkpoint import fingerprint, load_network, save_network, write_safetensors
from ep2ploc_core.model.ep2ploc import EP2PLoc, NetworkConfig, PointView
from ep2ploc_core.pose.pose_posterior import Box, PosePosterior
from ep2ploc_core.pose.score_search import search_pose
from ep2ploc_core.training.config import load_config
from ep2ploc_core.training.general import train_network
from ep2ploc_core.training.losses import LossWeights, compute_losses
from ep2ploc_core.training.scenes import drive_scene
from ep2ploc_core.training.trainer import Schedule, SiteCodes, Trainer

TINY = NetworkConfig(
    image_width=256, descriptor_width=32, image_feature_width=48, point_width=16, classifier_width=64, clusters=4
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return drive_scene(KittiSource(write_synthetic_drive(tmp_path_factory.mktemp("drive"), frames=24, seed=5)))


def test_poses_of_a_batch_are_proper_and_starts_are_as_wrong_as_promised(scene: Scene) -> None:
    settings = SamplingSettings(images=4, group=1, starts=1, color=0.0)
    batch = Sampler([scene], 512, settings, seed=3).batch(0, 1.0)
    for view in range(4):
        camera_from_map = batch.true_camera_from_map[view]
        rotation = camera_from_map[:3, :3]
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3), atol=1e-4, rtol=0)
        assert torch.linalg.det(rotation) > 0.99
    noise = se3.log((batch.start_camera_from_map @ torch.linalg.inv(batch.true_camera_from_map)).double()).numpy()
    assert np.abs(noise[:, 3:]).max() < 0.25 and 0.05 < np.abs(noise[:, :3]).max() < 4.0


def test_map_edges_stay_on_image_edges_under_augmentation(scene: Scene) -> None:
    """The grey values at the projections of the same points agree between an augmented and a plain sample."""
    common = SamplingSettings(images=1, group=1, starts=1, world=False, color=0.0, novel=0.0)
    plain = replace(common, rotate_degrees=0.0, zoom=0.0)
    turned = replace(common, rotate_degrees=3.0, zoom=0.15)
    one_image = replace(
        scene, images=scene.images[10:11], cameras=scene.cameras[10:11], surfaces={},
        map_from_camera=scene.map_from_camera[10:11], frames=scene.frames[10:11],
    )  # fmt: skip
    values = []
    for settings in (plain, turned):
        batch = Sampler([one_image], 512, settings, seed=1).batch(0, 0.1)
        points = torch.from_numpy(one_image.points.xyz) - _crop_shift(batch, one_image)
        pixels, depth = project_pinhole(batch.intrinsics[0], se3.apply(batch.true_camera_from_map[0], points))
        inside = (depth > 4) & (depth < 30) & (pixels > 4).all(1) & (pixels < torch.tensor([507.0, 155.0])).all(1)
        x, y = pixels.round().long().unbind(1)
        grey = batch.images[0].mean(0)
        values.append((inside, torch.where(inside, grey[y.clamp(0, 159), x.clamp(0, 511)], torch.nan)))
    both = values[0][0] & values[1][0]
    assert both.sum() > 3000
    first, second = values[0][1][both], values[1][1][both]
    assert torch.corrcoef(torch.stack([first, second]))[0, 1] > 0.8


def _crop_shift(batch, scene: Scene) -> torch.Tensor:
    """By how much the crop's origin was moved: the true camera's place tells."""
    centre = torch.linalg.inv(batch.true_camera_from_map[0])[:3, 3]
    return torch.from_numpy(scene.map_from_camera[0, :3, 3]).float() - centre


def test_autocast_leaves_geometry_alone() -> None:
    """Half precision knows a place forty metres away to a decimetre."""
    points = torch.rand(2, 50, 3) * 40
    poses = se3.exp(torch.randn(2, 6) * 0.1)
    exact = se3.apply(poses, points)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(se3.apply(poses, points), exact)


@pytest.mark.parametrize("novel", [0.0, 1.0])
def test_blank_parts_of_the_picture_are_not_called_visible(scene: Scene, novel: float) -> None:
    settings = SamplingSettings(images=1, group=1, starts=1, rotate_degrees=8.0, zoom=0.0, color=0.0, novel=novel)
    blank = called_visible = 0
    for number in range(8):
        batch = Sampler([scene], 512, settings, seed=2).batch(number, 0.3)
        points = batch.xyz[batch.point_of_view[0]]
        pixels, depth = project_pinhole(batch.intrinsics[0], se3.apply(batch.true_camera_from_map[0], points))
        inside = (depth > 1) & (pixels > 1).all(1) & (pixels < torch.tensor([510.0, 158.0])).all(1) & batch.valid[0]
        x, y = pixels.round().long().clamp(torch.tensor([1, 1]), torch.tensor([510, 158])).unbind(1)
        around = torch.stack([batch.images[0][:, y + dy, x + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
        grey = inside & ((around - 115 / 255).abs() < 1e-3).flatten(0, 1).all(0)
        blank += int(grey.sum())
        called_visible += int(batch.visible[0][grey].sum())
    assert blank > 50 and called_visible < 0.1 * blank


def test_batches_leave_out_the_own_scan(scene: Scene) -> None:
    settings = SamplingSettings(images=1, group=1, starts=1, world=False, hole=3, hole_extra=0)
    sampler = Sampler([scene], 256, settings, seed=0)
    rng = np.random.default_rng(0)
    start = scene.map_from_camera[12]
    index = sampler._crop(scene, [12], [start], start[:3, 3], rng)
    seen = scene.points.seen[index]
    assert ((seen[:, 0] < 9) | (seen[:, 1] > 15)).all()
    assert len(index) > 1000


def test_a_tiny_network_overfits_four_samples(scene: Scene) -> None:
    torch.manual_seed(0)
    network = EP2PLoc(TINY)
    settings = SamplingSettings(images=4, group=2, starts=1, points=256, world=False)
    batch = Sampler([scene], TINY.image_width, settings, seed=0).batch(0, 1.0)
    steps = 280
    optimizer = torch.optim.AdamW(network.parameters(), lr=6e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, steps)
    generator = torch.Generator().manual_seed(0)
    weights = LossWeights(place=0.0)
    first = None
    for _ in range(steps):
        losses = compute_losses(network, batch, weights, generator)
        optimizer.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
        first = first or float(losses.log["pose"])
    assert float(losses.log["pose"]) < 0.3 * first
    check_that_single_matches_train_their_confidence_alone(network, batch)
    with torch.no_grad():
        features = network.encode_image(batch.images, batch.intrinsics)
        descriptors = network.encode_points(batch.xyz, batch.attributes, batch.cloud)
    for view in range(4):
        chosen = batch.point_of_view[view]
        image = batch.image_of_view[view]
        point_view = PointView(
            batch.xyz[chosen][None], batch.attributes[chosen][None], descriptors[chosen][None],
            batch.valid[view][None], batch.start_camera_from_map[view][None], batch.sigma[view][None],
        )  # fmt: skip
        intrinsics = batch.intrinsics[image][None]
        with torch.no_grad():
            scores = network.classify(point_view, features.patches[image][None], intrinsics)
            start = se3.inverse(batch.start_camera_from_map[view])
            posterior = PosePosterior(
                scores, point_view.xyz, point_view.valid, start, batch.sigma[view], intrinsics, TINY.patch,
                float(network.log_pose_temperature.exp()), Box(start, torch.full((6,), 3.0)),
            )  # fmt: skip
            found = search_pose(posterior)
        truth = torch.linalg.inv(batch.true_camera_from_map[view]).double().numpy()
        metres, radians = se3.pose_error(found.map_from_camera.double().numpy(), truth)
        assert metres < 0.25 and radians < np.radians(1.0), (view, metres, np.degrees(radians))
        camera_from_map = torch.stack([se3.inverse(found.map_from_camera), batch.true_camera_from_map[view]])
        pixels, _ = project_pinhole(intrinsics, se3.apply(camera_from_map, point_view.xyz.expand(2, -1, -1)))
        seen = batch.valid[view] & batch.visible[view]
        assert (pixels[0] - pixels[1])[seen].norm(dim=-1).median() < 1.0


def check_that_single_matches_train_their_confidence_alone(network: EP2PLoc, batch: Batch) -> None:
    only = LossWeights(patch=0.0, pixel=0.0, pose=0.0, place=0.0, geometry=0.0, epro=1.0)
    losses = compute_losses(network, batch, only, torch.Generator().manual_seed(0))
    network.zero_grad()
    losses.total.backward()
    learning = {name for name, p in network.named_parameters() if p.grad is not None and (p.grad != 0).any()}
    head = {"patch_classifier.confidence.weight", "patch_classifier.confidence.bias"}
    assert "patch_classifier.confidence.weight" in learning and learning <= head | {"log_match_scale"}


def test_single_matches_that_are_not_settled_train_nothing(scene: Scene) -> None:
    torch.manual_seed(0)
    network = EP2PLoc(TINY)
    settings = SamplingSettings(images=2, group=1, starts=1, points=128, world=False)
    batch = Sampler([scene], TINY.image_width, settings, 0).batch(0, 1.0)
    losses = compute_losses(network, batch, LossWeights(epro=0.1), torch.Generator().manual_seed(0))
    assert float(losses.log["epro"]) == 0.0
    losses.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_weights_from_before_the_scale_of_matches_load(tmp_path: Path) -> None:
    save_network(EP2PLoc(TINY), tmp_path / "new.safetensors")
    with safe_open(str(tmp_path / "new.safetensors"), framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys() if key != "log_match_scale"}  # noqa: SIM118
        metadata = file.metadata()
    write_safetensors(tensors, tmp_path / "old.safetensors", metadata)
    old = load_network(tmp_path / "old.safetensors")
    assert old.fingerprint == fingerprint(tensors)
    assert torch.equal(old.log_match_scale, EP2PLoc(TINY).log_match_scale)
    del tensors["log_pose_temperature"]
    write_safetensors(tensors, tmp_path / "broken.safetensors", metadata)
    with pytest.raises(CheckpointError):
        load_network(tmp_path / "broken.safetensors")


def small_trainer(scene: Scene, out: Path, steps: int) -> Trainer:
    torch.manual_seed(0)
    settings = SamplingSettings(images=2, group=1, starts=1, points=128, world=False)
    schedule = Schedule(steps=steps, warmup=2, log_steps=2, bf16=False)
    codes = SiteCodes(7, TINY.descriptor_width)
    coded = replace(scene, code_voxel=np.arange(len(scene.points)) % 7, surfaces={})
    sampler = Sampler([coded], TINY.image_width, settings, 0)
    return Trainer(EP2PLoc(TINY), sampler, schedule, LossWeights(), out, torch.device("cpu"), codes)


def test_stopped_and_resumed_is_the_same_as_straight_through(scene: Scene, tmp_path: Path) -> None:
    straight = small_trainer(scene, tmp_path / "straight", 6)
    straight.run()
    broken_off = small_trainer(scene, tmp_path / "resumed", 6)
    broken_off._resume()
    for number, batch in enumerate(broken_off._batches()):
        if number == 3:
            break
        broken_off._train_step(batch)
        broken_off.step += 1
    broken_off._save()
    resumed = small_trainer(scene, tmp_path / "resumed", 6)
    resumed.run()
    for name, value in straight._state().items():
        assert torch.equal(value, resumed._state()[name]), name
    for name, value in straight.average.items():
        assert torch.equal(value, resumed.average[name]), name


def test_a_training_state_of_another_network_is_refused(scene: Scene, tmp_path: Path) -> None:
    small_trainer(scene, tmp_path, 1).run()
    other = small_trainer(scene, tmp_path, 1)
    other.network = EP2PLoc(replace(TINY, point_width=8))
    with pytest.raises(CheckpointError, match="does not fit this training"):
        other.run()


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = EP2PLoc(TINY).eval()
    mark = save_network(network, tmp_path / "a.safetensors", {"by": "test"})
    again = load_network(tmp_path / "a.safetensors")
    assert again.fingerprint == mark and again.config == TINY
    image, intrinsics = torch.rand(1, 3, 96, 256), torch.tensor([[150.0, 150, 128, 48]])
    with torch.no_grad():
        before = network.encode_image(image, intrinsics).patches
        after = again.encode_image(image, intrinsics).patches
    assert (before - after).abs().max() < 0.02 * before.abs().max()
    assert save_network(again, tmp_path / "b.safetensors") == mark


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 100])
def test_a_corrupted_weights_file_says_so(tmp_path: Path, spoil) -> None:
    save_network(EP2PLoc(TINY), tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(spoil((tmp_path / "a.safetensors").read_bytes()))
    with pytest.raises(CheckpointError, match="corrupted"):
        load_network(tmp_path / "a.safetensors")


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(CheckpointError, match="edge"):
        load_network("no_such_network")


def test_configurations_are_checked(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("schedule: {steps: 5}\n")
    assert load_config(tmp_path / "a.yaml", ["schedule.learning_rate=0.1"]).schedule.learning_rate == 0.1
    for content, overrides in (("stepz: 5\n", []), ("schedule: {steps: five}\n", []), ("a: [\n", []), ("{}", ["x=1"])):
        (tmp_path / "a.yaml").write_text(content)
        with pytest.raises(InputError, match=r"a\.yaml"):
            load_config(tmp_path / "a.yaml", overrides)


def test_a_configuration_without_recordings_trains_on_streets_that_it_makes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "{streets: 1, street_frames: 14, schedule: {steps: 1}, network: {image_width: 256}}\n"
    )
    config = load_config(tmp_path / "a.yaml", [f"out={tmp_path / 'out'}"])
    train_network(torch.device("cpu"), config)
    made = sorted((tmp_path / "out/streets").rglob("*.jpg"))
    assert len(made) == 14
    before = [file.stat().st_mtime_ns for file in made]
    train_network(torch.device("cpu"), replace(config, schedule=replace(config.schedule, steps=2)))
    assert [file.stat().st_mtime_ns for file in made] == before
    with safe_open(str(tmp_path / "out/network.safetensors"), framework="pt") as file:
        assert file.metadata()["steps"] == "2"
    assert load_network(str(tmp_path / "out/network.safetensors")).config.image_width == 256


@pytest.mark.parametrize(
    ("width", "height", "seen"),
    [
        (1242, 375, (512, 160)),
        (1280, 720, (512, 288)),
        (640, 480, (384, 288)),
        (480, 640, (224, 288)),
        (400, 1000, (128, 288)),
    ],
)
def test_the_network_sees_images_of_any_shape_at_a_size_it_can_afford(
    width: int, height: int, seen: tuple[int, int]
) -> None:
    camera = Camera(width, height, 500.0, 500.0, width / 2, height / 2)
    assert network_size(camera, 512) == seen
