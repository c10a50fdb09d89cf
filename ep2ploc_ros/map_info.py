"""The `map_info` message: what the map_server tells the localizer about its map, as YAML in a String."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import yaml
from std_msgs.msg import String

from ep2ploc_core.errors import InputError
from ep2ploc_core.map.point_map import SITE_CHECKPOINT, PointMap


@dataclass(frozen=True)
class MapDescription:
    """path of the map directory on the server; checkpoint: fingerprint of the network that encoded it, empty when none
    did; checkpoint_file: the map's own network, empty when it has none; origin `(3,)` and voxel_size in metres; places:
    how many views there are to search, without which a first guess is needed; landmarks: how many there are of them,
    which come with each submap."""

    path: str
    checkpoint: str
    checkpoint_file: str
    origin: list[float]
    voxel_size: float
    num_points: int
    places: int = 0
    landmarks: int = 0

    @classmethod
    def of(cls, point_map: PointMap, places: int = 0, landmarks: int = 0) -> MapDescription:
        """What there is to say about an open map with so many places and landmarks."""
        file = point_map.path / SITE_CHECKPOINT
        return cls(
            path=str(point_map.path.resolve()),
            checkpoint=point_map.checkpoint,
            checkpoint_file=str(file.resolve()) if file.exists() else "",
            origin=[float(value) for value in point_map.origin],
            voxel_size=float(point_map.info.voxel_size),
            num_points=len(point_map),
            places=places,
            landmarks=landmarks,
        )

    def to_message(self) -> String:
        """The message that `from_message` reads."""
        return String(data=yaml.safe_dump(asdict(self), sort_keys=False))

    @classmethod
    def from_message(cls, message: String) -> MapDescription:
        """Raises InputError when it is not the message of a map_server."""
        try:
            described = cls(**yaml.safe_load(message.data))
            texts = (described.path, described.checkpoint, described.checkpoint_file)
            counts = (described.num_points, described.places, described.landmarks)
            if not all(isinstance(text, str) for text in texts) or not all(type(count) is int for count in counts):
                raise ValueError("a field is of another type")
            if not isinstance(described.voxel_size, float) or not 0 < described.voxel_size < math.inf:
                raise ValueError("a voxel has a size")
            if min(counts) < 0:
                raise ValueError("nothing is fewer than none")
            origin = described.origin
            if not isinstance(origin, list) or len(origin) != 3 or not all(map(_is_coordinate, origin)):
                raise ValueError("a place has three coordinates")
            return described
        except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
            raise InputError("The map_info message is not that of a map_server of this version.") from error


def _is_coordinate(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
