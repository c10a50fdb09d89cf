"""What maps are made from: one iterator of posed scans for each kind of recording."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ep2ploc_core.datasets.kitti import Frame, KittiDrive
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.posed_scan import PosedScan

# Frames around a held-out query whose scans and whose images stay out of the map and of the adaptation to it.
SCAN_MARGIN = 3
IMAGE_MARGIN = 2


class KittiSource:
    """The posed scans and images of a KITTI raw drive, without those of held-out frames and their neighbours."""

    has_poses = True

    def __init__(self, path: Path, poses: Path | None = None, hold_out: list[int] | None = None) -> None:
        self.drive = KittiDrive(path, poses)
        self.poses = poses
        self.hold_out = sorted(hold_out or [])
        posed = [frame for frame in self.drive.frames if frame.map_from_lidar is not None]
        self.scan_frames = [frame for frame in posed if frame.scan_path and self._far_from_queries(frame, SCAN_MARGIN)]
        self.images = [frame for frame in posed if frame.image_path and self._far_from_queries(frame, IMAGE_MARGIN)]
        if not self.scan_frames:
            raise InputError(
                f"{path} has no scan with a pose that is not held out; give poses with --poses, or hold out less."
            )

    def __len__(self) -> int:
        return len(self.scan_frames)

    def scans(self, first: int = 0) -> Iterator[PosedScan]:
        """The posed scans from number `first` on."""
        for frame in self.scan_frames[first:]:
            assert frame.map_from_lidar is not None
            yield PosedScan(frame.index, self.drive.read_scan(frame), frame.map_from_lidar, frame.stamp)

    def describe(self) -> dict[str, Any]:
        """What the map remembers of its source, enough to open it again."""
        return {
            "kind": "kitti_raw",
            "path": str(self.drive.path.resolve()),
            "poses": None if self.poses is None else str(Path(self.poses).resolve()),
            "hold_out": self.hold_out,
        }

    @classmethod
    def reopen(cls, description: dict[str, Any]) -> KittiSource:
        """The source that `describe` told of; raises InputError when it is gone or of another kind."""
        if description.get("kind") != "kitti_raw":
            raise InputError(
                "This map was not built from a KITTI raw drive, so it has no mapping images to learn from."
            )
        poses = description.get("poses")
        return cls(Path(description["path"]), None if poses is None else Path(poses), description.get("hold_out"))

    def _far_from_queries(self, frame: Frame, margin: int) -> bool:
        return all(abs(frame.index - query) > margin for query in self.hold_out)
