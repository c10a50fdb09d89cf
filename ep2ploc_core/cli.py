"""The `ep2ploc` command: thin over the packages beside it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from ep2ploc_core.datasets.cli import bag_app, queries_app
from ep2ploc_core.errors import Ep2plocError, InputError
from ep2ploc_core.evaluation.cli import evaluate
from ep2ploc_core.options import Device, ImageTopic, Landmarks, LidarFromCamera, Refine, parse_pose
from ep2ploc_core.preparation.cli import dataset_app
from ep2ploc_core.progress import console, progress_bar, stage_bars

if TYPE_CHECKING:
    from ep2ploc_core.localization import Localization

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Where is the camera? Localizes images in LiDAR maps."
)
map_app = typer.Typer(no_args_is_help=True, help="Make and look at maps.")
app.add_typer(map_app, name="map")
app.add_typer(bag_app, name="bag")
app.add_typer(queries_app, name="queries")
app.add_typer(dataset_app, name="dataset")


@map_app.command("build")
def map_build(
    source: Annotated[
        Path, typer.Argument(help="KITTI raw drive, KITTI odometry sequence, .pcd, .ply, RGB-D directory or ROS 2 bag.")
    ],
    out: Annotated[Path, typer.Option(help="The map directory to make.")],
    poses: Annotated[
        Path | None, typer.Option(help="Rows of 12 numbers (map_from_lidar, row k = frame k), or TUM rows by time.")
    ] = None,
    camera: Annotated[
        Path | None, typer.Option(help="Calibration of an RGB-D recording's depth camera, or of a bag's camera.")
    ] = None,
    colour_camera: Annotated[
        Path | None, typer.Option(help="Calibration of its colour camera, where it is not that of depth.")
    ] = None,
    points_topic: Annotated[str, typer.Option(help="Of a bag: by default the PointCloud2 with most messages.")] = "",
    pose_topic: Annotated[str, typer.Option(help="Of a bag: by default odometry or TF, whichever there is.")] = "",
    image_topic: ImageTopic = "",
    lidar_from_camera: LidarFromCamera = "",
    voxel: Annotated[float, typer.Option(help="Edge of the map's voxels in metres.", min=0.01, max=5.0)] = 0.2,
    checkpoint: Annotated[str, typer.Option(help="Weights to encode the map with; '' leaves it unencoded.")] = "edge",
    hold_out: Annotated[
        str, typer.Option(help="Queries, or frames (400:1000): stay out of the map, with 3 neighbours each way.")
    ] = "",
    thin_ghosts: Annotated[bool, typer.Option(help="Remove what later scans saw through: ghosts of traffic.")] = True,
    device: Device = "auto",
) -> None:
    """Build a map from scans and poses, and encode it for localization."""
    from ep2ploc_core.map.build import BuildSettings, build_map
    from ep2ploc_core.map.point_map import check_replaceable
    from ep2ploc_core.map.sources import mapping_images, open_source, reopen_source, with_estimated_poses

    check_replaceable(out)  # before anything long is begun
    held_out = _held_out(hold_out)
    place = parse_pose(lidar_from_camera) if lidar_from_camera else None
    topics = points_topic, pose_topic, colour_camera, image_topic, place
    scans = open_source(source, poses, camera, held_out, *topics)
    if not scans.has_poses:
        console.print(f"{source} brings no poses; LiDAR odometry finds them, unless {out}.poses.txt keeps them.")
        console.print("Its errors add up along the way.")
        with progress_bar("finding poses") as progress:
            everything = open_source(source, poses, camera, None, *topics)
            scans = with_estimated_poses(everything, out, held_out, progress)
    if image_topic or lidar_from_camera or (camera and scans.describe()["kind"] == "ros2_bag"):
        mapping_images(scans)  # says what is wrong with these before the long work
    if held_out:
        recorded = len(reopen_source({**scans.describe(), "hold_out": None}))
        console.print(f"{recorded - len(scans)} of {recorded} scans are held out, the queries' and their neighbours'.")
        if len(scans) < recorded / 2:
            console.print("So few are left that the map may not show the site; take fewer queries, farther apart.")
    with stage_bars() as report:
        point_map = build_map(scans, out, BuildSettings(voxel_size=voxel, thin_ghosts=thin_ghosts), report)
    console.print(
        f"{out}: {len(point_map):,} points in {len(point_map.info.tiles)} tiles"
        + (f", {point_map.info.ghosts_removed:,} ghosts of moving things removed" if thin_ghosts else "")
    )
    if checkpoint:
        _encode(out, checkpoint, device)


@map_app.command("encode")
def map_encode(
    map_path: Annotated[Path, typer.Argument(metavar="MAP")],
    checkpoint: Annotated[str, typer.Option(help="Name or file of the weights.")] = "edge",
    device: Device = "auto",
) -> None:
    """Store a network's descriptors of all points in the map."""
    _encode(map_path, checkpoint, device)


@map_app.command("info")
def map_info(map_path: Annotated[Path, typer.Argument(metavar="MAP")]) -> None:
    """Size, extent, origin and source of a map, the network that it was encoded with, and whether it is well."""
    from ep2ploc_core.map.health import inspect_map
    from ep2ploc_core.map.point_map import PointMap

    point_map = PointMap.open(map_path)
    info, report = point_map.info, inspect_map(point_map)
    extent = "  ".join(f"{axis} {a:.1f}..{b:.1f} m" for axis, a, b in zip("xyz", report.low, report.high, strict=True))
    network = point_map.checkpoint + (", adapted to this site" if report.adapted else "")
    table = Table(show_header=False)
    table.add_row("points", f"{len(point_map):,} in voxels of {info.voxel_size:g} m")
    table.add_row("extent", extent)
    table.add_row("origin", "  ".join(f"{value:g}" for value in info.origin))
    table.add_row("path", _path_row(point_map.sensor_path()))
    table.add_row("tiles", f"{len(info.tiles)} of {info.tile_size:g} m, {report.bytes / 1e6:.1f} MB")
    store = point_map.landmark_store
    table.add_row("landmarks", f"{len(store):,} of {len(store.views)} images" if store else "none")
    table.add_row("ghosts removed", f"{info.ghosts_removed:,}")
    table.add_row("encoded with", network if point_map.checkpoint else "nothing yet")
    table.add_row("source", " ".join(str(info.source.get(key, "")) for key in ("kind", "path")).strip() or "unknown")
    table.add_row("health", "; ".join(report.problems) or "ok")
    Console().print(table)


@app.command()
def localize(
    map_path: Annotated[Path, typer.Argument(metavar="MAP")],
    image: Annotated[Path, typer.Argument(metavar="IMAGE")],
    camera: Annotated[Path, typer.Option(help="camera_calibration YAML or KITTI calibration.")],
    prior: Annotated[str, typer.Option(help="x,y,z,qx,qy,qz,qw: a guess of map_from_camera; without, a search.")] = "",
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    overlay: Annotated[Path | None, typer.Option(help="Write the map drawn over the image here.")] = None,
    rerun: Annotated[
        Path | None, typer.Option(help="Write the refinement, step by step, for the rerun viewer.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="Weights; auto: those the map was encoded with.")] = "auto",
    refine: Refine = "auto",
    landmarks: Landmarks = True,
    device: Device = "auto",
) -> None:
    """Localize one image in a map."""
    from ep2ploc_core.datasets.kitti import read_camera_file, read_image
    from ep2ploc_core.evaluation.protocols import result_row
    from ep2ploc_core.localizer_settings import LocalizerSettings
    from ep2ploc_core.map_localizer import open_localizer
    from ep2ploc_core.visualization.alignment_log import write_alignment
    from ep2ploc_core.visualization.overlay import SETTINGS, draw_overlay, write_image
    from ep2ploc_core.visualization.rerun_log import require_rerun
    from ep2ploc_core.written_file import write_json

    if rerun and refine == "none":
        raise InputError(
            "With --rerun the refinement of the pose is recorded, and there is none; leave --refine none out."
        )
    if rerun:
        require_rerun()
    picture = read_image(image)
    lens = read_camera_file(camera, picture.shape[1], picture.shape[0])
    settings = LocalizerSettings(refine=refine, landmarks=landmarks, trace=bool(rerun))
    guess = _matrix(parse_pose(prior)) if prior else None
    with console.status("opening the map and its network"):
        localizer, point_map = open_localizer(map_path, checkpoint, device, settings, search=not prior)
    result = localizer.localize(picture, lens, guess)
    row = {"image": str(image), **result_row(result)}
    if json_out:
        write_json(json_out, row)
    print(json.dumps(row))
    if overlay and result.map_from_camera is not None:
        points = point_map.query(result.map_from_camera[:3, 3], SETTINGS.farthest)
        pose = result.map_from_camera
        write_image(draw_overlay(picture, lens, points, point_map.origin, pose, point_map.voxel_size), overlay)
    if rerun and result.refinement is not None:
        write_alignment(rerun, result.refinements, picture, lens, point_map)
    elif rerun:
        console.print(f"{rerun}: not written, since no pose was found that could be refined")
    console.print(_sentence(result))


@app.command("overlay")
def draw_map(
    map_path: Annotated[Path, typer.Argument(metavar="MAP")],
    out: Annotated[Path, typer.Option(help="The picture to write, .png or .jpg.")],
    image: Annotated[Path | None, typer.Argument(metavar="[IMAGE]")] = None,
    camera: Annotated[Path | None, typer.Option(help="camera_calibration YAML or KITTI calibration.")] = None,
    pose: Annotated[
        str, typer.Option(help="x,y,z,qx,qy,qz,qw: map_from_camera, camera axes right, down, forward.")
    ] = "",
    frame: Annotated[
        int | None, typer.Option(help="In place of IMAGE, its camera and pose: the mapping run's image of this number.")
    ] = None,
    removed: Annotated[bool, typer.Option(help="Mark the points taken for hidden, too.")] = False,
) -> None:
    """Draw a map over an image from a pose, to judge the pose or the calibration."""
    from ep2ploc_core.datasets.kitti import read_camera_file, read_image
    from ep2ploc_core.map.point_map import PointMap
    from ep2ploc_core.map.sources import mapping_image, reopen_source
    from ep2ploc_core.visualization.overlay import SETTINGS, draw_overlay, write_image

    point_map = PointMap.open(map_path)
    if frame is not None and image is None and camera is None and not pose:
        mapped = mapping_image(reopen_source(point_map.info.source), frame)
        picture, lens, map_from_camera = mapped.read(), mapped.camera, mapped.map_from_camera
    elif frame is None and image is not None and camera is not None and pose:
        picture = read_image(image)
        lens = read_camera_file(camera, picture.shape[1], picture.shape[0])
        map_from_camera = _matrix(parse_pose(pose))
    else:
        raise InputError("Give either IMAGE with --camera and --pose, or --frame, an image of the mapping run.")
    corner = np.hypot(1, np.hypot(lens.width / lens.fx, lens.height / lens.fy))  # how far off the axis a corner may be
    points = point_map.query(map_from_camera[:3, 3], SETTINGS.farthest * corner)
    drawn = draw_overlay(picture, lens, points, point_map.origin, map_from_camera, point_map.voxel_size, removed)
    write_image(drawn, out)
    console.print(f"{out}: written")


app.command()(evaluate)


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="Training configuration (YAML).")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="key=value")] = None,
    site: Annotated[Path | None, typer.Option(help="Adapt to this map from its mapping run's images.")] = None,
    checkpoint: Annotated[str, typer.Option(help="With --site: weights to begin with.")] = "edge",
    steps: Annotated[int, typer.Option(help="With --site: training steps, 700 in ten minutes on two cores.")] = 700,
    device: Device = "auto",
) -> None:
    """Train a network from a configuration, or adapt one to a site."""
    from dataclasses import replace

    from ep2ploc_core.map.point_map import PointMap
    from ep2ploc_core.map.sources import mapping_images, reopen_source
    from ep2ploc_core.training.config import load_config
    from ep2ploc_core.training.general import train_network
    from ep2ploc_core.training.processes import choose_device, run_everywhere
    from ep2ploc_core.training.site import SITE_SCHEDULE, adapt_to_site

    if (config is None) == (site is None):
        raise InputError("Give either a training configuration or --site MAP.")
    if site is not None:
        # Says what is wrong before processes are started.
        mapping_images(reopen_source(PointMap.open(site).info.source))
        schedule = replace(SITE_SCHEDULE, steps=steps)
        run_everywhere(adapt_to_site, choose_device(device), site, checkpoint, schedule)
        console.print(f"{site}: adapted; its network is now {PointMap.open(site).checkpoint}, and `localize` uses it.")
        return
    assert config is not None
    settings = load_config(config, overrides or [])
    run_everywhere(train_network, choose_device(settings.device), settings)


@app.command()
def demo(
    drive: Annotated[Path | None, typer.Option(help="A KITTI raw drive; without, a synthetic one is made.")] = None,
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("out/demo"),
    steps: Annotated[int, typer.Option(help="Steps of the adaptation to the site; 0: 700, synthetic 350.")] = 0,
) -> None:
    """Everything at once: map, network, adaptation, ROS 2 nodes, comparison with the truth."""
    from ep2ploc_ros.demo import run_demo

    run_demo(drive, out, steps)


def main() -> None:
    """Entry point: errors meant for the user are one line on stderr and exit code 2."""
    try:
        app()
    except Ep2plocError as error:
        print(f"ep2ploc: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        print(f"ep2ploc: {error.strerror}: {error.filename or ''}", file=sys.stderr)
        raise SystemExit(2) from None


def _held_out(hold_out: str) -> list[int]:
    from ep2ploc_core.datasets.queries import Queries, parse_frames

    if not hold_out:
        return []
    if re.fullmatch(r"[0-9:,]+", hold_out) and not Path(hold_out).exists():
        return parse_frames(hold_out)
    frames = Queries(hold_out).frames
    if frames is None:
        raise InputError(f"{hold_out} has no frames.txt, so it is not known which frames to hold out.")
    return [int(frame) for frame in frames]


def _encode(map_path: Path, checkpoint: str, device: str) -> None:
    from ep2ploc_core.map.encode import encode_map
    from ep2ploc_core.map.place_index import encode_places
    from ep2ploc_core.map.point_map import PointMap
    from ep2ploc_core.model.checkpoint import load_network
    from ep2ploc_core.training.processes import choose_device

    point_map = PointMap.open(map_path)
    network = load_network(checkpoint, choose_device(device))
    with stage_bars() as report:
        encode_map(point_map, network, report)
        if network.knows_places:
            encode_places(point_map, network, lambda done, total: report("encoding places", done, total))
    console.print(f"{map_path}: encoded with {checkpoint} ({network.fingerprint})")


def _path_row(poses: np.ndarray) -> str:
    """How far the mapping sensor went, and how far from its start it ended: where it came back, by odometry's drift."""
    if not len(poses):
        return "unknown"
    way = float(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum())
    return f"{way:.0f} m, from end to start {np.linalg.norm(poses[-1, :3, 3] - poses[0, :3, 3]):.1f} m"


def _sentence(result: Localization) -> str:
    """A result for people."""
    if result.map_from_camera is None or result.covariance is None:
        return f"refused: {result.reason}"
    sigmas = np.sqrt(np.diag(result.covariance))
    x, y, z = result.map_from_camera[:3, 3]
    return (
        f"at {x:.2f} {y:.2f} {z:.2f}, give or take {np.linalg.norm(sigmas[:3]):.2f} m and "
        f"{np.degrees(np.linalg.norm(sigmas[3:])):.1f} degrees (one standard deviation); believed {result.belief:.3f}"
    )


def _matrix(numbers: list[float]) -> np.ndarray:
    from ep2ploc_core import se3

    return se3.from_quaternion(np.array(numbers[:3]), np.array(numbers[3:]))


if __name__ == "__main__":
    main()
