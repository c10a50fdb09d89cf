"""What maps are made from: one source of posed scans for each kind of recording, and which kind a path is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ep2ploc_core.datasets.cloud_source import CloudFileSource
from ep2ploc_core.datasets.hold_out import IMAGE_MARGIN, SCAN_MARGIN, far_from
from ep2ploc_core.datasets.kitti import Frame, KittiDrive
from ep2ploc_core.datasets.kitti_odometry import KittiOdometrySource
from ep2ploc_core.datasets.posed_image import PosedImage
from ep2ploc_core.datasets.rgbd import RgbdSource
from ep2ploc_core.datasets.stanford2d3ds import StanfordSource
from ep2ploc_core.datasets.trajectory import write_trajectory
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.build_directory import fingerprint
from ep2ploc_core.map.posed_scan import PosedScan, ScanSource

KINDS = (
    "a KITTI raw drive (ends in _sync), a KITTI odometry sequence (sequences/00), a .pcd or .ply file, an RGB-D "
    "directory (7-Scenes layout), or a ROS 2 bag"
)
_KIND_NAMES = {
    "kitti_raw": "a KITTI raw drive",
    "kitti_odometry": "a KITTI odometry sequence",
    "cloud_file": "a point cloud file",
    "rgbd": "an RGB-D recording",
    "ros2_bag": "a ROS 2 bag",
}


class KittiSource:
    """The scans and images of a KITTI raw drive, without those of held-out frames and their neighbours.

    Poses are those of KittiDrive; frames without one are left out. Where the drive brings no poses at all, `has_poses`
    is False, every map_from_lidar the identity, and there are no images.
    """

    def __init__(self, path: Path | str, poses: Path | str | None = None, hold_out: list[int] | None = None) -> None:
        self.poses = None if poses is None else Path(poses)
        self.drive = KittiDrive(path, self.poses)
        self.hold_out = sorted(hold_out or [])
        posed = [frame for frame in self.drive.frames if frame.map_from_lidar is not None]
        self.has_poses = bool(posed)
        if self.poses is not None and not posed:
            raise InputError(
                f"The poses {self.poses} belong to none of the frames of {path}; row k is that of frame k."
            )
        self.scan_frames = [
            frame for frame in posed or self.drive.frames if frame.scan_path and self._kept(frame, SCAN_MARGIN)
        ]
        self.images = [
            PosedImage(frame.index, frame.stamp, frame.image_path, self.drive.camera, self.drive.map_from_camera(frame))
            for frame in posed
            if frame.image_path and self._kept(frame, IMAGE_MARGIN)
        ]
        if not self.scan_frames:
            raise InputError(
                f"{path} has no scan with a pose that is not held out; give poses with --poses, or hold out less."
            )

    def __len__(self) -> int:
        return len(self.scan_frames)

    def scans(self, first: int = 0) -> Iterator[PosedScan]:
        """The scans from number `first` on."""
        for frame in self.scan_frames[first:]:
            map_from_lidar = np.eye(4) if frame.map_from_lidar is None else frame.map_from_lidar
            yield PosedScan(frame.index, self.drive.read_scan(frame), map_from_lidar, frame.stamp)

    def describe(self) -> dict[str, Any]:
        """What the map remembers of its source, enough to open it again."""
        return {
            "kind": "kitti_raw",
            "path": str(self.drive.path.resolve()),
            "poses": None if self.poses is None else str(self.poses.resolve()),
            "hold_out": self.hold_out,
        }

    def _kept(self, frame: Frame, margin: int) -> bool:
        return far_from(self.hold_out, frame.index, margin)


def open_source(
    path: Path | str,
    poses: Path | str | None = None,
    camera: Path | str | None = None,
    hold_out: list[int] | None = None,
    points_topic: str = "",
    pose_topic: str = "",
    colour_camera: Path | str | None = None,
    image_topic: str = "",
    lidar_from_camera: list[float] | None = None,
) -> ScanSource:
    """The recording at `path`, whichever kind it is of.

    poses: a file of rows of 12 numbers or TUM rows, for all kinds but RGB-D. camera: calibration file of an RGB-D
    recording's depth camera, or of a bag's camera. colour_camera: of an RGB-D recording. hold_out: frame numbers that
    stay out with their neighbours, for the kinds with images. points_topic, pose_topic, image_topic: which to take of a
    bag. lidar_from_camera: x y z qx qy qz qw, for a bag. Raises InputError when the path is of no kind, what lies there
    is broken, or an option does not go with its kind.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give {KINDS}.")
    kind = _kind(path)
    misfits = {
        "--poses": poses is not None and kind == "rgbd",
        "--camera": camera is not None and kind not in ("rgbd", "ros2_bag"),
        "--colour-camera": colour_camera is not None and kind != "rgbd",
        "--points-topic": bool(points_topic) and kind != "ros2_bag",
        "--pose-topic": bool(pose_topic) and kind != "ros2_bag",
        "--image-topic": bool(image_topic) and kind != "ros2_bag",
        "--lidar-from-camera": lidar_from_camera is not None and kind != "ros2_bag",
        "--hold-out": bool(hold_out) and kind == "cloud_file",
    }
    for option, misfit in misfits.items():
        if misfit:
            raise InputError(f"{path} is {_KIND_NAMES[kind]}, which takes no {option}; leave it out.")
    return reopen_source({
        "kind": kind, "path": path, "poses": poses, "camera": camera, "colour_camera": colour_camera,
        "hold_out": hold_out, "points_topic": points_topic, "pose_topic": pose_topic,
        "image_topic": image_topic, "lidar_from_camera": lidar_from_camera,
    })  # fmt: skip


def reopen_source(description: dict[str, Any]) -> ScanSource:
    """The source that `describe` told of; raises InputError when it is gone, or of a kind that is not known."""
    kind, path, poses = description.get("kind"), Path(str(description.get("path"))), description.get("poses")
    hold_out = description.get("hold_out")
    if kind == "kitti_raw":
        return KittiSource(path, poses, hold_out)
    if kind == "kitti_odometry":
        return KittiOdometrySource(path, poses, hold_out)
    if kind == "cloud_file":
        return CloudFileSource(path, poses)
    if kind == "rgbd":
        cameras = description.get("camera"), description.get("colour_camera")
        return RgbdSource(path, cameras[0], hold_out, cameras[1], description.get("sequences"))
    if kind == "stanford_area":
        return StanfordSource(path, description.get("cameras", []), hold_out, description.get("turns"))
    if kind == "ros2_bag":
        from ep2ploc_core.datasets.bag_reader import BagSource  # only bags need the bag library

        camera = description.get("camera")
        return BagSource(
            path,
            None if poses is None else Path(poses),
            points_topic=description.get("points_topic", ""),
            pose_topic=description.get("pose_topic", ""),
            image_topic=description.get("image_topic", ""),
            camera=None if camera is None else Path(camera),
            lidar_from_camera=description.get("lidar_from_camera"),
            hold_out=hold_out,
        )
    raise InputError(f"A map's source of the kind '{kind}' is not known; build the map again from {KINDS}.")


def with_estimated_poses(
    source: ScanSource, out: Path, hold_out: list[int] | None, progress: Callable[[int, int], None]
) -> ScanSource:
    """A recording without poses, opened again with poses found by LiDAR odometry over all of its scans.

    They are kept in `out`.poses.txt, `out` being the map to make, as the recording's own poses would be given, and
    taken from there when the recording has not changed since. Raises InputError where a scan does not fit the one
    before.
    """
    from ep2ploc_core.map.odometry import estimate_path  # only recordings without poses need KISS-ICP

    description = source.describe()
    out = out.resolve()
    file = out.with_name(out.name + ".poses.txt")
    made_of = f"{len(source)} scans of {description['path']} ({fingerprint(description, out)})"
    comment = f"map_from_sensor by LiDAR odometry over the {made_of}"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not (file.is_file() and file.read_text(errors="replace").startswith(f"# {comment}\n")):
        path = estimate_path(source, progress)
        poses = path.map_from_lidar
        if isinstance(source, KittiOdometrySource):
            poses = source.poses_of_camera0(poses)
        whole = np.array_equal(path.frames, np.arange(len(source)))  # else row k would not be frame k
        write_trajectory(file, poses, None if whole else path.stamps, comment)
    return reopen_source({**description, "poses": str(file.resolve()), "hold_out": hold_out})


def mapping_images(source: ScanSource) -> list[PosedImage]:
    """The images with poses that a recording brings; raises InputError when there is none to learn from."""
    images = list(source.images)
    if not images:
        raise InputError(f"{source.describe()['path']} has no image with a pose that is not held out.")
    return images


def mapping_image(source: ScanSource, frame: int) -> PosedImage:
    """The image of this number, whether a network would learn from it or not; raises InputError when the recording has
    none with a pose."""
    images: Sequence[PosedImage] = getattr(source, "posed_images", None) or mapping_images(source)
    nearest = min(images, key=lambda image: abs(image.frame - frame))
    if nearest.frame != frame:
        path = source.describe()["path"]
        raise InputError(
            f"{path} has no image {frame} with a pose that is not held out; the nearest is {nearest.frame}."
        )
    return nearest


def _kind(path: Path) -> str:
    if path.is_file():
        suffix = path.suffix.lower()
        kinds = {".pcd": "cloud_file", ".ply": "cloud_file", ".mcap": "ros2_bag", ".db3": "ros2_bag"}
        if suffix in kinds:
            return kinds[suffix]
    elif (path / "image_02").is_dir() or (path / "velodyne_points").is_dir():
        return "kitti_raw"
    elif (path / "velodyne").is_dir():
        return "kitti_odometry"
    elif (path / "metadata.yaml").is_file():
        return "ros2_bag"
    elif any(path.glob("frame-*.pose.txt")) or any(path.glob("seq-*/frame-*.pose.txt")):
        return "rgbd"
    raise InputError(f"{path} is nothing that a map can be made of; give {KINDS}.")
