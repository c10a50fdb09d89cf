"""Pose from 2D-3D matches: MAGSAC++ for the outliers, then weighted Levenberg-Marquardt, with a covariance."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from ep2ploc_core import se3

# What a match in front of the camera is worth: more than any error, so that no step pays by putting points behind it.
BEHIND = 1e3


@dataclass
class PnPResult:
    """map_from_camera `(4, 4)`; inliers `(M,)` bool; covariance `(6, 6)` of `se3.perturb`'s tangent (metres and
    radians, map axes), from the inliers' own scatter."""

    map_from_camera: np.ndarray
    inliers: np.ndarray
    covariance: np.ndarray


def solve_ransac(points_map: np.ndarray, pixels: np.ndarray, matrix: np.ndarray, threshold: float) -> np.ndarray | None:
    """map_from_camera `(4, 4)` by MAGSAC++ from points `(M, 3)`, pixels `(M, 2)` and K `(3, 3)`, or None.

    threshold: pixels beyond which a match is surely wrong. Deterministic: OpenCV's generator starts from the same seed.
    """
    if len(points_map) < 6:
        return None
    centre = points_map.mean(0)  # OpenCV loses digits far from the origin
    cv2.setRNGSeed(0)
    try:
        found, rotation, translation, _ = cv2.solvePnPRansac(
            (points_map - centre).astype(np.float64), pixels.astype(np.float64), matrix, None,
            flags=cv2.USAC_MAGSAC, iterationsCount=2_000, confidence=0.999, reprojectionError=threshold,
        )  # fmt: skip
    except cv2.error:  # degenerate matches (all in one place) end in an exception inside OpenCV
        return None
    if not found or not np.isfinite(translation).all():
        return None
    camera_from_centred = np.eye(4)
    camera_from_centred[:3, :3] = cv2.Rodrigues(rotation)[0]
    camera_from_centred[:3, 3] = translation.ravel()
    map_from_camera = np.linalg.inv(camera_from_centred)
    map_from_camera[:3, 3] += centre
    return map_from_camera


def refine(
    map_from_camera: np.ndarray,
    points_map: np.ndarray,
    pixels: np.ndarray,
    weights: np.ndarray,
    matrix: np.ndarray,
    scale: float,
    iterations: int = 30,
) -> PnPResult:
    """Weighted Levenberg-Marquardt on the reprojection error from a start `(4, 4)`.

    points_map `(M, 3)` metres, pixels `(M, 2)`, weights `(M,)` >= 0, K `(3, 3)`. scale: pixels at which Cauchy's robust
    cost begins to discount a match; within 3 scales a match is an inlier. The covariance is the sandwich
    H^-1 (J^T W r r^T W J) H^-1: it uses the residuals as they are, so that wrong weights do not make it too small.
    """
    pose = np.array(map_from_camera, dtype=np.float64)
    damping = 1e-4
    residual, jacobian, front = _residuals(pose, points_map, pixels, matrix)
    cost = _cost(residual, weights * front, scale)
    for _ in range(iterations):
        robust = weights * front / (1 + (residual**2).sum(1) / scale**2)
        # By torch, which is told how many threads to take: numpy's BLAS takes all, and on busy cores they wait long.
        weighted = torch.from_numpy((robust[:, None, None] * jacobian).reshape(-1, 6)).T
        terms = torch.from_numpy(np.concatenate([jacobian.reshape(-1, 6), residual.reshape(-1, 1)], 1))
        hessian, gradient = np.split((weighted @ terms).numpy(), [6], axis=1)
        gradient = gradient[:, 0]
        step = -np.linalg.solve(hessian + damping * np.diag(np.diag(hessian) + 1e-9), gradient)
        candidate = _move(pose, step)
        new_residual, new_jacobian, new_front = _residuals(candidate, points_map, pixels, matrix)
        new_cost = _cost(new_residual, weights * new_front, scale)
        if new_cost < cost:
            small = abs(cost - new_cost) < 1e-9 * cost
            pose, residual, jacobian, front, cost = candidate, new_residual, new_jacobian, new_front, new_cost
            damping = max(damping / 5, 1e-9)
            if small or np.abs(step).max() < 1e-8:
                break
        else:
            damping *= 10
            if damping > 1e6:
                break
    inliers = front & ((residual**2).sum(1) < (3 * scale) ** 2)
    robust = weights * front / (1 + (residual**2).sum(1) / scale**2)
    hessian = np.einsum("m,mri,mrj->ij", robust, jacobian, jacobian) + 1e-9 * np.eye(6)
    score = np.einsum("m,mri,mr->mi", robust, jacobian, residual)
    inverse = np.linalg.inv(hessian)
    return PnPResult(pose, inliers, inverse @ (score.T @ score) @ inverse)


def reprojection_errors(
    map_from_camera: np.ndarray, points_map: np.ndarray, pixels: np.ndarray, matrix: np.ndarray
) -> np.ndarray:
    """Distances `(M,)` in pixels between the pixels and the points' projections; infinite behind the camera."""
    residual, _, front = _residuals(map_from_camera, points_map, pixels, matrix)
    return np.where(front, np.linalg.norm(residual, axis=1), np.inf)


def _move(map_from_camera: np.ndarray, tangent: np.ndarray) -> np.ndarray:
    return se3.perturb(torch.from_numpy(map_from_camera), torch.from_numpy(tangent)).numpy()


def _cost(residual: np.ndarray, weights: np.ndarray, scale: float) -> float:
    return float((weights * scale**2 * np.log1p((residual**2).sum(1) / scale**2)).sum() - BEHIND * weights.sum())


def _residuals(
    map_from_camera: np.ndarray, points_map: np.ndarray, pixels: np.ndarray, matrix: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reprojection errors `(M, 2)`, their Jacobian `(M, 2, 6)` by `se3.perturb`'s tangent, and what lies in front."""
    rotation, centre = map_from_camera[:3, :3], map_from_camera[:3, 3]
    offset = points_map - centre
    camera = offset @ rotation
    front = camera[:, 2] > 0.1
    depth = np.maximum(camera[:, 2], 0.1)
    x, y = camera[:, 0] / depth, camera[:, 1] / depth
    residual = np.stack([matrix[0, 0] * x + matrix[0, 2], matrix[1, 1] * y + matrix[1, 2]], 1) - pixels
    zero = np.zeros_like(x)
    by_camera = np.stack(
        [np.stack([matrix[0, 0] / depth, zero, -matrix[0, 0] * x / depth], 1),
         np.stack([zero, matrix[1, 1] / depth, -matrix[1, 1] * y / depth], 1)], 1,
    )  # fmt: skip
    by_offset = by_camera @ rotation.T
    # p_camera = R^T exp(-w) (p - c - t): moving the camera by t moves the offset by -t, turning it by w by -w x offset.
    # a . (w x offset) = w . (offset x a), so a row a of the Jacobian by the offset becomes offset x a by the turn.
    by_turn = -np.cross(offset[:, None, :], by_offset)
    return residual, np.concatenate([-by_offset, by_turn], 2), front
