"""An area of Stanford 2D-3D-S: the points of S3DIS as posed scans, and the perspective images taken in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from ep2ploc_core.datasets.posed_image import PosedImage
from ep2ploc_core.datasets.stanford_cameras import FRAMES_PER_LOCATION, StanfordImage, find_images
from ep2ploc_core.datasets.stanford_points import count_pieces, find_rooms, read_piece
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.posed_scan import PosedScan

# Red, green and blue as the eye weighs them: the intensity of a point is its grey value.
_GREY = np.array([0.299, 0.587, 0.114]) / 255


class StanfordSource:
    """The points of an area's rooms, piece by piece, and its images without those of held-out scan locations.

    path: the directory of the area's rooms in S3DIS. cameras: directories with `rgb` and `pose`, such as
    `area_1/data`. The map frame is that of S3DIS, z up. Points are taken to be seen from the nearest location in their
    room whose images are not held out.
    hold_out: frame numbers of StanfordImage; all images of their locations stay out. The points cannot: no point tells
    from which location it was scanned.
    turns: where the rooms were turned on their places, in the "aligned version" of S3DIS: for each room the turn that
    takes it back, degrees about the vertical through x, y; rooms that are not named are left out.
    """

    has_poses = True

    def __init__(
        self,
        path: Path | str,
        cameras: list[Path] | list[str],
        hold_out: list[int] | None = None,
        turns: dict[str, list[float]] | None = None,
    ) -> None:
        self.path = Path(path)
        self.cameras = [Path(directory) for directory in cameras]
        self.hold_out = sorted(hold_out or [])
        self.turns = turns
        self.rooms = {
            room: file for room, file in find_rooms(self.path).items() if turns is None or room in turns
        }  # fmt: skip
        self._pieces = [(room, number) for room, file in self.rooms.items() for number in range(count_pieces(file))]
        self.every_image = find_images(self.cameras)
        held_out = {frame // FRAMES_PER_LOCATION for frame in self.hold_out}
        self.mapping_images = [
            image for image in self.every_image if image.frame // FRAMES_PER_LOCATION not in held_out
        ]
        if not self._pieces or not self.mapping_images:
            raise InputError(f"{path} has no room, or no image, that is not left out or held out; hold out less.")
        self.images = [posed_image(image) for image in self.mapping_images]
        self._eyes: dict[str, cKDTree] = {}

    def __len__(self) -> int:
        return len(self._pieces)

    def scans(self, first: int = 0) -> Iterator[PosedScan]:
        """The pieces from number `first` on."""
        for frame, (room, number) in enumerate(self._pieces[first:], first):
            rows = read_piece(self.rooms[room], number)
            points = np.empty((len(rows), 4), np.float32)
            points[:, :3] = xyz = turned(rows[:, :3], self.turns[room] if self.turns else None)
            points[:, 3] = (rows[:, 3:] @ _GREY).clip(0, 1)
            eyes = self._eyes_of(room)
            viewpoints = np.asarray(eyes.data)[eyes.query(xyz)[1]] if len(xyz) else np.zeros((0, 3))
            yield PosedScan(frame, points, np.eye(4), viewpoints=viewpoints.astype(np.float32))

    def describe(self) -> dict[str, Any]:
        """What the map remembers of its source, enough to open it again."""
        return {
            "kind": "stanford_area",
            "path": str(self.path.resolve()),
            "cameras": [str(directory.resolve()) for directory in self.cameras],
            "hold_out": self.hold_out,
            "turns": self.turns,
        }

    def _eyes_of(self, room: str) -> cKDTree:
        """The places from which a room was seen, those of all rooms where it has none."""
        if room not in self._eyes:
            inside = [image for image in self.mapping_images if image.room == room] or self.mapping_images
            self._eyes[room] = cKDTree(np.unique([image.map_from_camera[:3, 3] for image in inside], axis=0))
        return self._eyes[room]


def posed_image(image: StanfordImage) -> PosedImage:
    """The image as every recording brings them; its time is its number."""
    return PosedImage(image.frame, float(image.frame), image.path, image.camera, image.map_from_camera)


def turned(xyz: np.ndarray, turn: list[float] | None) -> np.ndarray:
    """Points `(N, 3)` turned about a vertical line; turn: degrees, x, y, or None for none."""
    if turn is None:
        return xyz
    angle, middle = np.radians(turn[0]), np.array([turn[1], turn[2]])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    out = xyz.copy()
    out[:, :2] = (xyz[:, :2] - middle) @ rotation.T + middle
    return out
