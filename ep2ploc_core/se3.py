"""Rigid transforms as 4x4 matrices named `target_from_source`: batched and differentiable in torch, float32 or float64.

They compose by `@`: `camera_from_map @ map_from_lidar`. The last functions are numpy: quaternions and errors, for files
and messages.

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
    # 1 - cos(angle) would lose half of the digits to cancellation.
    second = torch.where(small, 0.5 - squared / 24, 2 * torch.sin(angle / 2) ** 2 / safe)
    skew = hat(rotation_vector)
    identity = torch.eye(3, dtype=skew.dtype, device=skew.device)
    return identity + first * skew + second * _product(skew, skew)


def so3_log(rotation: Tensor) -> Tensor:
    """Rotation vectors `(..., 3)` in radians, no longer than pi, of rotation matrices `(..., 3, 3)`.

    By way of the quaternion, divided by its largest component (Shepperd 1978), so it is exact at every angle, and so
    are its gradients. At pi, where two rotation vectors are right, it gives one of them.
    """
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = rotation.flatten(-2).unbind(-1)
    wx, wy, wz = m21 - m12, m02 - m20, m10 - m01
    xy, xz, yz = m10 + m01, m02 + m20, m21 + m12
    # Row i is the quaternion (w, x, y, z) times four times its component i.
    rows = [
        1 + m00 + m11 + m22, wx, wy, wz,
        wx, 1 + m00 - m11 - m22, xy, xz,
        wy, xy, 1 - m00 + m11 - m22, yz,
        wz, xz, yz, 1 - m00 - m11 + m22,
    ]  # fmt: skip
    scaled = torch.stack(rows, -1).unflatten(-1, (4, 4))
    largest = scaled.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = scaled.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4)).squeeze(-2)
    quaternion = row / row.norm(dim=-1, keepdim=True)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    cosine, axis = quaternion[..., :1], quaternion[..., 1:]  # cosine of half the angle; axis times its sine
    squared = (axis * axis).sum(-1, keepdim=True)
    small = squared < 1e-8
    sine = torch.where(small, torch.ones_like(squared), squared).sqrt()
    near_one = torch.where(small, cosine, torch.ones_like(cosine))
    series = 2 / near_one - 2 / 3 * squared / near_one**3
    return axis * torch.where(small, series, 2 * torch.atan2(sine, cosine) / sine)


def exp(tangent: Tensor) -> Tensor:
    """Transforms `(..., 4, 4)` of tangent vectors `(..., 6)`: metres, then radians."""
    return from_rotation_translation(so3_exp(tangent[..., 3:]), tangent[..., :3])


def log(transform: Tensor) -> Tensor:
    """Tangent vectors `(..., 6)` of transforms `(..., 4, 4)`: the inverse of `exp`, with a rotation of at most pi."""
    return torch.cat([transform[..., :3, 3], so3_log(transform[..., :3, :3])], -1)


def from_rotation_translation(rotation: Tensor, translation: Tensor) -> Tensor:
    """Transforms `(..., 4, 4)` from rotations `(..., 3, 3)` and translations `(..., 3)` in metres."""
    top = torch.cat([rotation, translation[..., None]], -1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 0, 3] = 1
    return torch.cat([top, bottom], -2)


def inverse(transform: Tensor) -> Tensor:
    """Inverses `(..., 4, 4)` of rigid transforms `(..., 4, 4)`."""
    rotation = transform[..., :3, :3].transpose(-1, -2)
    return from_rotation_translation(rotation, -_product(rotation, transform[..., :3, 3:]).squeeze(-1))


def apply(target_from_source: Tensor, points: Tensor) -> Tensor:
    """Points `(..., N, 3)` in the target frame, from `(..., N, 3)` in the source frame, by `(..., 4, 4)`."""
    rotation, translation = target_from_source[..., :3, :3], target_from_source[..., :3, 3]
    return _product(points, rotation.transpose(-1, -2)) + translation[..., None, :]


def perturb(map_from_camera: Tensor, tangent: Tensor) -> Tensor:
    """Moves camera poses `(..., 4, 4)` by `(..., 6)`: metres along the map's axes, then a turn in the map frame
    about the camera's own centre. A pose's covariance is that of this tangent."""
    rotation = _product(so3_exp(tangent[..., 3:]), map_from_camera[..., :3, :3])
    return from_rotation_translation(rotation, map_from_camera[..., :3, 3] + tangent[..., :3])


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right`, never in the half precision that autocast would choose: metres and pixels need more than its
    eight bits."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right


def from_quaternion(translation: np.ndarray, quaternion_xyzw: np.ndarray) -> np.ndarray:
    """A transform `(4, 4)` from a translation in metres and a quaternion `(x, y, z, w)` of any non-zero length."""
    transform = np.eye(4)
    transform[:3, :3] = Rotation.from_quat(np.asarray(quaternion_xyzw, dtype=np.float64)).as_matrix()
    transform[:3, 3] = translation
    return transform


def to_quaternion(transform: np.ndarray) -> np.ndarray:
    """The rotation of a transform `(4, 4)` as a unit quaternion `(x, y, z, w)`."""
    return Rotation.from_matrix(transform[:3, :3]).as_quat()


def fuse_poses(
    pose: np.ndarray, covariance: np.ndarray, other: np.ndarray, other_covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The pose `(4, 4)` that two estimates of one camera make most probable, and its covariance `(6, 6)`, where their
    errors have nothing to do with each other. Covariances `(6, 6)` of `perturb`'s tangent."""
    turn = Rotation.from_matrix(other[:3, :3] @ pose[:3, :3].T).as_rotvec()
    gain = covariance @ np.linalg.inv(covariance + other_covariance)
    way = gain @ np.r_[other[:3, 3] - pose[:3, 3], turn]
    fused = perturb(torch.from_numpy(pose), torch.from_numpy(way)).numpy()
    left = covariance - gain @ covariance
    return fused, (left + left.T) / 2


def moved(transform: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Poses `(..., 4, 4)` in a frame whose origin lies at -`shift` `(3,)`, float64."""
    result = np.array(transform, dtype=np.float64)
    result[..., :3, 3] += shift
    return result


def pose_error(estimate: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Distance in metres and angle in radians between two poses `(4, 4)`."""
    translation = float(np.linalg.norm(estimate[:3, 3] - truth[:3, 3]))
    relative = Rotation.from_matrix(estimate[:3, :3].T @ truth[:3, :3])
    return translation, float(relative.magnitude())
