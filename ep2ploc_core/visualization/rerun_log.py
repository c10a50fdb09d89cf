"""A recording for the rerun viewer (`rerun FILE.rrd`): the map, the camera's way through it, and what it saw.

| entity                  | what                                                                                   |
|-------------------------|----------------------------------------------------------------------------------------|
| `world/map`             | the map's points, by their height over the ground                                      |
| `world/truth`           | the true way of the camera                                                             |
| `world/camera`          | the estimated camera with its image, gone while there is no pose                       |
| `world/estimates`       | every pose given so far, with a line to its truth in `world/errors`                    |
| `world/uncertainty`     | the ellipsoid that holds the place with 90 % by the pose's covariance                  |
| `world/refused`         | true places of the images refused so far; of those that were dropped: `world/dropped`  |
| `image`, `overlay`      | the image; the map drawn over it                                                       |
| `log`                   | a line per pose or refusal                                                             |
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import cv2
import numpy as np
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from ep2ploc_core.camera import Camera
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.point_map import MapPoints
from ep2ploc_core.map.unit import unit_of

Log = TypeVar("Log", bound="RerunLog")

TIMELINE = "image_stamp"
_DROPPED = (127, 127, 127)
_TRUTH, _ESTIMATE, _REFUSED = (44, 160, 44), (214, 39, 40), (31, 119, 180)  # as in the plots
_DOT, _LINE, _MAP_DOT = 4.0, 1.5, 1.2  # radii on the screen: visible from above the whole map, too
_DARKEST = 70  # of 255, for the ground: what is below cannot be told from the background
_HIGHEST = 8.0  # over the ground, in units of `map.unit`; what is higher has the last colour
_JPEG_QUALITY = 80


def rerun_is_installed() -> bool:
    """Whether recordings can be written here."""
    return importlib.util.find_spec("rerun") is not None


def require_rerun() -> None:
    """Raises InputError where recordings cannot be written."""
    if not rerun_is_installed():
        raise InputError("rerun is not installed, so no recording can be written; pip install 'rerun-sdk>=0.26,<0.27'.")


class RerunLog:
    """Writes one recording; a context manager. Stamps are those of the images, in nanoseconds, poses map_from_camera
    `(4, 4)`; everything is shown relative to the map's `origin` `(3,)`, since rerun's numbers are of single precision.
    """

    def __init__(self, path: Path | str, origin: np.ndarray, voxel_size: float) -> None:
        """voxel_size: of the map, metres; things are drawn in its proportion. Raises InputError without rerun."""
        require_rerun()
        import rerun

        self._rerun: Any = rerun
        self._path = Path(path)
        self._aside = self._path.with_name(f".{self._path.name}.tmp")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._origin, self._unit = origin, unit_of(voxel_size)
        self._stream = rerun.RecordingStream("ep2ploc")
        self._stream.save(self._aside, default_blueprint=self._blueprint())
        self._stream.log("world", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)

    def __enter__(self: Log) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._stream.disconnect()
        if kind is None:
            os.replace(self._aside, self._path)
        else:
            self._aside.unlink(missing_ok=True)

    def log_map(self, points: MapPoints) -> None:
        """The map, or so much of it as shall be shown; relative to the origin, as maps give their points."""
        share = (points.attributes[:, 5] / (_HIGHEST * self._unit)).clip(0, 1)
        level = (_DARKEST + share * (255 - _DARKEST)).astype(np.uint8)
        colors = cv2.applyColorMap(level[:, None], cv2.COLORMAP_VIRIDIS)[:, 0, ::-1]
        shown = self._rerun.Points3D(points.xyz, colors=colors, radii=self._on_screen(_MAP_DOT))
        self._stream.log("world/map", shown, static=True)

    def log_truth(self, map_from_camera: np.ndarray) -> None:
        """True poses `(N, 4, 4)` in their order."""
        places = [pose[:3, 3] - self._origin for pose in map_from_camera]
        line = self._rerun.LineStrips3D([places], colors=_TRUTH, radii=self._on_screen(_LINE))
        self._stream.log("world/truth", line, static=True)

    def log_image(self, stamp: int, image: np.ndarray, camera: Camera) -> None:
        """An image `(H, W, 3)` uint8 RGB, undistorted here, in the picture and at the camera."""
        self._at(stamp)
        flat, pinhole = camera.undistort(image)
        shown = self._encoded(flat)
        size = [pinhole.width, pinhole.height]
        lens = self._rerun.Pinhole(
            image_from_camera=pinhole.matrix, resolution=size, image_plane_distance=3 * self._unit, color=_ESTIMATE
        )
        self._stream.log("image", shown)
        self._stream.log("world/camera", lens)
        self._stream.log("world/camera", shown)

    def log_overlay(self, stamp: int, overlay: np.ndarray) -> None:
        """The map drawn over the image, `(H, W, 3)` uint8 RGB."""
        self._at(stamp)
        self._stream.log("overlay", self._encoded(overlay))

    def log_pose(
        self,
        stamp: int,
        map_from_camera: np.ndarray,
        covariance: np.ndarray | None = None,
        truth: np.ndarray | None = None,
        text: str = "",
    ) -> None:
        """A pose that was given. covariance `(6, 6)`: of `se3.perturb`. truth: the true pose. text: for the log."""
        self._at(stamp)
        rerun, place = self._rerun, map_from_camera[:3, 3] - self._origin
        self._stream.log("world/camera", rerun.Transform3D(translation=place, mat3x3=map_from_camera[:3, :3]))
        self._stream.log("world/estimates", rerun.Points3D([place], colors=_ESTIMATE, radii=self._on_screen(_DOT)))
        if truth is not None:
            line = [[place, truth[:3, 3] - self._origin]]
            self._stream.log("world/errors", rerun.LineStrips3D(line, colors=_ESTIMATE, radii=self._on_screen(_LINE)))
        if covariance is None:
            self._stream.log("world/uncertainty", rerun.Clear(recursive=False))
        else:
            self._stream.log("world/uncertainty", self._ellipsoid(place, covariance[:3, :3]))
        self._stream.log("log", rerun.TextLog(text or "pose", level=rerun.TextLogLevel.INFO))

    def log_refusal(self, stamp: int, reason: str, truth: np.ndarray | None = None, dropped: bool = False) -> None:
        """An image without a pose, refused or `dropped` before anybody worked on it. truth: where it was taken, if that
        is known."""
        self._at(stamp)
        rerun = self._rerun
        for gone in ("world/camera", "world/uncertainty", "overlay"):
            self._stream.log(gone, rerun.Clear(recursive=False))
        if truth is not None:
            place = truth[:3, 3] - self._origin
            name, colour = ("world/dropped", _DROPPED) if dropped else ("world/refused", _REFUSED)
            self._stream.log(name, rerun.Points3D([place], colors=colour, radii=self._on_screen(_DOT)))
        level = rerun.TextLogLevel.INFO if dropped else rerun.TextLogLevel.WARN
        self._stream.log("log", rerun.TextLog(reason, level=level))

    def _on_screen(self, radius: float) -> Any:
        return self._rerun.Radius.ui_points(radius)

    def _at(self, stamp: int) -> None:
        self._stream.set_time(TIMELINE, timestamp=np.datetime64(stamp, "ns"))

    def _encoded(self, image: np.ndarray) -> Any:
        _, content = cv2.imencode(
            ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        )
        return self._rerun.EncodedImage(contents=content.tobytes(), media_type="image/jpeg")

    def _ellipsoid(self, place: np.ndarray, covariance: np.ndarray) -> Any:
        variances, axes = np.linalg.eigh(covariance)
        if np.linalg.det(axes) < 0:
            axes = -axes  # a rotation, no mirror
        return self._rerun.Ellipsoids3D(
            centers=[place],
            half_sizes=[np.sqrt(variances.clip(0) * chi2.ppf(0.9, 3))],
            quaternions=[Rotation.from_matrix(axes).as_quat()],
            colors=_ESTIMATE,
        )

    def _blueprint(self) -> Any:
        from rerun import blueprint

        rerun = self._rerun
        so_far = blueprint.VisibleTimeRanges(
            rerun.VisibleTimeRange(
                TIMELINE,
                start=rerun.TimeRangeBoundary.infinite(),
                end=rerun.TimeRangeBoundary.cursor_relative(seconds=0),
            )
        )
        gathered: Any = {f"world/{name}": so_far for name in ("estimates", "errors", "refused", "dropped")}
        return blueprint.Blueprint(
            blueprint.Horizontal(
                blueprint.Spatial3DView(origin="world", name="map", overrides=gathered),
                blueprint.Vertical(
                    blueprint.Spatial2DView(origin="overlay", name="map over the image"),
                    blueprint.Spatial2DView(origin="image", name="image"),
                    blueprint.TextLogView(origin="log", name="poses and refusals"),
                ),
                column_shares=[3, 2],
            ),
            collapse_panels=True,
        )
