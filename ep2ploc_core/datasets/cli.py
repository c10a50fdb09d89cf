"""The commands that take queries out of recordings, and read and write bags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ep2ploc_core.errors import InputError
from ep2ploc_core.options import ImageTopic, LidarFromCamera, parse_pose
from ep2ploc_core.progress import console, progress_bar

bag_app = typer.Typer(no_args_is_help=True, help="ROS 2 bags.")
queries_app = typer.Typer(no_args_is_help=True, help="Query images with known poses, for evaluation.")

QueriesOut = Annotated[Path, typer.Option(help="The directory of queries to make.")]
Drive = Annotated[Path, typer.Argument(help="A KITTI raw drive.")]
Frames = Annotated[str, typer.Option(help="first:stop:step and single numbers, joined by commas.")]
SomeFrames = Annotated[str, typer.Option(help="first:stop:step and single numbers, joined by commas; all by default.")]
BagCamera = Annotated[Path | None, typer.Option(help="Calibration of the camera, where no camera_info is.")]


@queries_app.command("from-kitti")
def queries_from_kitti(
    drive: Drive,
    out: QueriesOut,
    frames: Frames,
    poses: Annotated[Path | None, typer.Option(help="Rows of 12 numbers, map_from_lidar.")] = None,
) -> None:
    """Take frames of a drive as queries; give them to `map build --hold-out` and to `evaluate`."""
    from ep2ploc_core.datasets.kitti import KittiDrive
    from ep2ploc_core.datasets.queries import parse_frames, write_queries

    source = KittiDrive(drive, poses)
    with_image = {frame.index for frame in source.frames if frame.image_path}
    queries = write_queries(source, [index for index in parse_frames(frames) if index in with_image], out)
    console.print(f"{out}: {len(queries)} queries")


@queries_app.command("from-rgbd")
def queries_from_rgbd(
    recording: Annotated[Path, typer.Argument(help="An RGB-D directory in the layout of 7-Scenes.")],
    out: QueriesOut,
    frames: Frames,
    camera: Annotated[Path | None, typer.Option(help="Calibration of its depth camera, as for the map.")] = None,
    colour_camera: Annotated[
        Path | None, typer.Option(help="Calibration of its colour camera, where it is not that of depth.")
    ] = None,
) -> None:
    """Take frames of an RGB-D recording as queries; of those asked for, the ones that there are."""
    from ep2ploc_core.datasets.queries import parse_frames, write_image_queries
    from ep2ploc_core.datasets.rgbd import RgbdSource

    chosen = set(parse_frames(frames))
    source = RgbdSource(recording, camera, colour_camera=colour_camera)
    images = [image for image in source.images if image.frame in chosen]
    if not images:
        raise InputError(f"{recording} has no colour image with a pose among the frames {frames}; give others.")
    console.print(f"{out}: {len(write_image_queries(images, out))} queries")


@queries_app.command("from-bag")
def queries_from_bag(
    bag: Annotated[Path, typer.Argument(help="A ROS 2 bag with images and scans.")],
    out: QueriesOut,
    frames: Frames,
    poses: Annotated[Path | None, typer.Option(help="As for the map; by LiDAR odometry: what it left there.")] = None,
    points_topic: Annotated[str, typer.Option(help="As for the map.")] = "",
    pose_topic: Annotated[str, typer.Option(help="As for the map.")] = "",
    image_topic: ImageTopic = "",
    camera: BagCamera = None,
    lidar_from_camera: LidarFromCamera = "",
) -> None:
    """Take images of a bag as queries, counted as they come on their topic; of those asked for, the ones with a
    pose."""
    from ep2ploc_core.datasets.bag_reader import BagSource
    from ep2ploc_core.datasets.queries import parse_frames, write_image_queries

    chosen = set(parse_frames(frames))
    place = parse_pose(lidar_from_camera) if lidar_from_camera else None
    source = BagSource(bag, poses, points_topic, pose_topic, image_topic, camera, place)
    images = [image for image in source.posed_images if image.frame in chosen]
    if not images:
        last = source.posed_images[-1].frame
        raise InputError(f"{bag} has no image with a pose among the frames {frames}; the last one has number {last}.")
    console.print(f"{out}: {len(write_image_queries(images, out))} queries")


@bag_app.command("from-kitti")
def bag_from_kitti(
    drive: Drive,
    out: Annotated[Path, typer.Option(help="The bag directory to make.")],
    frames: SomeFrames = "",
    storage: Annotated[str, typer.Option(help="mcap or sqlite3.")] = "mcap",
) -> None:
    """Write a drive as a ROS 2 bag: images, camera_info, points, TF, with the drive's own times."""
    from ep2ploc_core.datasets.bag_writer import write_kitti_bag
    from ep2ploc_core.datasets.kitti import KittiDrive
    from ep2ploc_core.datasets.queries import parse_frames

    write_kitti_bag(KittiDrive(drive), out, parse_frames(frames) if frames else None, None, storage)
    console.print(f"{out}: written")


@bag_app.command("images")
def bag_images(
    bag: Annotated[Path, typer.Argument(help="A ROS 2 bag with images; nothing else need be in it.")],
    out: Annotated[Path, typer.Option(help="The directory to make: images/, camera.yaml, stamps.txt.")],
    frames: SomeFrames = "",
    image_topic: ImageTopic = "",
    camera: BagCamera = None,
) -> None:
    """Take images and calibration out of a bag, as files for `localize`."""
    from ep2ploc_core.datasets.bag_images import ImageMessages, write_images
    from ep2ploc_core.datasets.queries import parse_frames

    messages = ImageMessages(bag, image_topic, camera)
    with progress_bar("images") as progress:
        count, unusable = write_images(messages, parse_frames(frames) if frames else None, out, progress)
    left_out = f", {unusable} that cannot be used left out" if unusable else ""
    console.print(f"{out}: {count} images of {messages.topic}{left_out}")
