"""Rigid transforms: exp and log undo each other everywhere, gradients stay finite, names mean what they say."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ep2ploc_core import se3

ANGLES = [0.0, 1e-12, 1e-7, 1e-5, 1e-4, 1e-3, 0.5, 2.0, np.pi - 1e-3, np.pi - 1e-6]
AXES = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, -2, 3), (-1, -1, -1)]
numbers = st.floats(-1, 1, allow_nan=False)


def tangent(angle: float, axis: tuple[float, float, float]) -> np.ndarray:
    unit = np.array(axis) / np.linalg.norm(axis)
    return np.concatenate([[3.0, -2.0, 1.0], angle * unit])


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("axis", AXES)
def test_exp_is_the_rotation_about_the_axis_and_log_undoes_it(angle, axis):
    expected = tangent(angle, axis)
    transform = se3.exp(torch.tensor(expected))
    assert np.allclose(transform[:3, :3].numpy(), Rotation.from_rotvec(expected[3:]).as_matrix(), atol=1e-10)
    assert np.allclose(se3.log(transform.numpy()), expected, atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 1e-20, 1e-9, 9e-5, 1.1e-4, 1.0, np.pi])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_exp_are_finite_at_every_angle(angle, dtype):
    vector = torch.tensor(tangent(angle, (1, -2, 3)), dtype=dtype, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(se3.exp, vector)
    assert torch.isfinite(jacobian).all()


def test_the_gradient_at_zero_is_the_generator():
    jacobian = torch.autograd.functional.jacobian(se3.so3_exp, torch.zeros(3, dtype=torch.float64))
    assert torch.allclose(jacobian[..., 2], se3.hat(torch.tensor([0, 0, 1.0], dtype=torch.float64)))


@given(st.lists(numbers, min_size=6, max_size=6), st.lists(numbers, min_size=3, max_size=3))
def test_inverse_takes_points_back(vector, point):
    target_from_source = se3.exp(3 * torch.tensor(vector, dtype=torch.float64))
    source = torch.tensor([point], dtype=torch.float64)
    target = se3.apply(target_from_source, source)
    homogeneous = target_from_source @ torch.tensor([*point, 1.0], dtype=torch.float64)
    assert torch.allclose(target[0], homogeneous[:3])
    assert torch.allclose(se3.apply(se3.inverse(target_from_source), target), source, atol=1e-12)


def test_transforms_work_in_batches():
    batch = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    transforms = se3.exp(batch)
    points = torch.randn(2, 5, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moved = se3.apply(transforms, points)
    assert torch.allclose(moved[1, 3], se3.apply(transforms[1, 3], points[1, 3]))
    assert torch.allclose(se3.inverse(transforms) @ transforms, torch.eye(4, dtype=torch.float64).expand(2, 5, 4, 4))
    assert se3.log(transforms.numpy()).shape == (2, 5, 6)


def test_perturb_moves_along_the_map_axes_and_turns_about_the_camera():
    map_from_camera = se3.exp(torch.tensor([10.0, 20.0, 30.0, 0.3, -0.2, 1.0], dtype=torch.float64))
    moved = se3.perturb(map_from_camera, torch.tensor([1.0, 0, 0, 0, 0, 0.1], dtype=torch.float64))
    assert torch.allclose(moved[:3, 3], torch.tensor([11.0, 20.0, 30.0], dtype=torch.float64))
    turn = moved[:3, :3] @ map_from_camera[:3, :3].T
    assert np.allclose(turn.numpy(), Rotation.from_rotvec([0, 0, 0.1]).as_matrix())


@given(st.lists(numbers, min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 1e-3))
def test_quaternions_come_back_up_to_sign_and_length(quaternion):
    transform = se3.from_quaternion(np.array([1.0, 2, 3]), np.array(quaternion))
    unit = np.array(quaternion) / np.linalg.norm(quaternion)
    assert np.isclose(abs(se3.to_quaternion(transform) @ unit), 1)
    assert transform[:3, 3].tolist() == [1, 2, 3]


def test_the_identity_quaternion_has_w_last():
    assert np.allclose(se3.from_quaternion(np.zeros(3), np.array([0, 0, 0, 1.0])), np.eye(4))


def test_pose_error_is_distance_and_angle():
    truth = se3.exp(torch.tensor([1.0, 2, 3, 0.1, 0.2, 0.3], dtype=torch.float64)).numpy()
    offset = torch.tensor([3.0, 0, 4.0, 0, 0, np.deg2rad(170)], dtype=torch.float64)
    estimate = se3.perturb(torch.tensor(truth), offset).numpy()
    assert se3.pose_error(estimate, truth) == pytest.approx((5.0, np.deg2rad(170)))
