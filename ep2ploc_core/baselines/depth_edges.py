"""Alignment of the map's depth edges with the image's edges: where a surface ends before what is behind it, images
mostly show an edge of the same direction (Levinson, Thrun: Automatic online calibration of cameras and lasers, RSS
2013; direction by direction as in Liu et al.: Fast directional chamfer matching, CVPR 2010)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from ep2ploc_core.baselines.alignment import NO_FIT, AlignmentPlan, Problem, coarse_to_fine
from ep2ploc_core.camera import Camera
from ep2ploc_core.grey_image import values_at
from ep2ploc_core.map.visible_points import VisiblePoints, spread_points
from ep2ploc_core.visibility import VisibilitySettings, surface_depth

SMOOTH = 1.0  # pixels: the map's inverse depth, before its gradient is taken
BESIDE = 0.6  # spacings of the map: how far from a point at an edge what is behind comes into view

EDGE_PLAN = AlignmentPlan(coarse_to_fine(generations=50), least_contrast=8.0)


@dataclass(frozen=True)
class DepthEdges:
    """The measure. A point is at an edge where the inverse depth falls by `step` of itself more to one side than it
    rises to the other: on a plane, however slanted, it goes on as it is. Image edges are those whose gradient is among
    the strongest `edge_share`, sorted into `directions` up to `width` radians off; they are felt about `reach` pixels
    away, and what `around` pixels around have on average is subtracted, or else points would go where the image has
    most edges."""

    directions: int = 8
    width: float = 0.3
    step: float = 0.15
    edge_share: float = 0.1
    reach: float = 2.0
    around: float = 6.0
    least_points: int = 30

    def problem(
        self, grey: np.ndarray, camera: Camera, seen: VisiblePoints, spacing: float, most: int
    ) -> Problem | str:
        """Of the points at edges."""
        angles = edge_angles(seen, camera, spacing, self.step)
        at_edge = np.flatnonzero(np.isfinite(angles))
        if len(at_edge) < self.least_points:
            return f"only {len(at_edge)} map points seen from there lie at an edge"
        at_edge = at_edge[spread_points(seen.pixels[at_edge], most)]
        fields = self.edge_fields(grey)
        height = fields.shape[1]
        tall = np.ascontiguousarray(fields.reshape(-1, fields.shape[2]))  # one below the other: looked up at once
        below = np.zeros((len(at_edge), 2), np.float32)
        # An edge has no side in the image, where it is not known what is behind: half of the circle is enough.
        below[:, 1] = np.round(angles[at_edge] / np.pi * self.directions) % self.directions * height

        def cost(pixels: np.ndarray, inside: np.ndarray) -> float:
            if not inside.any():
                return NO_FIT
            return -float(values_at(tall, (pixels + below)[inside]).sum()) / len(at_edge)

        return Problem(seen.xyz[at_edge], cost)

    def edge_fields(self, grey: np.ndarray) -> np.ndarray:
        """How near an edge across each direction is, `(D, H, W)` float32, less what its surroundings have."""
        across, down = (cv2.Sobel(grey, cv2.CV_16S, *order) for order in ((1, 0), (0, 1)))
        strength = np.hypot(across.astype(np.float32), down.astype(np.float32))
        strong = float(np.quantile(strength, 1 - self.edge_share))
        edges = cv2.Canny(across, down, strong / 2, max(strong, 1.0), L2gradient=True) > 0
        fields = []
        for angle in np.arange(self.directions) * (np.pi / self.directions):
            along = np.abs(across * np.cos(angle) + down * np.sin(angle))
            chosen = edges & (along > np.cos(self.width) * strength)
            distance = cv2.distanceTransform((~chosen).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
            near = np.exp(-0.5 * (distance / self.reach) ** 2)
            fields.append(near - cv2.GaussianBlur(near, (0, 0), self.around))
        return np.stack(fields)


def edge_angles(seen: VisiblePoints, camera: Camera, spacing: float, step: float) -> np.ndarray:
    """The angle in the image, radians, of the direction across the edge that each of the points seen lies at, `(N,)`;
    NaN where at none."""
    settings = VisibilitySettings(margin=seen.margin)
    camera_from_axes = torch.eye(4)  # the points are relative to the camera's place
    camera_from_axes[:3, :3] = torch.from_numpy(seen.map_from_camera[:3, :3].T.copy())
    size = (camera.width, camera.height)
    surface = surface_depth(
        torch.from_numpy(seen.xyz), camera_from_axes, camera.intrinsics_tensor(), size, spacing, settings
    )[0].numpy()
    places = seen.pixels + [round(seen.margin * length) for length in size]
    inverse = (1 / surface).astype(np.float32)  # nothing where there is no surface
    own = 1 / seen.depths
    away = (BESIDE * spacing * camera.fx * own).clip(1, 16)[:, None]
    at_edge = np.zeros(len(seen), bool)
    for direction in ((1, 0), (0.7, 0.7), (0, 1), (-0.7, 0.7)):
        ahead, behind = (_look_up(inverse, places + side * away * np.array(direction)) / own for side in (1, -1))
        known = np.minimum(ahead, behind) > 0
        at_edge |= known & (np.minimum(ahead, behind) < 1 - step) & (ahead + behind < 2 - step)
    smooth = cv2.GaussianBlur(inverse, (0, 0), SMOOTH)
    across, down = (_look_up(cv2.Sobel(smooth, cv2.CV_32F, *order), places) for order in ((1, 0), (0, 1)))
    return np.where(at_edge, np.arctan2(down, across), np.nan)


def _look_up(field: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The values `(N,)` of a field `(H, W)` at the pixels `(N, 2)` nearest to places; 0 outside."""
    column, row = np.round(places).astype(np.int64).T
    inside = (column >= 0) & (row >= 0) & (column < field.shape[1]) & (row < field.shape[0])
    values = np.zeros(len(places), np.float32)
    values[inside] = field[row[inside], column[inside]]
    return values
