"""Rigid transforms: exp and log undo each other everywhere, gradients stay finite, names mean what they say."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from ep2ploc_core import se3

SMALL = [0.0, 1e-20, 1e-12, 1e-9, 1e-7, 1e-5, 9.9e-5, 1.01e-4, 1e-3]
ANGLES = [*SMALL, 0.5, 2.0, 3.0, np.pi - 1e-3, np.pi - 1e-6, np.pi - 1e-12, np.pi]
AXES = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, -2, 3), (-1, -1, -1), (1e-3, 1, 0), (0, 1, -1)]
DTYPES = [torch.float32, torch.float64]
numbers = st.floats(-1, 1, allow_nan=False)


def tangents(angle: float) -> np.ndarray:
    """Tangents `(A, 6)` that turn by this angle about each axis."""
    units = np.array(AXES) / np.linalg.norm(AXES, axis=1, keepdims=True)
    return np.concatenate([np.tile([3.0, -2.0, 1.0], (len(AXES), 1)), angle * units], 1)


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_is_the_rotation_about_the_axis(angle, dtype):
    expected = torch.tensor(tangents(angle), dtype=dtype)
    transforms = se3.exp(expected)
    rotations = Rotation.from_rotvec(expected[:, 3:].double().numpy()).as_matrix()
    eps = torch.finfo(dtype).eps
    np.testing.assert_allclose(transforms[:, :3, :3].double().numpy(), rotations, atol=4 * eps)
    # The small entries are as exact, relatively, as the large: off the diagonal they are the angle itself.
    if 0 < angle <= 1e-3:
        np.testing.assert_allclose(transforms[0, 2, 1].item(), np.sin(expected[0, 3].item()), rtol=4 * eps)
        np.testing.assert_allclose(transforms[3, 2, 0].item(), rotations[3, 2, 0], rtol=8 * eps)
    assert torch.equal(transforms[:, :3, 3], expected[:, :3])
    assert torch.equal(transforms[:, 3], torch.tensor([0, 0, 0, 1], dtype=dtype).expand(len(AXES), 4))


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_log_undoes_exp_to_the_last_digits(angle, dtype):
    expected = torch.tensor(tangents(angle), dtype=dtype)
    found = se3.log(se3.exp(expected))
    eps = torch.finfo(dtype).eps
    error = (found - expected).norm(dim=1)
    if angle > np.pi - 8 * eps:  # two rotation vectors, as right
        error = torch.minimum(error, (found[:, 3:] + expected[:, 3:]).norm(dim=1))
    assert error.max() <= 8 * eps * max(angle, 1e-30)


@given(st.lists(numbers, min_size=3, max_size=3).filter(lambda axis: np.linalg.norm(axis) > 1e-3), st.floats(0, 7))
def test_log_agrees_with_scipy(axis, angle):
    rotation = Rotation.from_rotvec(angle * np.array(axis) / np.linalg.norm(axis))
    found = se3.so3_log(torch.from_numpy(rotation.as_matrix()))
    assert found.norm() <= np.pi + 1e-15
    assert (Rotation.from_rotvec(found.numpy()).inv() * rotation).magnitude() < 1e-14


@pytest.mark.parametrize("seed", range(4))
def test_log_bears_rotations_rounded_to_float32(seed):
    """As they come from files: no longer quite orthonormal."""
    rotation = Rotation.random(200, rng=seed)
    found = se3.so3_log(torch.from_numpy(rotation.as_matrix().astype(np.float32)).double())
    assert (Rotation.from_rotvec(found.numpy()).inv() * rotation).magnitude().max() < 2e-7


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_exp_and_log_are_finite_at_every_angle(angle, dtype):
    for vector in torch.tensor(tangents(angle)[2:5], dtype=dtype):
        assert torch.isfinite(torch.autograd.functional.jacobian(se3.exp, vector)).all()
        assert torch.isfinite(torch.autograd.functional.jacobian(se3.log, se3.exp(vector))).all()


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-5, 9e-5, 1.1e-4, 1e-2, 1.0, np.pi - 1e-6])
def test_the_derivative_of_log_undoes_that_of_exp(angle):
    """And near zero as near pi no digits are lost: their product is the identity."""
    for vector in torch.tensor(tangents(angle)):
        product = torch.autograd.functional.jacobian(lambda tangent: se3.log(se3.exp(tangent)), vector)
        torch.testing.assert_close(product, torch.eye(6, dtype=torch.float64), atol=1e-8, rtol=0)


@pytest.mark.parametrize("angle", [0.0, 1e-3, 1.0, 2.5, np.pi - 1e-4, np.pi])
def test_gradients_agree_with_finite_differences(angle):
    vectors = torch.tensor(tangents(angle)[2:5], requires_grad=True)
    assert torch.autograd.gradcheck(se3.exp, vectors)
    if angle < np.pi:  # at pi log jumps
        transforms = se3.exp(vectors.detach())
        steps = torch.zeros_like(vectors, requires_grad=True)
        assert torch.autograd.gradcheck(lambda steps: se3.log(transforms @ se3.exp(steps)), steps)
    transforms = se3.exp(torch.tensor(tangents(1.0)[2:5])).requires_grad_()
    assert torch.autograd.gradcheck(se3.perturb, (transforms, vectors))
    assert torch.autograd.gradcheck(se3.inverse, se3.exp(vectors.detach()).requires_grad_())


def test_the_gradient_at_zero_is_the_generator():
    jacobian = torch.autograd.functional.jacobian(se3.so3_exp, torch.zeros(3, dtype=torch.float64))
    assert torch.allclose(jacobian[..., 2], se3.hat(torch.tensor([0, 0, 1.0], dtype=torch.float64)))


def test_autocast_takes_no_digits():
    batch = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    points = 50 * torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(1))

    def moved() -> torch.Tensor:
        return se3.apply(se3.inverse(se3.perturb(se3.exp(batch), 0.1 * batch)), points)

    exact = moved()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(moved(), exact)


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
    assert torch.allclose(se3.exp(se3.log(transforms)), transforms)
    assert torch.equal(se3.log(transforms)[1, 3], se3.log(transforms[1, 3]))


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


def test_two_estimates_are_fused_as_a_least_squares_solution_fuses_them() -> None:
    """Against scipy: the pose whose errors against both, weighed by their covariances, are least."""
    rng = np.random.default_rng(0)
    roots = rng.normal(0, 0.02, (2, 6, 6))
    covariances = roots @ roots.transpose(0, 2, 1) + 1e-5 * np.eye(6)
    pose = se3.exp(torch.from_numpy(np.array([3.0, -2, 1, 0.3, -0.2, 1.0]))).numpy()
    other = se3.perturb(torch.from_numpy(pose), torch.from_numpy(rng.normal(0, 0.003, 6))).numpy()
    fused, covariance = se3.fuse_poses(pose, covariances[0], other, covariances[1])

    def residuals(offset: np.ndarray) -> np.ndarray:
        here = se3.perturb(torch.from_numpy(pose), torch.from_numpy(offset)).numpy()
        parts = []
        for estimate, spread in zip((pose, other), covariances, strict=True):
            turn = Rotation.from_matrix(here[:3, :3] @ estimate[:3, :3].T).as_rotvec()
            away = np.r_[here[:3, 3] - estimate[:3, 3], turn]
            parts.append(np.linalg.solve(np.linalg.cholesky(spread), away))
        return np.concatenate(parts)

    solution = least_squares(residuals, np.zeros(6), xtol=1e-12, gtol=1e-12)
    expected = se3.perturb(torch.from_numpy(pose), torch.from_numpy(solution.x)).numpy()
    np.testing.assert_allclose(fused, expected, atol=1e-5)
    np.testing.assert_allclose(covariance, np.linalg.inv(solution.jac.T @ solution.jac), rtol=1e-2, atol=1e-7)
    # Of two that know nothing of each other's directions each decides its own.
    first, second = np.diag([1e-8, 1, 1, 1e-8, 1, 1]), np.diag([1, 1e-8, 1e-8, 1, 1e-8, 1e-8])
    target, _ = se3.fuse_poses(
        np.eye(4), first, se3.exp(torch.tensor([1.0, 2, 3, 0, 0.01, 0]).double()).numpy(), second
    )
    np.testing.assert_allclose(target[:3, 3], [0, 2, 3], atol=1e-6)
