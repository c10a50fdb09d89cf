"""Which points of a map a camera truly sees, known from a street that can be ray-cast, to judge IPR by.

The map comes from LiDAR scans of the street, as any map does; the camera stands beside where they were taken. A point
is visible when no surface of the street lies in front of it by more than TOLERANCE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ep2ploc_core import se3
from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.synthetic import (
    AHEAD,
    BACKWARD_REACH,
    BEHIND,
    CAMERA,
    CAMERA_FROM_LIDAR,
    STEP,
    drive_along,
)
from ep2ploc_core.datasets.synthetic_sensors import Lidar, SensorRig
from ep2ploc_core.datasets.synthetic_street import random_street
from ep2ploc_core.map.build import accumulate
from ep2ploc_core.map.posed_scan import PosedScan
from ep2ploc_core.visibility import ProjectedPoints, project_inside, remove_invisible

TOLERANCE_METRES, TOLERANCE_SHARE = 0.3, 0.03
HOLD_OUT = 3  # scans on each side of a camera that are left out of the map
TRUE_SIZE = (2484, 750)  # of the ray-cast depth: its pixels are smaller than those of the images judged
BESIDE = ((0.0, 0.0), (0.6, 6.0))  # where cameras stand beside the drive: metres to the right, degrees of yaw


@dataclass(frozen=True)
class JudgedView:
    """A cloud `(N, 3)` with its spacing in metres, seen by a camera of `size` pixels: `inside` are the points in front
    of it, `truth` `(M,)` which of them are truly visible."""

    xyz: Tensor
    spacing: float
    camera_from_map: Tensor
    intrinsics: Tensor
    size: tuple[int, int]
    inside: ProjectedPoints
    truth: Tensor


@dataclass(frozen=True)
class Score:
    """Of the points that a rule keeps, the share that is visible, and of the visible ones the share that it keeps."""

    precision: float
    recall: float

    @property
    def f(self) -> float:
        """The harmonic mean of both."""
        return 2 * self.precision * self.recall / max(self.precision + self.recall, 1e-9)


Rule = Callable[[JudgedView], Tensor]  # which of the points inside it keeps, `(M,)` bool


def judged_views(
    seed: int, spacings: Sequence[float], sizes: Sequence[tuple[int, int]], frames: int = 30
) -> list[JudgedView]:
    """Views of the street of a seed: of maps with these spacings in metres, by cameras of these sizes in pixels."""
    scene = random_street(-BEHIND, frames * STEP + AHEAD, seed, "cpu")
    rig = SensorRig(scene, seed)
    trajectory = drive_along(scene.road, frames, seed)
    place = frames // 3
    scans = []
    for frame, map_from_lidar in enumerate(trajectory):
        if abs(frame - place) > HOLD_OUT:
            generator = torch.Generator().manual_seed(frame)
            points = rig.scan(Lidar(), torch.from_numpy(map_from_lidar).float(), generator).numpy()
            scans.append(PosedScan(frame, points[points[:, 0] > BACKWARD_REACH], map_from_lidar))
    clouds = {spacing: torch.from_numpy(accumulate(scans, spacing).xyz) for spacing in spacings}
    views = []
    for metres, degrees in BESIDE:
        beside = se3.exp(torch.tensor([metres, 0, 0, 0, np.radians(degrees), 0], dtype=torch.float64)).numpy()
        pose = trajectory[place] @ np.linalg.inv(CAMERA_FROM_LIDAR) @ beside
        depth = rig.depth(CAMERA.resize(*TRUE_SIZE), torch.from_numpy(pose).float())
        for size in sizes:
            camera = CAMERA.resize(*size)
            views += [_judge(cloud, spacing, pose, camera, depth) for spacing, cloud in clouds.items()]
    return views


def _judge(xyz: Tensor, spacing: float, pose: np.ndarray, camera: Camera, depth: Tensor) -> JudgedView:
    camera_from_map = torch.from_numpy(np.linalg.inv(pose)).float()
    size, intrinsics = (camera.width, camera.height), camera.intrinsics_tensor()
    inside = project_inside(xyz, camera_from_map, intrinsics, size)
    true_size = torch.tensor(TRUE_SIZE)
    column, row = ((inside.pixels + 0.5) * true_size / torch.tensor(size)).long().clamp_(min=0).unbind(1)
    surface = depth[row.clamp_(max=TRUE_SIZE[1] - 1), column.clamp_(max=TRUE_SIZE[0] - 1)]
    truth = inside.depths <= surface + (TOLERANCE_SHARE * inside.depths).clamp(min=TOLERANCE_METRES)
    return JudgedView(xyz, spacing, camera_from_map, intrinsics, size, inside, truth)


def our_rule(view: JudgedView) -> Tensor:
    """IPR as it is here."""
    kept = remove_invisible(view.xyz, view.camera_from_map, view.intrinsics, view.size, view.spacing)
    return torch.isin(view.inside.index, kept.index)


def papers_rule(view: JudgedView) -> Tensor:
    """IPR as EP2P-Loc has it: a z-buffer, one window of 9 pixels at a width of 1080, no tolerance."""
    return papers_visible(view.inside, view.size)


def papers_visible(points: ProjectedPoints, size: tuple[int, int]) -> Tensor:
    """Which of the points inside an image of this width and height the paper's rule keeps, `(M,)` bool."""
    width, height = size
    column, row = points.pixels.round().long().unbind(1)
    cell = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    nearest = points.depths.new_full((width * height,), torch.inf).scatter_reduce_(0, cell, points.depths, "amin")
    window = max(3, 2 * round((9 * width / 1080 - 1) / 2) + 1)
    closed = -max_pool2d(-nearest.view(1, height, width), window, stride=1, padding=window // 2)
    opened = max_pool2d(closed, window, stride=1, padding=window // 2)
    return points.depths <= opened.view(-1)[cell]


def no_removal(view: JudgedView) -> Tensor:
    """Every point before the camera."""
    return torch.ones_like(view.truth)


def score(rule: Rule, views: Iterable[JudgedView]) -> Score:
    """Precision and recall of a rule over all points of all views."""
    right = kept = visible = 0
    for view in views:
        keeps = rule(view)
        right += int((keeps & view.truth).sum())
        kept += int(keeps.sum())
        visible += int(view.truth.sum())
    return Score(right / max(kept, 1), right / max(visible, 1))
