"""What a camera at a pose sees of a map: where every classical method begins."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.sampling import spread_over_image
from ep2ploc_core.map.unit import MapInUnits
from ep2ploc_core.se3 import moved
from ep2ploc_core.visibility import VisibilitySettings, remove_invisible

RADIUS = 60.0  # around the camera, in units of `map.unit`


@dataclass(frozen=True)
class VisiblePoints:
    """The N points that a pinhole camera at `map_from_camera` `(4, 4)` sees, in units of `map.unit`: xyz `(N, 3)`
    float32 relative to the camera's place, map axes; attributes `(N, 6)` (`map.point_map`); pixels `(N, 2)`, outside
    the image too where that was widened, on each side by `margin` times its size; depths `(N,)`."""

    map_from_camera: np.ndarray
    xyz: np.ndarray
    attributes: np.ndarray
    pixels: np.ndarray
    depths: np.ndarray
    margin: float

    def __len__(self) -> int:
        return len(self.xyz)

    def select(self, index: np.ndarray) -> VisiblePoints:
        """The points of indices `(M,)`."""
        parts = {name: getattr(self, name)[index] for name in ("xyz", "attributes", "pixels", "depths")}
        return replace(self, **parts)


def visible_points(
    units: MapInUnits, map_from_camera: np.ndarray, camera: Camera, margin: float = 0.0
) -> VisiblePoints:
    """By the project's own removal of invisible points. map_from_camera `(4, 4)` in units of `map.unit`; margin: see
    `VisiblePoints`."""
    centre = map_from_camera[:3, 3]
    points = units.query(centre, RADIUS)
    xyz = torch.from_numpy(points.xyz + (units.origin - centre).astype(np.float32))
    camera_from_map = torch.from_numpy(np.linalg.inv(moved(map_from_camera, -centre))).float()
    size = (camera.width, camera.height)
    settings = VisibilitySettings(margin=margin)
    seen = remove_invisible(xyz, camera_from_map, camera.intrinsics_tensor(), size, units.voxel_size, settings)
    index = seen.index.numpy()
    return VisiblePoints(
        map_from_camera, xyz.numpy()[index], points.attributes[index], seen.pixels.numpy(), seen.depths.numpy(),
        margin,
    )  # fmt: skip


def spread_points(pixels: np.ndarray, most: int) -> np.ndarray:
    """Indices of `most` points, or of all if there are fewer, whose pixels `(N, 2)` are spread over the image."""
    order = np.abs(pixels - np.round(pixels)).sum(1)  # any fixed order would do
    return spread_over_image(torch.from_numpy(pixels), torch.from_numpy(order), most).numpy()
