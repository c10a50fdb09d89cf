"""Rigid transforms as 4x4 matrices named `target_from_source`, in torch (batched, differentiable) and numpy.

A tangent vector is `(x, y, z, rx, ry, rz)`: translation in metres first, then the rotation vector in radians, the
order of the covariances that ROS uses. `exp` maps translation and rotation apart (SO(3) x R^3): the covariance of a
pose then reads directly as metres and radians.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor


def hat(vector: Tensor) -> Tensor:
    """Skew matrices `(..., 3, 3)` of vectors `(..., 3)`: `hat(a) @ b = a x b`."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return torch.stack(rows, -1).reshape(*vector.shape[:-1], 3, 3)


def so3_exp(rotation_vector: Tensor) -> Tensor:
    """Rotation matrices `(..., 3, 3)` of rotation vectors `(..., 3)` in radians (Rodrigues' formula).

    Exact near zero: the two coefficients switch to their Taylor series below 1e-4 rad, and the branch not taken never
    sees a division by zero, so gradients are finite everywhere.
    """
    squared = (rotation_vector * rotation_vector).sum(-1)[..., None, None]
    small = squared < 1e-8
    safe = torch.where(small, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    first = torch.where(small, 1 - squared / 6, torch.sin(angle) / angle)
    second = torch.where(small, 0.5 - squared / 24, (1 - torch.cos(angle)) / safe)
    skew = hat(rotation_vector)
    identity = torch.eye(3, dtype=skew.dtype, device=skew.device)
    return identity + first * skew + second * (skew @ skew)


def exp(tangent: Tensor) -> Tensor:
    """Transforms `(..., 4, 4)` of tangent vectors `(..., 6)`: metres, then radians."""
    return from_rotation_translation(so3_exp(tangent[..., 3:]), tangent[..., :3])


def log(transform: np.ndarray) -> np.ndarray:
    """Tangent vectors `(..., 6)` of transforms `(..., 4, 4)`: the inverse of `exp`, exact up to a rotation of pi."""
    transform = np.asarray(transform, dtype=np.float64)
    flat = transform.reshape(-1, 4, 4)
    rotation = Rotation.from_matrix(flat[:, :3, :3]).as_rotvec()
    return np.concatenate([flat[:, :3, 3], rotation], axis=-1).reshape(*transform.shape[:-2], 6)


def from_rotation_translation(rotation: Tensor, translation: Tensor) -> Tensor:
    """Transforms `(..., 4, 4)` from rotations `(..., 3, 3)` and translations `(..., 3)` in metres."""
    top = torch.cat([rotation, translation[..., None]], -1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 0, 3] = 1
    return torch.cat([top, bottom], -2)


def inverse(transform: Tensor) -> Tensor:
    """Inverses `(..., 4, 4)` of rigid transforms `(..., 4, 4)`."""
    rotation = transform[..., :3, :3].transpose(-1, -2)
    return from_rotation_translation(rotation, -(rotation @ transform[..., :3, 3:]).squeeze(-1))


def apply(target_from_source: Tensor, points: Tensor) -> Tensor:
    """Points `(..., N, 3)` in the target frame, from `(..., N, 3)` in the source frame, by `(..., 4, 4)`. Never in the
    half precision that autocast would choose: metres and pixels need more than its eight bits."""
    rotation, translation = target_from_source[..., :3, :3], target_from_source[..., :3, 3]
    with torch.autocast(points.device.type, enabled=False):
        return points @ rotation.transpose(-1, -2) + translation[..., None, :]


def perturb(map_from_camera: Tensor, tangent: Tensor) -> Tensor:
    """Moves camera poses `(..., 4, 4)` by `(..., 6)`: metres along the map's axes, then a turn in the map frame
    about the camera's own centre. A pose's covariance is that of this tangent."""
    rotation = so3_exp(tangent[..., 3:]) @ map_from_camera[..., :3, :3]
    return from_rotation_translation(rotation, map_from_camera[..., :3, 3] + tangent[..., :3])


def from_quaternion(translation: np.ndarray, quaternion_xyzw: np.ndarray) -> np.ndarray:
    """A transform `(4, 4)` from a translation in metres and a quaternion `(x, y, z, w)` of any non-zero length."""
    transform = np.eye(4)
    transform[:3, :3] = Rotation.from_quat(np.asarray(quaternion_xyzw, dtype=np.float64)).as_matrix()
    transform[:3, 3] = translation
    return transform


def to_quaternion(transform: np.ndarray) -> np.ndarray:
    """The rotation of a transform `(4, 4)` as a unit quaternion `(x, y, z, w)`."""
    return Rotation.from_matrix(transform[:3, :3]).as_quat()


def pose_error(estimate: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Distance in metres and angle in radians between two poses `(4, 4)`."""
    translation = float(np.linalg.norm(estimate[:3, 3] - truth[:3, 3]))
    relative = Rotation.from_matrix(estimate[:3, :3].T @ truth[:3, :3])
    return translation, float(relative.magnitude())
