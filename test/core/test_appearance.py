"""What mapping images show of map points, kept in the map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ep2ploc_core.datasets.kitti import read_image
from ep2ploc_core.datasets.synthetic import write_synthetic_drive
from ep2ploc_core.map import appearance as module
from ep2ploc_core.map.appearance import add_appearances, images_of_map
from ep2ploc_core.map.build import accumulate
from ep2ploc_core.map.encode import encode_map
from ep2ploc_core.map.place_index import encode_places
from ep2ploc_core.map.point_map import MapInfo, PointMap, write_map
from ep2ploc_core.map.sources import KittiSource
from ep2ploc_core.model.checkpoint import load_network, save_network
from ep2ploc_core.model.ep2ploc import EP2PLoc, NetworkConfig
from ep2ploc_core.model.image_input import prepare_image

CONFIG = NetworkConfig(
    image_width=256, descriptor_width=32, image_feature_width=48, point_width=16, classifier_width=64, clusters=4,
    alignment_width=8,
)  # fmt: skip
LEVELS = 2


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> EP2PLoc:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "network.safetensors"
    save_network(EP2PLoc(CONFIG), path)
    return load_network(path)


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_drive(tmp_path_factory.mktemp("drive"), frames=12, seed=4)


def make_map(drive: Path, path: Path, forget: bool = False) -> PointMap:
    """A map of the drive, which may forget where that is."""
    source = KittiSource(drive)
    info = MapInfo(voxel_size=0.2, source={} if forget else source.describe())
    return write_map(path, accumulate(source.scans(), 0.2), info)


def appearances(point_map: PointMap) -> np.ndarray:
    """Of all points, level by level, `(N, L, D + 1)`."""
    stored = PointMap.open(point_map.path).all_points().descriptors
    assert stored is not None and stored.shape[1] == 32 + LEVELS * 9
    return stored[:, 32:].reshape(len(stored), LEVELS, 9).astype(np.float32) / 127


def test_a_point_keeps_what_the_one_image_shows_at_its_place(drive: Path, network: EP2PLoc, tmp_path: Path) -> None:
    """Against OpenCV's own bilinear sampling of the finest features, at OpenCV's own projections."""
    point_map = make_map(drive, tmp_path / "map")
    image = images_of_map(point_map)[5]
    encode_map(point_map, network)
    add_appearances(PointMap.open(point_map.path), network, [image])
    kept = appearances(point_map)
    known = kept[:, -1, -1] > 0
    assert 0.02 < known.mean() < 0.6  # the others are hidden, or outside this image

    shown = prepare_image(read_image(image.path), image.camera, 256, "cpu")
    with torch.inference_mode():
        dense = network.dense_features(network.encode_image(shown.tensor, shown.intrinsics))[-1]
    points = point_map.all_points().xyz[known].astype(np.float64) + point_map.origin
    camera_from_map = np.linalg.inv(image.map_from_camera)
    rotation, _ = cv2.Rodrigues(camera_from_map[:3, :3])
    pixels, _ = cv2.projectPoints(points, rotation, camera_from_map[:3, 3], shown.camera.matrix, None)
    place = ((pixels[:, 0] + 0.5) / dense.stride - 0.5).astype(np.float32)
    seen = np.stack([
        cv2.remap(plane, place[None, :, 0], place[None, :, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
        for plane in dense.features[0].numpy().transpose(2, 0, 1)
    ], 1)  # fmt: skip
    likeness = (kept[known, -1, :-1] * seen / np.linalg.norm(seen, axis=1, keepdims=True)).sum(1)
    assert np.median(likeness) > 0.98 and np.quantile(likeness, 0.05) > 0.9
    sure = cv2.remap(
        dense.confidence[0].numpy(), place[None, :, 0], place[None, :, 1], cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )[0]  # fmt: skip
    np.testing.assert_allclose(kept[known, -1, -1], sure, atol=0.05)  # one image agrees with itself


def test_an_image_that_sees_no_point_of_the_map_changes_nothing(drive: Path, network: EP2PLoc, tmp_path: Path) -> None:
    """Taken where the map has points around, but up to the sky."""
    point_map = make_map(drive, tmp_path / "map")
    image = images_of_map(point_map)[5]
    up = image.map_from_camera.copy()
    up[:3, :3] = np.eye(3)  # the optical axis is the map's z
    above = replace(image, map_from_camera=up)
    encode_map(point_map, network)
    add_appearances(PointMap.open(point_map.path), network, [image])
    expected = appearances(point_map)
    add_appearances(PointMap.open(point_map.path), network, [above, image])
    np.testing.assert_array_equal(appearances(point_map), expected)


def test_views_that_disagree_or_are_unsure_are_worth_less() -> None:
    """Worth is the squared length of the mean of unit vectors (cos^2 of half the angle between two) times the mean
    confidence. A row: features times weights, weights, nearness."""
    first, aside = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    sums = torch.stack([
        torch.cat([3 * first, torch.tensor([3.0, 3.0])]),
        torch.cat([first + aside, torch.tensor([2.0, 2.0])]),
        torch.cat([first - first, torch.tensor([2.0, 2.0])]),
        torch.cat([0.5 * first, torch.tensor([0.5, 2.0])]),
        torch.zeros(4),
    ])  # fmt: skip
    kept = module._quantized(sums[:, None])[:, 0].numpy()
    np.testing.assert_array_equal(kept[0], [127, 0, 127])
    np.testing.assert_allclose(kept[1], [90, 90, 64], atol=1)
    np.testing.assert_array_equal(kept[2], [0, 0, 1])
    np.testing.assert_allclose(kept[3], [127, 0, 32], atol=1)
    np.testing.assert_array_equal(kept[4], [0, 0, 0])


def test_the_descriptors_before_it_and_the_places_are_the_same(drive: Path, network: EP2PLoc, tmp_path: Path) -> None:
    with_images, without = make_map(drive, tmp_path / "a"), make_map(drive, tmp_path / "b", forget=True)
    for point_map in (with_images, without):
        encode_map(point_map, network)
        encode_places(PointMap.open(point_map.path), network)
    longer, shorter = (PointMap.open(each.path).all_points().descriptors for each in (with_images, without))
    assert longer is not None and shorter is not None and shorter.shape[1] == 32
    np.testing.assert_array_equal(longer[:, :32], shorter)
    places = [next(each.path.glob("places.*.npy")).read_bytes() for each in (with_images, without)]
    assert places[0] == places[1]


def test_what_was_stopped_ends_in_the_same_bytes(
    drive: Path, network: EP2PLoc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = make_map(drive, tmp_path / "a"), make_map(drive, tmp_path / "b")
    encode_map(whole, network)
    store, stored = PointMap.store_tile_descriptors, []

    def failing(self: PointMap, name: str, descriptors: np.ndarray, checkpoint: str) -> None:
        if descriptors.shape[1] > 32 and len(stored) == 2:
            raise KeyboardInterrupt
        stored.extend([name] if descriptors.shape[1] > 32 else [])
        store(self, name, descriptors, checkpoint)

    monkeypatch.setattr(PointMap, "store_tile_descriptors", failing)
    with pytest.raises(KeyboardInterrupt):
        encode_map(stopped, network)
    monkeypatch.undo()
    assert PointMap.open(stopped.path).checkpoint == ""  # nothing half done is in use
    assert not [*stopped.path.glob(".appearance.*")]
    encode_map(PointMap.open(stopped.path), network)
    for name in whole.info.tiles:
        a, b = (each.path / "tiles" / name / f"descriptors.{network.fingerprint}.npy" for each in (whole, stopped))
        assert a.read_bytes() == b.read_bytes()


def test_held_out_images_show_nothing(drive: Path, network: EP2PLoc, tmp_path: Path) -> None:
    held_out = KittiSource(drive, hold_out=[8, 9])
    frames = {image.frame for image in held_out.images}
    info = MapInfo(voxel_size=0.2, source=held_out.describe())
    point_map = write_map(tmp_path / "map", accumulate(held_out.scans(), 0.2), info)
    assert {image.frame for image in images_of_map(point_map)} == frames
    assert not frames & {7, 8, 9, 10}


def test_points_far_from_a_camera_are_left_to_nearer_ones(
    drive: Path, network: EP2PLoc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_map = make_map(drive, tmp_path / "map")
    image = images_of_map(point_map)[0]
    encode_map(point_map, network)
    monkeypatch.setattr(module, "REACH", 10.0)
    add_appearances(PointMap.open(point_map.path), network, [image])
    known = appearances(point_map)[..., -1].any(1)
    away = point_map.all_points().xyz + point_map.origin - image.map_from_camera[:3, 3]
    depth = away @ image.map_from_camera[:3, 2]
    assert known.any() and depth[known].max() <= 10.01


def test_a_map_that_does_not_fit_into_memory_is_the_same(
    drive: Path, network: EP2PLoc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pieces = make_map(drive, tmp_path / "a"), make_map(drive, tmp_path / "b")
    encode_map(whole, network)
    monkeypatch.setattr(module, "POINTS_IN_MEMORY", 500)
    encode_map(pieces, network)
    np.testing.assert_array_equal(appearances(whole), appearances(pieces))
    assert not [*pieces.path.glob(".appearance.*")]


def test_an_image_that_cannot_be_read_is_told_and_left_out(
    drive: Path, network: EP2PLoc, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = write_synthetic_drive(tmp_path, frames=6, seed=4)
    point_map = make_map(broken, tmp_path / "map")
    (broken / "image_02" / "data" / "0000000003.jpg").write_bytes(b"no picture")
    encode_map(point_map, network)
    assert (appearances(point_map)[..., -1] > 0).any()
    said = capsys.readouterr()
    assert "1 of 6 images show nothing" in said.out + said.err


def test_a_map_whose_recording_went_while_it_was_encoded_can_be_used(
    drive: Path, network: EP2PLoc, tmp_path: Path
) -> None:
    """Some tiles have appearances, others none: these read as unknown."""
    point_map = make_map(drive, tmp_path / "map")
    encode_map(point_map, network)
    first = point_map.info.tiles[0]
    file = point_map.path / "tiles" / first / f"descriptors.{network.fingerprint}.npy"
    np.save(file, np.load(file)[:, :32])
    kept = appearances(point_map)
    count = len(np.load(file))
    assert not kept[:count].any() and kept[count:].any()
