"""The camera: intrinsics, lens distortion, image size, and what follows from them.

Optical frame: x right, y down, z forward. Pixel (0, 0) is the centre of the top left pixel.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from torch import Tensor

from ep2ploc_core.errors import InputError
from ep2ploc_core.lens import DISTORTION_MODELS, Lens, lens_of

OTHER_NAMES = {"fisheye": "equidistant"}  # what some tools call the models of ROS
SKEW = 1e-6  # of the focal length: an intrinsic matrix is not taken for one with more than that beside its four numbers
OUTSIDE = -10.0  # a pixel outside any image, also after interpolation


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

    def intrinsics_tensor(self) -> Tensor:
        """fx, fy, cx, cy as a float32 tensor `(4,)`."""
        return torch.tensor(self.intrinsics, dtype=torch.float32)

    @property
    def lens(self) -> Lens:
        """What bends the rays before they meet the intrinsic matrix."""
        return lens_of(self.distortion_model, self.distortion)

    def project(self, points_camera: np.ndarray) -> np.ndarray:
        """Pixels `(N, 2)` of points `(N, 3)` in metres, optical frame, lens distortion included.

        Pixels may lie outside the image. NaN for what the lens cannot see: points behind the camera (for an equidistant
        lens only those beyond its greatest angle, which may be more than 90 degrees) and points so far outside that the
        distortion polynomial turns back there (`Lens.limit`).
        """
        points = np.asarray(points_camera, dtype=np.float64).reshape(-1, 3)
        return self.lens.project(points) * self.intrinsics[:2] + self.intrinsics[2:]

    def unproject(self, pixels: np.ndarray) -> np.ndarray:
        """Viewing rays `(N, 3)` of length 1 in the optical frame, of pixels `(N, 2)`, lens distortion removed.

        Unit rays, because an equidistant lens has rays with z <= 0. NaN for pixels that no ray reaches.
        """
        pixels = np.asarray(pixels, dtype=np.float64).reshape(-1, 2)
        return self.lens.unproject((pixels - self.intrinsics[2:]) / self.intrinsics[:2])

    def resize(self, width: int, height: int) -> Camera:
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

    def crop(self, x: int, y: int, width: int, height: int) -> Camera:
        """The camera of the part `image[y : y + height, x : x + width]` of the image."""
        if x < 0 or y < 0 or width < 1 or height < 1 or x + width > self.width or y + height > self.height:
            raise InputError(
                f"The region of {width}x{height} pixels at ({x}, {y}) does not lie in the camera's image of "
                f"{self.width}x{self.height}; check the region of interest."
            )
        return replace(self, width=width, height=height, cx=self.cx - x, cy=self.cy - y)

    def undistort(self, image: np.ndarray) -> tuple[np.ndarray, Camera]:
        """The image `(H, W[, C])` as an ideal pinhole with the same intrinsics would see it, and that pinhole.

        Black where the lens does not look.
        """
        if image.shape[:2] != (self.height, self.width):
            raise InputError(
                f"The image is {image.shape[1]}x{image.shape[0]} but the camera calibration is for "
                f"{self.width}x{self.height}; give the calibration of this image size."
            )
        if self.distortion_model == "none":
            return image, self
        flat = cv2.remap(image, *_undistortion_maps(self), cv2.INTER_LINEAR)
        return flat, replace(self, distortion_model="none", distortion=())

    @classmethod
    def from_matrix(
        cls,
        width: int,
        height: int,
        k: np.ndarray | Sequence[float],
        distortion_model: str = "",
        distortion: Sequence[float] = (),
    ) -> Camera:
        """From K `(3, 3)` or its nine numbers by row, and a lens.

        Coefficients without a model are those of plumb_bob, as in ROS. No coefficients, or only zeros, are no
        distortion; but an equidistant lens with zeros is an equidistant lens.
        """
        k = np.asarray(k, dtype=np.float64).reshape(3, 3)
        fx, fy, cx, cy = float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2])
        rest = np.array([k[0, 1], k[1, 0], k[2, 0], k[2, 1], k[2, 2] - 1])
        if fx > 0 and not np.abs(rest).max() <= SKEW * fx:
            raise InputError(
                f"The intrinsic matrix with the rows {k.tolist()} is not of the form [fx 0 cx], [0 fy cy], [0 0 1]; "
                "calibrate without skew."
            )
        model = OTHER_NAMES.get(distortion_model, distortion_model) or "plumb_bob"
        coefficients = tuple(float(value) for value in distortion)
        # OpenCV writes as many as its fullest model has, the unused ones zero.
        most = max(DISTORTION_MODELS.get(model, (0,)))
        if model == "plumb_bob" and len(coefficients) > most:
            model, most = "rational_polynomial", max(DISTORTION_MODELS["rational_polynomial"])
        if not any(coefficients[most:]):
            coefficients = coefficients[:most]
        if not coefficients or (model != "equidistant" and not any(coefficients)):
            model, coefficients = "none", ()
        return cls(int(width), int(height), fx, fy, cx, cy, model, coefficients)

    @classmethod
    def from_camera_info(
        cls,
        width: int,
        height: int,
        k: np.ndarray | Sequence[float],
        distortion: Sequence[float] = (),
        distortion_model: str = "",
        p: np.ndarray | Sequence[float] = (),
        binning: tuple[int, int] = (1, 1),
        roi: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> Camera:
        """The camera of the delivered images, from the fields of a ROS CameraInfo.

        k `(3, 3)` or 9 numbers by row and p `(3, 4)` or 12 (or none) are of the full resolution width x height. The
        images are cropped to the roi (x, y, width, height; all zeros: everything) and then binned (x, y; 0: 1).

        With distortion coefficients the images are as the lens made them: K and D hold. Without, they are rectified or
        ideal: the left part of P holds, or K where P is not filled in.

        As in ROS's image_geometry, binning by b divides the principal point by b. That is exact for a camera that
        takes every b-th pixel; for one that averages b pixels it is (b - 1) / (2 b) pixels too much.
        """
        projection = np.asarray(p, dtype=np.float64)
        if not any(distortion) and np.any(projection):
            camera = cls.from_matrix(width, height, projection.reshape(3, 4)[:, :3])
        else:
            camera = cls.from_matrix(width, height, k, distortion_model, distortion)
        if any(roi):
            camera = camera.crop(*roi)
        step_x, step_y = max(binning[0], 1), max(binning[1], 1)
        return replace(
            camera,
            width=camera.width // step_x,
            height=camera.height // step_y,
            fx=camera.fx / step_x,
            fy=camera.fy / step_y,
            cx=camera.cx / step_x,
            cy=camera.cy / step_y,
        )

    @classmethod
    def from_yaml(cls, path: Path) -> Camera:
        """From the YAML that ROS camera_calibration writes (image_width, camera_matrix, distortion_coefficients).

        Its projection_matrix is that of images rectified later: not of the images that the camera takes.
        """
        try:
            content = yaml.safe_load(Path(path).read_text())
            return cls.from_matrix(
                content["image_width"],
                content["image_height"],
                content["camera_matrix"]["data"],
                content.get("distortion_model", ""),
                content.get("distortion_coefficients", {}).get("data", ()),
            )
        except InputError as error:
            raise InputError(f"The camera file {path} cannot be used: {error}") from error
        except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = str(error).partition("\n")[0]
            reason = f"it has no {reason}" if isinstance(error, KeyError) else f"{type(error).__name__}: {reason}"
            raise InputError(
                f"The camera file {path} cannot be read ({reason}); "
                "give the YAML that camera_calibration writes, or a KITTI calibration file."
            ) from error

    def to_yaml(self, path: Path) -> None:
        """Writes the form that `from_yaml` and ROS's camera_info_manager read."""
        model, coefficients = self.distortion_model, self.distortion
        if model == "none":
            model, coefficients = "plumb_bob", (0.0,) * 5
        projection = np.hstack([self.matrix, np.zeros((3, 1))])
        content = {
            "image_width": self.width,
            "image_height": self.height,
            "camera_name": "camera",
            "camera_matrix": _yaml_matrix(self.matrix),
            "distortion_model": model,
            "distortion_coefficients": _yaml_matrix(np.array([coefficients])),
            "rectification_matrix": _yaml_matrix(np.eye(3)),
            "projection_matrix": _yaml_matrix(projection),
        }
        path = Path(path)
        aside = path.with_name(f".{path.name}.tmp")
        aside.write_text(yaml.safe_dump(content, sort_keys=False, default_flow_style=None))
        os.replace(aside, path)


def _yaml_matrix(matrix: np.ndarray) -> dict[str, object]:
    rows, columns = matrix.shape
    return {"rows": rows, "cols": columns, "data": [float(value) for value in matrix.ravel()]}


@lru_cache(maxsize=2)
def _undistortion_maps(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """For `cv2.remap`: where the ideal pinhole's pixels lie in the camera's image. Kept: a video asks for the same."""
    rows, columns = np.indices((camera.height, camera.width))
    pinhole = replace(camera, distortion_model="none", distortion=())
    rays = pinhole.unproject(np.stack([columns, rows], -1))
    pixels = np.nan_to_num(camera.project(rays), nan=OUTSIDE)
    x, y = pixels.T.astype(np.float32).reshape(2, camera.height, camera.width)
    return cv2.convertMaps(x, y, cv2.CV_16SC2)
