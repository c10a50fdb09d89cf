"""A recording of one refinement by feature alignment for the rerun viewer, as PixLoc's viewer shows it: on the timeline
`step` the pose that the search found is 0, and each step of the alignment is one further; where it was sharpened by the
finest features, a second start and its steps come after.

| entity                  | what                                                                                   |
|-------------------------|----------------------------------------------------------------------------------------|
| `world/map`             | the map around the camera, by its height over the ground                               |
| `world/camera`          | the camera with its image                                                              |
| `world/estimates`       | where it has been so far, joined by `world/path`                                       |
| `world/points`          | the points that are aligned                                                            |
| `image`, `image/points` | the image, undistorted, and the points where the pose puts them                        |
| `confidence/N`          | where the image's features of level N are to be relied on, black 0, white 1            |
| `log`                   | a line per step: level, way, how unlike points and image are                           |
| `log/outcome`           | what came of each of the two: taken, or given up and why                               |

Points are the larger the more they weigh, and coloured from blue, as the point expects it, over green to red, as unlike
as chance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ep2ploc_core import se3
from ep2ploc_core.camera import Camera
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_core.map.unit import unit_of
from ep2ploc_core.pose.alignment_trace import AlignmentTrace
from ep2ploc_core.refinement import Refinement
from ep2ploc_core.visualization.rerun_log import RerunLog

TIMELINE = "step"
_AROUND = 40.0  # units of `map.unit` of map to each side
_CHANCE = np.sqrt(2)  # length of the difference of two unit vectors that have nothing to do with each other
_LEAST, _MOST = 1.5, 4.5  # radii on the screen, of points that weigh 0 and 1
_DARKEST, _BRIGHTEST = 20, 240  # of 255: the colour map's ends are too dark to be seen


def write_alignment(
    path: Path, refinements: list[Refinement], image: np.ndarray, camera: Camera, point_map: PointMap
) -> None:
    """Writes the recording of refinements that were traced, one after the other, of an image `(H, W, 3)` uint8 RGB; the
    first is of all levels. Raises InputError without rerun."""
    first = refinements[0]
    assert first.trace is not None
    with AlignmentLog(path, point_map.origin, point_map.voxel_size, len(first.trace.strides)) as log:
        log.log_map(point_map.query(first.poses[0, :3, 3], _AROUND * unit_of(point_map.voxel_size)))
        log.log_confidence(first.trace)
        log.log_image(0, image, camera)
        for refinement in refinements:
            log.log_refinement(refinement)


class AlignmentLog(RerunLog):
    """Writes one recording; a context manager. Where RerunLog takes stamps this takes numbers of steps."""

    def __init__(self, path: Path | str, origin: np.ndarray, voxel_size: float, levels: int) -> None:
        """As RerunLog; levels: of the pyramid of features."""
        self._levels = levels
        self._way: list[np.ndarray] = []  # of the camera so far
        super().__init__(path, origin, voxel_size)

    def log_confidence(self, trace: AlignmentTrace) -> None:
        """The maps of confidence of all levels; they are of the image, so no step changes them."""
        for level, confidence in enumerate(trace.confidence):
            shown = self._rerun.Image((confidence * 255).round().astype(np.uint8), color_model="L")
            self._stream.log(f"confidence/{level}", shown, static=True)

    def log_refinement(self, refinement: Refinement) -> None:
        """The start and the steps of a refinement, behind all that was logged before, and what came of it."""
        for step in range(len(refinement.poses)):
            self._log_step(refinement, step)
        level = self._rerun.TextLogLevel.WARN if refinement.given_up else self._rerun.TextLogLevel.INFO
        self._stream.log("log/outcome", self._rerun.TextLog(str(refinement), level=level))

    def _log_step(self, refinement: Refinement, step: int) -> None:
        """The pose that a step led to, and what the points met in the image from there."""
        rerun, trace, pose = self._rerun, refinement.trace, refinement.poses[step]
        assert trace is not None
        self.log_pose(len(self._way), pose, text=_in_words(refinement.of, step, refinement.poses, trace))
        self._way.append(pose[:3, 3] - self._origin)
        self._stream.log("world/path", rerun.LineStrips3D([self._way], radii=self._on_screen(1.0)))
        inside = trace.inside[step]
        colors = _unlike_colors(trace.unlike[step][inside])
        radii = [self._on_screen(_LEAST + (_MOST - _LEAST) * weight) for weight in trace.weight[step][inside]]
        places = trace.points_map[inside] - self._origin
        self._stream.log("world/points", rerun.Points3D(places, colors=colors, radii=radii))
        # rerun counts pixels from the image's corner.
        self._stream.log("image/points", rerun.Points2D(trace.pixels[step][inside] + 0.5, colors=colors, radii=radii))

    def _at(self, stamp: int) -> None:
        self._stream.set_time(TIMELINE, sequence=stamp)

    def _blueprint(self) -> Any:
        from rerun import blueprint

        rerun = self._rerun
        so_far = blueprint.VisibleTimeRanges(
            rerun.VisibleTimeRange(
                TIMELINE,
                start=rerun.TimeRangeBoundary.infinite(),
                end=rerun.TimeRangeBoundary.cursor_relative(seq=0),
            )
        )
        confidence = [
            blueprint.Spatial2DView(origin=f"confidence/{level}", name=f"confidence, level {level + 1}")
            for level in range(self._levels)
        ]
        return blueprint.Blueprint(
            blueprint.Horizontal(
                blueprint.Spatial3DView(origin="world", name="map", overrides={"world/estimates": so_far}),
                blueprint.Vertical(
                    blueprint.Spatial2DView(origin="image", name="points in the image: blue alike, red unlike"),
                    blueprint.Horizontal(*confidence),
                    blueprint.TextLogView(origin="log", name="steps"),
                ),
                column_shares=[2, 3],
            ),
            blueprint.TimePanel(timeline=TIMELINE, expanded=True),
            collapse_panels=True,
        )


def _in_words(of: str, step: int, poses: np.ndarray, trace: AlignmentTrace) -> str:
    """The line of the log for a step."""
    level = trace.level_of[step]
    inside, weight = trace.inside[step], trace.weight[step]
    unlike = (weight * trace.unlike[step]).sum() / max(weight.sum(), 1e-6)
    name = "sharpened" if of == "alignment" else f"level {level + 1} of {len(trace.strides)}"
    where = f"{name}, {trace.strides[level]} pixels a cell"
    said = f"{inside.sum()} of {len(inside)} points in the image, unlike by {unlike:.3f}"
    if step == 0:
        return f"start; {where}: {said}"
    if np.array_equal(poses[step], poses[step - 1]):
        return f"step {step}; {where}: led uphill, taken back; {said}"
    metres, radians = se3.pose_error(poses[step], poses[step - 1])
    return f"step {step}; {where}: moved {metres:.3f} m, {np.degrees(radians):.2f} deg; {said}"


def _unlike_colors(unlike: np.ndarray) -> np.ndarray:
    """Colours `(N, 3)` uint8 RGB of how unlike `(N,)` points and image are."""
    share = _DARKEST + (unlike / _CHANCE).clip(0, 1) * (_BRIGHTEST - _DARKEST)
    colors: np.ndarray = cv2.applyColorMap(share.astype(np.uint8)[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1]
    return colors
