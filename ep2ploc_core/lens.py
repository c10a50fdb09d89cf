"""What a lens does to the ideal image, and how far it can be undone.

All models of ROS are one map of the plane. With p the ideal point, s = |p|^2 and t the tangential vector:

    distorted(p) = p N(s) / D(s) + 2 (t.p) p + s t

`plumb_bob`, `rational_polynomial`: p = (x/z, y/z), N = 1 + k1 s + k2 s^2 + k3 s^3, D = 1 + k4 s + k5 s^2 + k6 s^3,
t = (p2, p1) (OpenCV's calib3d; Brown 1966). `equidistant`: |p| is the angle to the optical axis, in the direction of
(x, y), N = 1 + k1 s + ... + k4 s^4, D = 1, t = 0 (Kannala and Brandt 2006; OpenCV's fisheye).

The polynomials are fitted to what the image shows. Far outside they turn back, and a point beyond that would fold into
the image. The Jacobian is symmetric, so the map is the gradient of a potential; on a disc where the Jacobian is
positive definite the potential is strictly convex, and the map is one to one. `Lens.limit` is the radius of the largest
such disc, and nothing beyond it is seen. Where t is not zero the lens turns back a little farther out in some
directions than in others; on 15 random plumb_bob lenses (|p1|, |p2| <= 0.003, focal lengths 200 to 2000 pixels) the one
radius gives away 0.02 pixels at the rim in the median and 0.56 at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.polynomial import Polynomial

# ROS names of the models and how many coefficients each may carry.
DISTORTION_MODELS = {"none": (0,), "plumb_bob": (4, 5), "rational_polynomial": (8,), "equidistant": (4,)}

NEWTON_STEPS = 60  # 4 do for a usual lens; at the very limit, where the Jacobian vanishes, each only halves the error
HALVINGS = 30
NOTHING = 1e-12
SOLVED = 1e-12  # of the distorted plane: with a focal length of 1e4 pixels, 1e-8 pixels
ACCEPTED = 1e-10
TABLE_SIZE = 1025
# Keeps rays from `unproject` inside the limit whatever the rounding of their three numbers does.
INSIDE = 1 - 1e-9


@lru_cache(maxsize=64)
def lens_of(distortion_model: str, distortion: tuple[float, ...]) -> Lens:
    """The lens of a model of `DISTORTION_MODELS` and its coefficients in OpenCV's order."""
    # What rounds to nothing would make roots that are no numbers.
    distortion = tuple(0.0 if abs(value) < NOTHING else value for value in distortion)
    if distortion_model == "equidistant":
        return Lens((1.0, *distortion), (1.0,), (0.0, 0.0), True)
    k1, k2, p1, p2, k3, k4, k5, k6 = (*distortion, *[0.0] * 8)[:8]
    return Lens((1.0, k1, k2, k3), (1.0, k4, k5, k6), (p2, p1), False)


@dataclass(frozen=True)
class Lens:
    """A lens: N and D by rising powers of s, t, and whether the plane's radius is the angle itself (`equidistant`) or
    its tangent."""

    numerator: tuple[float, ...]
    denominator: tuple[float, ...]
    tangential: tuple[float, float]
    equidistant: bool

    @cached_property
    def limit(self) -> float:
        """The radius of the plane up to which the lens is one to one; may be infinite, at most pi if equidistant.

        With f = N / D and g = d(r f)/dr, the eigenvalues of the Jacobian are f and g plus what t adds, which is at
        least -6 |t| r. The limit is the first r where min(f, g) = 6 |t| r or D = 0.
        """
        square = Polynomial([0, 0, 1])
        top, bottom = Polynomial(self.numerator), Polynomial(self.denominator)
        slope = top.deriv() * bottom - top * bottom.deriv()
        tilt = 6 * np.hypot(*self.tangential) * Polynomial([0, 1]) * bottom(square) ** 2
        across = (top * bottom)(square) - tilt
        along = (top * bottom)(square) + 2 * square * slope(square) - tilt
        roots = np.concatenate([polynomial.trim().roots() for polynomial in (across, along, bottom(square))])
        # A double root may come out as a complex pair by rounding: take it for real.
        real = roots.real[(np.abs(roots.imag) <= 1e-6 * np.abs(roots)) & (roots.real > 0)]
        return float(min(real.min(initial=np.inf), np.pi if self.equidistant else np.inf))

    def project(self, points: np.ndarray) -> np.ndarray:
        """Distorted points `(N, 2)` of points `(N, 3)` in the optical frame; NaN where the lens does not see them."""
        with np.errstate(all="ignore"):
            plane = self._plane_from_points(points)
            seen = np.hypot(*plane.T) < self.limit
            return np.where(seen[:, None], self._distort(plane), np.nan)

    def unproject(self, distorted: np.ndarray) -> np.ndarray:
        """Unit rays `(N, 3)` in the optical frame of distorted points `(N, 2)`; NaN where no ray arrives."""
        with np.errstate(all="ignore"):
            plane = self._undistort(distorted)
            if self.equidistant:
                angle = np.hypot(*plane.T)
                return np.column_stack([plane * np.sinc(angle / np.pi)[:, None], np.cos(angle)])
            rays = np.column_stack([plane, np.ones(len(plane))])
            return rays / np.linalg.norm(rays, axis=1, keepdims=True)

    def _plane_from_points(self, points: np.ndarray) -> np.ndarray:
        across, depth = points[:, :2], points[:, 2]
        if not self.equidistant:
            return across / np.where(depth > 0, depth, np.nan)[:, None]
        radius = np.hypot(*across.T)
        on_axis = np.where(depth > 0, 1 / depth, np.nan)  # angle / radius tends to it; behind, there is no direction
        return across * np.where(radius > 0, np.arctan2(radius, depth) / radius, on_axis)[:, None]

    def _radial(self, square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """f = N / D and its derivative by s, at s."""
        top, bottom = Polynomial(self.numerator), Polynomial(self.denominator)
        below = bottom(square)
        factor = top(square) / below
        return factor, (top.deriv()(square) - factor * bottom.deriv()(square)) / below

    def _distort(self, plane: np.ndarray) -> np.ndarray:
        square = (plane**2).sum(1)
        scale = self._radial(square)[0] + 2 * (plane @ self.tangential)
        return scale[:, None] * plane + square[:, None] * np.array(self.tangential)

    def _solve_jacobian(self, plane: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The Jacobian's inverse at plane `(N, 2)` times right `(N, 2)`."""
        (x, y), (tx, ty), (u, v) = plane.T, self.tangential, right.T
        factor, slope = self._radial(x * x + y * y)
        scale = factor + 2 * (tx * x + ty * y)
        xx, yy = scale + 2 * slope * x * x + 4 * tx * x, scale + 2 * slope * y * y + 4 * ty * y
        xy = 2 * slope * x * y + 2 * (tx * y + ty * x)
        return np.stack([yy * u - xy * v, xx * v - xy * u], 1) / (xx * yy - xy * xy)[:, None]

    def _undistort(self, target: np.ndarray) -> np.ndarray:
        """The plane's points `(N, 2)` that `_distort` takes to target: Newton's iteration, whose steps are halved until
        they bring the point nearer and keep it inside the limit."""
        plane = self._first_guess(target)
        error = np.linalg.norm(self._distort(plane) - target, axis=1)
        tolerance = 1 + np.linalg.norm(target, axis=1)
        working = np.flatnonzero(error > SOLVED * tolerance)
        for _ in range(NEWTON_STEPS):
            if not len(working):
                break
            start, goal, best = plane[working], target[working], error[working]
            step = self._solve_jacobian(start, self._distort(start) - goal)
            pending = np.arange(len(working))
            for halving in range(HALVINGS):
                trial = start[pending] - 0.5**halving * step[pending]
                found = np.linalg.norm(self._distort(trial) - goal[pending], axis=1)
                good = (found < best[pending]) & (np.hypot(*trial.T) < self.limit * INSIDE)
                plane[working[pending[good]]], error[working[pending[good]]] = trial[good], found[good]
                pending = pending[~good]
                if not len(pending):
                    break
            working = np.delete(working, pending)  # no step helps them any more
            working = working[error[working] > SOLVED * tolerance[working]]
        return np.where((error <= ACCEPTED * tolerance)[:, None], plane, np.nan)

    def _first_guess(self, target: np.ndarray) -> np.ndarray:
        """By the radial part alone, which rises up to the limit, from a table."""
        end = np.arctan(min(self.limit * INSIDE, 1e3))
        radii = np.tan(np.linspace(0, end, TABLE_SIZE))
        radius = np.linalg.norm(target, axis=1)
        guess = np.interp(radius, radii * self._radial(radii**2)[0], radii)
        return target * np.where(radius > 0, guess / radius, 0)[:, None]
