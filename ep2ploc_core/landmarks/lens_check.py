"""Whether the landmarks fit the focal length that a camera is said to have.

A wrong one is not seen in the answer for one image: the pose gives way, by a metre or two for a tenth, until most of
the image fits. But landmarks near and far, in the middle and at the edge, do tell the focal length apart from the pose.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from ep2ploc_core.camera import Camera
from ep2ploc_core.landmarks.finder import LandmarkPose

SCALE = 2.0  # pixels from which on Cauchy's robust cost discounts a match
REACHES = (24.0, 24.0, 12.0, 12.0)  # pixels; farther off a match does not count, round by round
LEAST_MATCHES = 12
_USUAL_STEPS = np.array([0.01, 0.01, 0.01, 0.3, 0.3, 0.3, 0.02])  # radians, units, share
_UNKNOWN = 100 * _USUAL_STEPS  # standard deviations of what nothing tells, which a flat wall does not


@dataclass
class FocalRatio:
    """The focal length that fits best, as a share of that given, and the standard deviation of its logarithm, were the
    matches SCALE off, each on its own."""

    ratio: float
    sigma: float


def fit_focal_ratio(found: LandmarkPose, camera: Camera) -> FocalRatio | None:
    """From the unguided matches of a pose that was found with the focal lengths of a pinhole, whether these are right
    or not; None where too few matches agree with any. Pose and focal length are solved for together."""
    turned, centre = found.map_from_camera[:3, :3], found.map_from_camera[:3, 3]
    focal, middle = np.diag(camera.matrix)[:2], camera.matrix[:2, 2]
    xyz, pixels = found.unguided.xyz - centre, found.unguided.pixels

    def residuals(unknown: np.ndarray, used: np.ndarray) -> np.ndarray:
        turn = Rotation.from_rotvec(unknown[:3]).as_matrix() @ turned
        seen = (xyz[used] - unknown[3:6]) @ turn
        projected = focal * math.exp(unknown[6]) * seen[:, :2] / np.maximum(seen[:, 2:], 0.1) + middle
        return np.asarray(projected - pixels[used])

    unknown, every = np.zeros(7), np.ones(len(xyz), dtype=bool)
    for reach in REACHES:
        used = np.linalg.norm(residuals(unknown, every), axis=1) < reach
        if used.sum() < LEAST_MATCHES:
            return None
        solved = least_squares(
            lambda unknown, used=used: residuals(unknown, used).ravel() / SCALE, unknown, loss="cauchy",
            x_scale=_USUAL_STEPS, max_nfev=15,
        )  # fmt: skip
        unknown = solved.x
    variance = np.linalg.inv(solved.jac.T @ solved.jac + np.diag(_UNKNOWN**-2.0))[6, 6]
    return FocalRatio(math.exp(unknown[6]), math.sqrt(variance))


class LensCheck:
    """What the images of one camera told of its focal length.

    An image counts that tells it to `greatest_sigma`. What landmarks err by together makes one image be off by up to
    `scatter` more (seen: a sixtieth, in a room whose poses are a degree off); of several, less. Beyond `tolerance` it
    is the calibration.
    """

    tolerance = 0.02
    scatter = 0.045
    greatest_sigma = 0.01
    enough = 4  # images that told, and told that it is right; then the question is settled
    tries = 12  # images asked for its sake; from then on those count for which landmarks are asked anyway
    remembered = 24  # images that told

    def __init__(self) -> None:
        self._told: deque[float] = deque(maxlen=self.remembered)
        self._asked = 0

    @property
    def is_open(self) -> bool:
        """Whether landmarks had better be looked for to know."""
        settled = len(self._told) >= self.enough and abs(float(np.median(self._told))) <= self.tolerance
        return not settled and self._asked < self.tries

    @property
    def ratio(self) -> float | None:
        """The focal length that fits the images best, as a share of that given; None where none told."""
        return math.exp(float(np.median(self._told))) if self._told else None

    @property
    def complaint(self) -> str:
        """Why no pose should be believed; empty where the focal length is not known to be wrong."""
        ratio = self.ratio
        if ratio is None or abs(math.log(ratio)) <= self.tolerance + self.scatter / math.sqrt(len(self._told)):
            return ""
        return (
            f"the landmarks fit a focal length {ratio:.2f} times that of the camera's calibration; "
            "calibrate the camera, or give the file that belongs to these images"
        )

    def learn(self, fitted: FocalRatio | None) -> None:
        """Takes in what an image whose landmarks were looked for told, if it did."""
        self._asked += 1
        if fitted is not None and fitted.sigma <= self.greatest_sigma:
            self._told.append(math.log(fitted.ratio))
