"""Voxels and local attention against slow, obvious references."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ep2ploc_core.map.encode import encode_map, encode_points
from ep2ploc_core.map.point_map import MapInfo, MapPoints, write_map
from ep2ploc_core.model.ep2ploc import EP2PLoc, NetworkConfig
from ep2ploc_core.model.local_attention import neighbour_sum
from ep2ploc_core.model.point_transformer import PointTransformer
from ep2ploc_core.model.voxels import Neighbourhood, average, coarsen, neighbour_pairs, unpack, voxelize


@pytest.fixture
def cloud() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    xyz = torch.rand(300, 3, generator=generator) * 4 - 2
    return xyz, torch.randint(0, 2, (300,), generator=generator)


def test_neighbour_pairs_are_those_of_brute_force(cloud) -> None:
    voxels = voxelize(*cloud, 0.5)
    batch, index = unpack(voxels.keys)
    pairs = neighbour_pairs(voxels)
    found = set(zip(pairs.target.tolist(), pairs.source.tolist(), pairs.offset.tolist(), strict=True))
    wanted = set()
    for a in range(len(voxels)):
        for b in range(len(voxels)):
            step = index[b] - index[a]
            if batch[a] == batch[b] and step.abs().max() <= 1:
                wanted.add((a, b, int((step + 1) @ torch.tensor([9, 3, 1]))))
    assert found == wanted


def test_coarse_voxels_hold_the_fine_ones(cloud) -> None:
    fine = voxelize(*cloud, 0.5)
    coarse = coarsen(fine)
    direct = voxelize(*cloud, 1.0)
    assert torch.equal(coarse.keys, direct.keys)
    assert torch.equal(coarse.parent[fine.parent], direct.parent)


def test_average_is_the_mean_of_each_voxel(cloud) -> None:
    xyz, batch = cloud
    voxels = voxelize(xyz, batch, 0.5)
    means = average(xyz, voxels.parent, len(voxels))
    for voxel in (0, len(voxels) // 2, len(voxels) - 1):
        torch.testing.assert_close(means[voxel], xyz[voxels.parent == voxel].mean(0))


@pytest.mark.parametrize("some", [False, True])
def test_neighbour_sum_and_its_gradients_agree_with_messages_written_out(cloud, some: bool) -> None:
    voxels = voxelize(*cloud, 0.5)
    pairs = neighbour_pairs(voxels)
    hood, inputs, outputs = Neighbourhood.of_all(pairs), torch.arange(len(voxels)), torch.arange(len(voxels))
    if some:
        hood = Neighbourhood.of_some(pairs, torch.arange(len(voxels)) % 7 == 3)
        assert hood.inputs is not None and hood.outputs is not None and hood.places is not None
        inputs, outputs = hood.inputs, hood.outputs
        assert torch.equal(inputs[hood.places], outputs) and len(inputs) < len(voxels)
        asked = torch.isin(pairs.target, outputs)
        assert torch.equal(inputs, pairs.source[asked].unique())
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(len(voxels), 2, 3, generator=generator, requires_grad=True)
    weight = torch.randn(len(voxels), 27, 2, generator=generator, requires_grad=True)
    messages = value[pairs.source] * weight[pairs.target, pairs.offset][..., None]
    plain = torch.zeros(len(voxels), 2, 3).index_add(0, pairs.target, messages)[outputs].flatten(1)
    ours = neighbour_sum(value[inputs].flatten(1), weight[outputs].permute(2, 0, 1), hood)
    torch.testing.assert_close(ours, plain)
    direction = torch.randn(plain.shape, generator=generator)
    for mine, theirs in zip(
        torch.autograd.grad((ours * direction).sum(), (value, weight)),
        torch.autograd.grad((plain * direction).sum(), (value, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_descriptors_of_wanted_points_and_their_gradients_are_those_of_all_points() -> None:
    torch.manual_seed(0)
    encoder = PointTransformer(16, 24, voxel_size=0.5)
    xyz, attributes = torch.rand(3000, 3) * 12, torch.rand(3000, 6)
    batch = torch.arange(3000) % 2
    codes = torch.randn(len(voxelize(xyz, batch, 0.5)), 24)
    near = xyz.norm(dim=1).argsort()[:40]
    wanted = torch.cat([near[torch.randperm(40)], near[:3]])  # in any order, some twice
    direction = torch.randn(len(wanted), 24)
    every = encoder(xyz, attributes, batch, codes)[wanted]
    some = encoder(xyz, attributes, batch, codes, wanted)
    torch.testing.assert_close(some, every)
    parameters = list(encoder.parameters())
    for mine, theirs in zip(
        torch.autograd.grad((some * direction).sum(), parameters),
        torch.autograd.grad((every * direction).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_a_map_encoded_in_blocks_is_the_map_encoded_in_one_piece(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = EP2PLoc(NetworkConfig(point_width=16)).eval()
    network.fingerprint = "cafe0123"
    rng = np.random.default_rng(0)
    xyz = np.c_[rng.uniform(-150, 150, 30000), rng.uniform(-20, 20, 30000), rng.uniform(0, 2, 30000)]
    points = MapPoints(xyz.astype(np.float32), rng.random((30000, 6), np.float32), np.zeros((30000, 2), np.uint16))
    point_map = write_map(tmp_path / "map", points, MapInfo(voxel_size=0.2))
    points = point_map.all_points()
    encode_map(point_map, network)
    in_blocks = point_map.all_points().descriptors
    assert in_blocks is not None
    with torch.inference_mode():
        batch = torch.zeros(len(points), dtype=torch.long)
        at_once = network.encode_points(torch.from_numpy(points.xyz), torch.from_numpy(points.attributes), batch)
    codes, code_voxel = torch.zeros(1, network.config.descriptor_width), np.zeros(len(points), np.int64)
    in_memory = encode_points(points, network, codes, code_voxel)
    # A point within rounding of a voxel's face may fall on its other side when coordinates are shifted.
    assert (np.abs(in_blocks - 127 * at_once.numpy()).max(1) > 1.5).mean() < 0.01
    assert (np.abs(in_blocks.astype(int) - in_memory).max(1) > 1).mean() < 0.01
