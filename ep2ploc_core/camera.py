"""The camera: intrinsics, lens distortion, image size, and what follows from them.

Optical frame: x right, y down, z forward. Pixel (0, 0) is the centre of the top left pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from torch import Tensor

from ep2ploc_core.errors import InputError

# ROS names of the lens models and how many coefficients each may carry.
DISTORTION_MODELS = {"none": (0,), "plumb_bob": (4, 5), "rational_polynomial": (8,), "equidistant": (4,)}


def project_pinhole(intrinsics: Tensor, points_camera: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels of points by an ideal pinhole.

    intrinsics: `(..., 4)` as fx, fy, cx, cy in pixels. points_camera: `(..., N, 3)` in metres, optical frame.
    Returns pixels `(..., N, 2)` and depths `(..., N)`; where the depth is not positive the pixel is finite but
    meaningless.
    """
    depth = points_camera[..., 2]
    safe = depth.clamp(min=1e-3)
    focal, centre = intrinsics[..., None, :2], intrinsics[..., None, 2:]
    return points_camera[..., :2] / safe[..., None] * focal + centre, depth


@dataclass(frozen=True)
class Camera:
    """A calibrated camera. `distortion` holds the coefficients of `distortion_model` in OpenCV's order."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion_model: str = "none"
    distortion: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        values = (self.fx, self.fy, self.cx, self.cy, *self.distortion)
        if not np.all(np.isfinite(values)):
            raise InputError("The camera calibration holds a value that is not a number; calibrate again.")
        if self.width < 1 or self.height < 1 or self.fx <= 0 or self.fy <= 0:
            raise InputError(
                f"The camera calibration has size {self.width}x{self.height} and focal lengths {self.fx:g}, "
                f"{self.fy:g}: all four must be positive; is the camera calibrated?"
            )
        counts = DISTORTION_MODELS.get(self.distortion_model)
        if counts is None:
            raise InputError(
                f"The distortion model '{self.distortion_model}' is not known; use one of "
                f"{', '.join(DISTORTION_MODELS)}, or undistort the images first."
            )
        if len(self.distortion) not in counts:
            raise InputError(
                f"The distortion model '{self.distortion_model}' takes {' or '.join(map(str, counts))} coefficients, "
                f"not {len(self.distortion)}."
            )

    @property
    def matrix(self) -> np.ndarray:
        """The intrinsic matrix K `(3, 3)`, float64."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])

    @property
    def intrinsics(self) -> np.ndarray:
        """fx, fy, cx, cy in pixels, float64."""
        return np.array([self.fx, self.fy, self.cx, self.cy])

    def project(self, points_camera: np.ndarray) -> np.ndarray:
        """Pixels `(N, 2)` of points `(N, 3)` in the optical frame, lens distortion included (OpenCV's formulas)."""
        points = np.ascontiguousarray(points_camera, dtype=np.float64).reshape(-1, 1, 3)
        zero = np.zeros(3)
        if self.distortion_model == "equidistant":
            pixels, _ = cv2.fisheye.projectPoints(points, zero, zero, self.matrix, np.array(self.distortion))
        else:
            pixels, _ = cv2.projectPoints(points, zero, zero, self.matrix, np.array(self.distortion))
        return pixels.reshape(-1, 2)

    def unproject(self, pixels: np.ndarray) -> np.ndarray:
        """Viewing rays `(N, 3)` with z = 1 in the optical frame, of pixels `(N, 2)`, lens distortion removed."""
        points = np.ascontiguousarray(pixels, dtype=np.float64).reshape(-1, 1, 2)
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-12)
        if self.distortion_model == "equidistant":
            rays = cv2.fisheye.undistortPoints(points, self.matrix, np.array(self.distortion), criteria=criteria)
        else:
            # OpenCV 5 folded the variant that takes a stopping rule into the plain one.
            undistort = getattr(cv2, "undistortPointsIter", None)
            lens = (self.matrix, np.array(self.distortion))
            if undistort is None:
                rays = cv2.undistortPoints(points, *lens, criteria=criteria)
            else:
                rays = undistort(points, *lens, None, None, criteria)
        return np.concatenate([rays.reshape(-1, 2), np.ones((len(points), 1))], axis=1)

    def resized(self, width: int, height: int) -> Camera:
        """The camera of the same image resized to `width` x `height`, each axis by its own scale."""
        scale_x, scale_y = width / self.width, height / self.height
        return replace(
            self,
            width=width,
            height=height,
            fx=self.fx * scale_x,
            fy=self.fy * scale_y,
            cx=(self.cx + 0.5) * scale_x - 0.5,
            cy=(self.cy + 0.5) * scale_y - 0.5,
        )

    def undistort(self, image: np.ndarray) -> tuple[np.ndarray, Camera]:
        """The image `(H, W[, C])` as an ideal pinhole with the same intrinsics would see it, and that pinhole."""
        if image.shape[:2] != (self.height, self.width):
            raise InputError(
                f"The image is {image.shape[1]}x{image.shape[0]} but the camera calibration is for "
                f"{self.width}x{self.height}; give the calibration of this image size."
            )
        if not any(self.distortion):
            return image, replace(self, distortion_model="none", distortion=())
        coefficients = np.array(self.distortion)
        if self.distortion_model == "equidistant":
            image = cv2.fisheye.undistortImage(image, self.matrix, coefficients, Knew=self.matrix)
        else:
            image = cv2.undistort(image, self.matrix, coefficients)
        return image, replace(self, distortion_model="none", distortion=())

    @classmethod
    def from_matrix(
        cls, width: int, height: int, k: np.ndarray, distortion_model: str = "", distortion: tuple[float, ...] = ()
    ) -> Camera:
        """From K `(3, 3)` or its nine numbers by row, as in a ROS CameraInfo; an empty model means no distortion."""
        k = np.asarray(k, dtype=np.float64).reshape(3, 3)
        if not distortion_model or not any(distortion):
            distortion_model, distortion = "none", ()
        return cls(
            int(width), int(height), float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2]),
            distortion_model, tuple(float(value) for value in distortion),
        )  # fmt: skip

    @classmethod
    def from_yaml(cls, path: Path) -> Camera:
        """From the YAML that ROS camera_calibration writes (image_width, camera_matrix, distortion_coefficients)."""
        try:
            content = yaml.safe_load(Path(path).read_text())
            return cls.from_matrix(
                content["image_width"],
                content["image_height"],
                content["camera_matrix"]["data"],
                content.get("distortion_model", ""),
                tuple(content.get("distortion_coefficients", {}).get("data", ())),
            )
        except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"The camera file {path} cannot be read ({type(error).__name__}: {str(error).splitlines()[0]}); "
                "give the YAML that camera_calibration writes, or a KITTI calibration file."
            ) from error

    def to_yaml(self, path: Path) -> None:
        """Writes the form that `from_yaml` reads."""
        content = {
            "image_width": self.width,
            "image_height": self.height,
            "camera_matrix": {"rows": 3, "cols": 3, "data": [float(value) for value in self.matrix.ravel()]},
            "distortion_model": "plumb_bob" if self.distortion_model == "none" else self.distortion_model,
            "distortion_coefficients": {
                "rows": 1,
                "cols": max(len(self.distortion), 5),
                "data": list(self.distortion) or [0.0] * 5,
            },
        }
        Path(path).write_text(yaml.safe_dump(content, sort_keys=False))

    def intrinsics_tensor(self) -> Tensor:
        """fx, fy, cx, cy as a float32 tensor `(4,)`."""
        return torch.tensor(self.intrinsics, dtype=torch.float32)
