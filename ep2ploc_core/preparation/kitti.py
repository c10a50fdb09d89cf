"""KITTI odometry, sequences 00 to 10: of each a map of its own scans, without those of the queries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ep2ploc_core.datasets.kitti import read_calibration
from ep2ploc_core.datasets.kitti_odometry import KittiOdometrySource
from ep2ploc_core.datasets.posed_image import PosedImage
from ep2ploc_core.errors import InputError
from ep2ploc_core.preparation.site import Report, Site, build_once, check_out, named, queries_once, write_split

TRAIN = [f"{number:02d}" for number in range(9)]
TEST = ["09", "10"]
RULE = (
    "train on sequences 00-08, test on 09 and 10; each map is without the scans of its queries and of those around them"
)
PAGE = "the odometry page of the KITTI Vision Benchmark Suite"
# Queries are at least so far apart, by either measure: each takes its own and at least six neighbouring scans away.
LEAST_METRES = 20.0
LEAST_FRAMES = 20
# While a car waits, the next frames are at the same place, however many: frames nearer than this stay out too.
SAME_PLACE = 1.0


def prepare_kitti(
    source: Path, out: Path, sequences: list[str], most_queries: int, voxel: float, report: Report
) -> list[Site]:
    """Maps and queries of `sequences` in `out`. source: the directory with `sequences` and `poses`. report: called with
    a stage, how much of it is done, of how much. Raises InputError naming what is missing in `source`."""
    source = source / "dataset" if not (source / "sequences").is_dir() and (source / "dataset").is_dir() else source
    missing = [lack for name in sequences for lack in _missing(source, name)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"{source} lacks {', '.join(missing[:3])}{more}; get them from {PAGE}, or name what is there with "
            "--sequences."
        )
    check_out(out, "kitti")
    sites = []
    for name in sequences:
        everything = KittiOdometrySource(source / "sequences" / name)
        with_scan = {frame.index for frame in everything.frames if frame.scan_path}
        queries = choose_queries([image for image in everything.images if image.frame in with_scan], most_queries)
        hold_out = held_out(everything.images, [query.frame for query in queries])
        mapped = KittiOdometrySource(everything.path, hold_out=hold_out)
        (out / name).mkdir(parents=True, exist_ok=True)
        queries_once(queries, out / name / "queries")
        built = build_once(mapped, out / name / "map", voxel, named(report, name))
        sites.append(Site(out / name, len(built), len(queries)))
        write_split(out, "kitti", TRAIN, TEST, RULE)
    return sites


def choose_queries(images: list[PosedImage], most: int) -> list[PosedImage]:
    """At the most `most` of a drive's images, evenly along the way, LEAST_METRES and LEAST_FRAMES or more apart."""
    if not images:
        return []
    way = travelled(images)
    step = max(LEAST_METRES, float(way[-1]) / most)
    chosen: list[PosedImage] = []
    for target in np.arange(step / 2, max(float(way[-1]), step), step):
        image = images[int(np.abs(way - target).argmin())]
        if not chosen or image.frame - chosen[-1].frame >= LEAST_FRAMES:
            chosen.append(image)
    return chosen


def held_out(images: list[PosedImage], queries: list[int]) -> list[int]:
    """The frames of the queries, and of images before and after each from which the car had not gone SAME_PLACE yet."""
    way = {image.frame: place for image, place in zip(images, travelled(images), strict=True)}
    return sorted(
        frame for frame, place in way.items() if any(abs(place - way[query]) < SAME_PLACE for query in queries)
    )  # fmt: skip


def travelled(images: list[PosedImage]) -> np.ndarray:
    """Metres driven until each of a drive's images `(N,)`."""
    places = np.stack([image.map_from_camera[:3, 3] for image in images])
    return np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(places, axis=0), axis=1))]


def _missing(source: Path, name: str) -> Iterator[str]:
    """What of a sequence is not there, and which archive holds it."""
    sequence = source / "sequences" / name
    for folder, suffix, archive in (
        ("image_2", ".png", "data_odometry_color.zip"),
        ("velodyne", ".bin", "data_odometry_velodyne.zip"),
    ):
        if not any(file.suffix == suffix for file in (sequence / folder).glob("*")):
            yield f"sequences/{name}/{folder} ({archive})"
    for file in ("calib.txt", "times.txt"):
        if not (sequence / file).is_file():
            yield f"sequences/{name}/{file} (data_odometry_calib.zip)"
    # The archives of images bring a calibration without the LiDAR, which that of the calibration has to replace.
    if (sequence / "calib.txt").is_file() and "Tr" not in read_calibration(sequence / "calib.txt"):
        yield f"the row Tr of sequences/{name}/calib.txt (data_odometry_calib.zip, to be unpacked last)"
    if not (source / "poses" / f"{name}.txt").is_file() and not (sequence / "poses.txt").is_file():
        yield f"poses/{name}.txt (data_odometry_poses.zip)"
