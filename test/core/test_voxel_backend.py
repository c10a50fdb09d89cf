"""MinkowskiEngine finds the voxels and pairs that PyTorch finds, in the same order; and is only used on request."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from ep2ploc_core.errors import InputError
from ep2ploc_core.model import voxels
from ep2ploc_core.model.point_transformer import PointTransformer
from ep2ploc_core.model.voxel_backend import VARIABLE, voxel_backend


@pytest.fixture
def minkowski(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The backend, with which everything in a test works."""
    pytest.importorskip("MinkowskiEngine", reason="MinkowskiEngine is not installed, so nothing was compared with it")
    monkeypatch.setenv(VARIABLE, "minkowski")
    backend = voxel_backend()
    assert isinstance(backend, ModuleType) and backend is not voxels
    return backend


def _cloud(points: int) -> tuple[Tensor, Tensor]:
    """Points on both sides of the origin, in three clouds, many of them to a voxel."""
    generator = torch.Generator().manual_seed(0)
    xyz = torch.randn(points, 3, generator=generator) * torch.tensor([20.0, 20.0, 2.0])
    return xyz, torch.randint(0, 3, (points,), generator=generator)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("points", [0, 1, 300, 30_000])
def test_minkowski_finds_the_same_voxels_and_pairs(minkowski: ModuleType, points: int, device: str) -> None:
    if device == "cuda" and not (torch.cuda.is_available() and sys.modules["MinkowskiEngine"].is_cuda_available()):
        pytest.skip("there is no GPU, or MinkowskiEngine was built without CUDA")
    xyz, batch = (values.to(device) for values in _cloud(points))
    level = voxels.voxelize(xyz, batch, 0.5)
    _assert_equal(minkowski.voxelize(xyz, batch, 0.5), level)
    for _ in range(3):
        _assert_equal(minkowski.neighbour_pairs(level), voxels.neighbour_pairs(level))
        _assert_equal(minkowski.coarsen(level), voxels.coarsen(level))
        level = voxels.coarsen(level)


def _assert_equal(mine: voxels.Voxels | voxels.Pairs, reference: voxels.Voxels | voxels.Pairs) -> None:
    assert type(mine) is type(reference)
    for name, expected in vars(reference).items():
        found = getattr(mine, name)
        assert found.dtype == expected.dtype and torch.equal(found, expected), name


def test_descriptors_do_not_depend_on_the_backend(minkowski: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder = PointTransformer(16, 24, voxel_size=0.5)
    xyz, batch = _cloud(3000)
    attributes = torch.rand(3000, 6)
    with torch.inference_mode():
        with_minkowski = encoder(xyz, attributes, batch)
        monkeypatch.delenv(VARIABLE)
        assert torch.equal(with_minkowski, encoder(xyz, attributes, batch))


def test_torch_is_used_unless_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert voxel_backend() is voxels


@pytest.mark.parametrize(("choice", "told"), [("minkowski", "cannot be imported"), ("spconv", "torch or minkowski")])
def test_a_backend_that_is_not_there_is_said_so(choice: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, choice)
    monkeypatch.setitem(sys.modules, "MinkowskiEngine", None)
    monkeypatch.delitem(sys.modules, "ep2ploc_core.model.minkowski_voxels", raising=False)
    monkeypatch.delattr("ep2ploc_core.model.minkowski_voxels", raising=False)
    with pytest.raises(InputError, match=told):
        voxel_backend()
