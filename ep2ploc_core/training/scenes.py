"""The places that a network is trained on, from drives and from single pairs of image and scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import overload

import numpy as np

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.kitti import read_image, read_object_calibration, read_scan
from ep2ploc_core.datasets.posed_image import PosedImage
from ep2ploc_core.datasets.sampling import Scene
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.build import accumulate
from ep2ploc_core.map.point_map import MapPoints, PointMap
from ep2ploc_core.map.posed_scan import PosedScan, ScanSource
from ep2ploc_core.map.sources import KittiSource, mapping_images, reopen_source
from ep2ploc_core.map.unit import UNIT_VOXEL, NetworkFrame
from ep2ploc_core.progress import console

HELD_BYTES = 1.5e9  # of a scene's images in memory: 1000 of KITTI's


class StoredImages(Sequence[np.ndarray]):
    """Images `(H, W, 3)` uint8, undistorted, that are read each time that one is asked for."""

    def __init__(self, images: list[PosedImage]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> StoredImages: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | StoredImages:
        if isinstance(index, slice):
            return StoredImages(self.images[index])
        image = self.images[index]
        return image.camera.undistort(image.read())[0]


def drive_scene(source: ScanSource, voxel_size: float = 0.2) -> Scene:
    """The images of a recording in its own map, built here from its scans."""
    return _scene(source, accumulate(source.scans(), voxel_size), voxel_size)


def map_scene(point_map: PointMap) -> Scene:
    """The images that a map was made with, in that map, in the network's frame."""
    info = point_map.info
    frame = NetworkFrame.of_map(info.voxel_size, info.up)
    scene = _scene(reopen_source(info.source), frame.points(point_map.all_points()), UNIT_VOXEL)
    scene.map_from_camera[:, :3, 3] -= point_map.origin
    scene.map_from_camera = frame.poses(scene.map_from_camera)
    return scene


def _scene(source: ScanSource, points: MapPoints, spacing: float) -> Scene:
    """Images that cannot be read are left out, and told, where all are held in memory."""
    images = mapping_images(source)
    kept: Sequence[np.ndarray] = StoredImages(images)
    if sum(3 * image.camera.width * image.camera.height for image in images) <= HELD_BYTES:
        images, kept = _readable(images)
    return Scene(
        points=points,
        images=kept,
        cameras=[_pinhole(image.camera) for image in images],
        map_from_camera=np.stack([image.map_from_camera for image in images]),
        frames=np.array([image.frame if image.scan is None else image.scan for image in images]),
        name=Path(source.describe()["path"]).name,
        spacing=spacing,
    )


def _readable(images: list[PosedImage]) -> tuple[list[PosedImage], list[np.ndarray]]:
    """The images that can be read, and their pixels; raises InputError when none can."""
    stored, readable, pixels = StoredImages(images), [], []
    error: InputError | None = None
    for number, image in enumerate(images):
        try:
            pixels.append(stored[number])
            readable.append(image)
        except InputError as one:
            error = error or one
    if error is not None and not readable:
        raise error
    if error is not None:
        console.print(f"{len(images) - len(readable)} of {len(images)} images are not learned from: {error}")
    return readable, pixels


@lru_cache
def _pinhole(camera: Camera) -> Camera:
    """The camera of its undistorted images."""
    return camera.undistort(np.zeros((camera.height, camera.width, 3), np.uint8))[1]


def pair_scene(directory: Path, name: str, voxel_size: float = 0.1) -> Scene:
    """One image and scan in KITTI object layout; the scan is the map, in the LiDAR's own frame."""
    image_path = next((directory / "image_2").glob(f"{name}.*"), None)
    if image_path is None:
        raise InputError(f"{directory / 'image_2'} has no image {name}.")
    image = read_image(image_path)
    camera, camera_from_lidar = read_object_calibration(
        directory / "calib" / f"{name}.txt", image.shape[1], image.shape[0]
    )
    scan = PosedScan(0, read_scan(directory / "velodyne" / f"{name}.bin"), np.eye(4))
    return Scene(
        points=accumulate([scan], voxel_size),
        images=[image],
        cameras=[camera],
        map_from_camera=np.linalg.inv(camera_from_lidar)[None],
        frames=None,
        name=name,
        spacing=voxel_size,
    )


def pair_names(directory: Path, ranges: dict[str, list[int]]) -> list[str]:
    """Names in `velodyne/` that begin with a letter of `ranges` and whose number lies in its `[first, end)`."""
    names = sorted(file.stem for file in (directory / "velodyne").glob("*.bin"))
    if not names:
        raise InputError(f"{directory} holds no pairs: there are no scans in its velodyne/.")
    return [
        name
        for name in names
        if name[0] in ranges and name[1:].isdigit() and ranges[name[0]][0] <= int(name[1:]) < ranges[name[0]][1]
    ]


def load_scenes(
    drives: list[str],
    pairs: str,
    pair_ranges: dict[str, list[int]],
    progress: Callable[[int, int], None] = lambda done, total: None,
    maps: Sequence[str] = (),
) -> list[Scene]:
    """All scenes of a training configuration."""
    names = pair_names(Path(pairs), pair_ranges) if pairs else []
    total = len(drives) + len(names) + len(maps)
    if total == 0:
        raise InputError(
            "The training has no data: name KITTI raw drives in `drives`, maps in `maps` or a directory in `pairs`."
        )
    scenes = []
    for drive in drives:
        scenes.append(drive_scene(KittiSource(Path(drive))))
        progress(len(scenes), total)
    for path in maps:
        scenes.append(map_scene(PointMap.open(path)))
        progress(len(scenes), total)
    for name in names:
        scenes.append(pair_scene(Path(pairs), name))
        progress(len(scenes), total)
    return scenes
