"""What the demo shows of its results: plots, overlays, a film, and a recording for the rerun viewer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.highlevel import AnyReader

from ep2ploc_core.datasets.kitti import Frame, KittiDrive
from ep2ploc_core.datasets.queries import Queries
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_core.se3 import pose_error
from ep2ploc_core.visualization.film import film_frame, write_film
from ep2ploc_core.visualization.overlay import draw_overlay, write_image
from ep2ploc_core.visualization.plots import plot_recall, plot_trajectory
from ep2ploc_core.visualization.rerun_log import RerunLog, rerun_is_installed
from ep2ploc_ros.demo_replay import ReplayedImage, ReplayResult

_DRAWN_METRES = 60.0
_RERUN_POINTS = 400_000
_FILM_SECONDS = 0.25  # per image


def draw_results(
    out: Path, drive: KittiDrive, point_map: PointMap, queries: Queries, reports: dict[str, Any], result: ReplayResult
) -> None:
    """Plots and overlays of the evaluations; trajectory, film and recording of what went through the nodes. Where
    one of the last two cannot be made there is a warning, and the rest goes on."""
    plot_recall({"start": {"results": reports["adapted"]["start_results"]}, **reports}, out / "recall.png")
    _draw_overlays(out, point_map, queries, reports["adapted"]["results"])
    dropped = np.array([image.status == "dropped" for image in result.images if image.truth is not None], bool)
    plot_trajectory(point_map, result.truth, result.estimates, out / "trajectory_ros.png", dropped)
    seen = _seen(drive, point_map, result)
    if seen:
        with _warned("film.gif"):
            write_film([film_frame(one.picture, one.caption) for one in seen], out / "film.gif", _FILM_SECONDS)
    if rerun_is_installed():
        with _warned("demo.rrd"):
            _record(out / "demo.rrd", drive, point_map, result, seen)


@contextmanager
def _warned(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        warnings.warn(f"{name} could not be made: {type(error).__name__}: {error}", stacklevel=3)


@dataclass
class _Seen:
    """An image that went through the nodes: as it was, what is shown of it, and what is said of it."""

    replayed: ReplayedImage
    image: np.ndarray
    picture: np.ndarray
    caption: str


def _draw_overlays(out: Path, point_map: PointMap, queries: Queries, results: list[dict[str, Any]]) -> None:
    """The best, the middle and the worst of the poses given; those of a demo before are removed."""
    for old in out.glob("overlay_*.png"):
        old.unlink()
    rows = [row for row in results if row["status"] == "ok"]
    rows.sort(key=lambda row: float(row["translation_error_m"]))
    shown = {"good": rows[0], "middle": rows[len(rows) // 2], "bad": rows[-1]} if rows else {}
    for name, row in shown.items():
        pose = np.array(row["map_from_camera"])
        near, image = point_map.query(pose[:3, 3], _DRAWN_METRES), queries.image(row["query"])
        picture = draw_overlay(image, queries.camera, near, point_map.origin, pose, point_map.voxel_size)
        write_image(picture, out / f"overlay_{name}_{row['translation_error_m']:.2f}m.png")


def _seen(drive: KittiDrive, point_map: PointMap, result: ReplayResult) -> list[_Seen]:
    frames: dict[int, Frame] = {round(frame.stamp * 1e9): frame for frame in drive.frames if frame.image_path}
    seen = []
    for one in result.images:
        frame = frames[one.stamp]
        image = picture = drive.read_image(frame)
        pose = one.map_from_camera
        if pose is not None:
            near = point_map.query(pose[:3, 3], _DRAWN_METRES)
            picture = draw_overlay(image, drive.camera, near, point_map.origin, pose, point_map.voxel_size)
        seen.append(_Seen(one, image, picture, f"{frame.index}: {_caption(one)}"))
    return seen


def _caption(image: ReplayedImage) -> str:
    if image.status == "dropped":
        return "dropped: the localizer did not work on it"
    if image.map_from_camera is None:
        return f"no pose. {image.remark}"
    if image.truth is None:
        return "a pose"
    metres, radians = pose_error(image.map_from_camera, image.truth)
    return f"{metres:.2f} m, {math.degrees(radians):.1f} degrees off"


def _record(out: Path, drive: KittiDrive, point_map: PointMap, result: ReplayResult, seen: list[_Seen]) -> None:
    covariances = _covariances(result.bag)
    with RerunLog(out, point_map.origin, point_map.voxel_size) as log:
        log.log_map(point_map.thinned(_RERUN_POINTS))
        log.log_truth(result.truth)
        for one in seen:
            replayed = one.replayed
            stamp, pose = replayed.stamp, replayed.map_from_camera
            log.log_image(stamp, one.image, drive.camera)
            if pose is None:
                log.log_refusal(stamp, one.caption, replayed.truth, replayed.status == "dropped")
            else:
                log.log_pose(stamp, pose, covariances.get(stamp), replayed.truth, one.caption)
                log.log_overlay(stamp, one.picture)


def _covariances(bag: Path) -> dict[int, np.ndarray]:
    """Covariances `(6, 6)` of the poses published, by stamp (ns)."""
    found = {}
    with AnyReader([bag]) as reader:
        for connection, _, raw in reader.messages(
            [connection for connection in reader.connections if connection.topic == "/pose_with_covariance"]
        ):
            message: Any = reader.deserialize(raw, connection.msgtype)
            stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            found[stamp] = np.reshape(message.pose.covariance, (6, 6))
    return found
