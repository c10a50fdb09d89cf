"""Stanford 2D-3D-S: of each area a map of the points of S3DIS; the queries are images of held-out scan locations."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial import cKDTree

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.kitti import read_image
from ep2ploc_core.datasets.panorama import cut_panoramas
from ep2ploc_core.datasets.stanford2d3ds import StanfordSource, posed_image
from ep2ploc_core.datasets.stanford_alignment import LEAST_SHARE, NEAR, find_turns, share_near
from ep2ploc_core.datasets.stanford_cameras import StanfordImage, depth_points, find_images
from ep2ploc_core.datasets.stanford_points import find_rooms
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_core.preparation.site import Report, Site, build_once, check_out, named, queries_once, spread, write_split

AREAS = ["1", "2", "3", "4", "5", "6"]
TRAIN = [f"area_{number}" for number in (1, 2, 3, 4, 6)]
TEST = ["area_5"]
RULE = (
    "train on areas 1, 2, 3, 4 and 6, test on 5 (the other two folds: 1, 3, 5, 6 and 2, 4; 2, 4, 5 and 1, 3, 6); in "
    "each area every fourth scan location is held out for queries"
)
PAGE = "the page of the Stanford building parser (2D-3D-Semantics)"
POINTS_FOLDERS = ("Stanford3dDataset_v1.2", "Stanford3dDataset_v1.2_Aligned_Version", "")
QUERY_LOCATIONS = 4  # every so many of them is for queries


def prepare_stanford(
    source: Path, out: Path, areas: list[str], most_queries: int, voxel: float, report: Report
) -> list[Site]:
    """Maps and queries of `areas` in `out`. source: the directory with `area_1` and so on, and in it S3DIS. report:
    called with a stage, how much of it is done, of how much. Raises InputError naming what is missing in `source`, and
    when points and images of an area do not fit."""
    parts = {area: (_points_of(source, area), _cameras_of(source, area)) for area in areas}
    check_out(out, "2d3ds")
    sites = []
    for area, (points, cameras) in parts.items():
        path = out / f"area_{area}"
        path.mkdir(parents=True, exist_ok=True)
        tell = named(report, path.name)
        directories = [_perspective(folder, path, tell) for folder in cameras]
        images = find_images(directories)
        turns = None if _lies_as_built(points) else _turns(points, images, path / "map", tell)
        asked = choose_queries(images, most_queries)
        mapped = StanfordSource(points, directories, [image.frame for image in asked], turns)
        built = build_once(mapped, path / "map", voxel, tell)
        seen = _seen_in_map(asked, built, points, tell)
        _write_queries(seen, images, path / "queries", tell)
        notes = []
        if turns is not None:
            left_out = sorted(set(find_rooms(points)) - set(turns))
            notes.append(f"rooms turned back by depth images, without {', '.join(left_out) or 'leaving one out'}")
        if len(seen) < len(asked):
            notes.append(f"{len(asked) - len(seen)} queries left out, since the map has not what they see")
        sites.append(Site(path, len(built), len(seen), "; ".join(notes)))
        write_split(out, "2d3ds", TRAIN, TEST, RULE)
    return sites


def choose_queries(images: list[StanfordImage], most: int) -> list[StanfordImage]:
    """At the most `most` images, evenly over every QUERY_LOCATIONS-th scan location, room by room; of those images
    whose view is at least as wide as that of half of all. Raises InputError when there are too few locations."""
    widest = _common_focal_length(images)
    locations = sorted({(image.room, image.location) for image in images})
    chosen = {location for _, location in locations[QUERY_LOCATIONS - 1 :: QUERY_LOCATIONS]}
    suited = [image for image in images if image.location in chosen and _focal_length(image) <= widest]
    if not suited:
        raise InputError(
            f"There are images of {len(locations)} scan locations, and to hold one out {QUERY_LOCATIONS} are needed: "
            "copy all of the area's images."
        )
    suited.sort(key=lambda image: (image.room, image.frame))
    return [suited[number] for number in spread(len(suited), most)]


def common_camera(images: list[StanfordImage]) -> Camera:
    """One camera of the middling field of view, which images with a wider one are cropped to."""
    first = images[0].camera
    focal = _common_focal_length(images) * first.width
    centre = (first.width - 1) / 2, (first.height - 1) / 2
    return Camera(first.width, first.height, focal, focal, *centre)


def crop(picture: np.ndarray, camera: Camera, to: Camera) -> np.ndarray:
    """What the camera `to` would see, `(h, w, 3)`, of what `camera` saw from the same pose."""
    from_to = camera.matrix @ np.linalg.inv(to.matrix)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cropped: np.ndarray = cv2.warpPerspective(
        picture, from_to, (to.width, to.height), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return cropped


def _focal_length(image: StanfordImage) -> float:
    """In widths of the image."""
    return image.camera.fx / image.camera.width


def _common_focal_length(images: list[StanfordImage]) -> float:
    return float(np.quantile([_focal_length(image) for image in images], 0.5, method="higher"))


def _seen_in_map(asked: list[StanfordImage], built: PointMap, points: Path, report: Report) -> list[StanfordImage]:
    """Those of the images whose depth image sees what is in the map; all that have no depth image."""
    tree, near = cKDTree(built.all_points().xyz), max(NEAR, built.voxel_size)
    kept = []
    for done, image in enumerate(asked, 1):
        seen = depth_points(image) - built.origin
        if (not len(seen) and not image.depth_path) or share_near(tree, seen, near) >= LEAST_SHARE:
            kept.append(image)
        report("comparing queries with the map", done, len(asked))
    if 2 * len(kept) < len(asked):
        raise InputError(
            f"Of {len(asked)} images only {len(kept)} see by their depth what the points of {points} show; do both "
            "belong to the same area, and is S3DIS the version that is not called aligned?"
        )
    return kept


def _write_queries(chosen: list[StanfordImage], images: list[StanfordImage], path: Path, report: Report) -> None:
    camera = common_camera(images)
    aside = path.with_name("cropped.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    queries = []
    for done, image in enumerate(chosen, 1):
        query = replace(posed_image(image), path=aside / f"{image.frame}.png", camera=camera)
        if not path.exists():
            picture = crop(read_image(image.path), image.camera, camera)
            cv2.imwrite(str(query.path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        queries.append(query)
        report("cropping queries", done, len(chosen))
    queries_once(queries, path)
    shutil.rmtree(aside)


def _perspective(folder: Path, out: Path, report: Report) -> Path:
    """The directory of an area's perspective images: its own, or made of its panoramas."""
    if any((folder / "data/rgb").glob("*.png")):
        return folder / "data"
    cut = out / "panorama_views" / folder.name
    cut_panoramas(folder / "pano", cut, lambda done, total: report(f"cutting panoramas of {folder.name}", done, total))
    return cut


def _lies_as_built(points: Path) -> bool:
    """Whether an area's rooms lie as in the building: only that version of S3DIS comes with their angles."""
    return (points / f"{points.name}_alignmentAngle.txt").is_file()


def _turns(points: Path, images: list[StanfordImage], site_map: Path, report: Report) -> dict[str, list[float]]:
    """How the rooms were turned: what a map that is there remembers of it, else what the depth images tell."""
    if (site_map / "map.yaml").is_file():
        remembered = PointMap.open(site_map).info.source
        if remembered.get("path") == str(points.resolve()) and remembered.get("turns"):
            known: dict[str, list[float]] = remembered["turns"]
            return known

    def progress(done: int, total: int) -> None:
        report("finding how rooms were turned", done, total)

    with_depth = [image for image in images if image.depth_path]
    turns = find_turns(find_rooms(points), with_depth, progress) if with_depth else {}
    if not turns:
        raise InputError(
            f"{points} is of the aligned version of S3DIS, whose rooms are turned, and no depth image (data/depth) "
            f"tells how; get Stanford3dDataset_v1.2, the version that is not called aligned, from {PAGE}."
        )
    return turns


def _points_of(source: Path, area: str) -> Path:
    name = f"Area_{area}"
    for folder in POINTS_FOLDERS:
        if (source / folder / name).is_dir():
            return source / folder / name
    raise InputError(
        f"{source} lacks {POINTS_FOLDERS[0]}/{name} (S3DIS, Stanford3dDataset_v1.2.zip of {PAGE}); get it, or name "
        "what is there with --areas."
    )


def _cameras_of(source: Path, area: str) -> list[Path]:
    """The directories of an area's images: one, or those of area_5a and area_5b."""
    names = ("area_5a", "area_5b") if area == "5" else (f"area_{area}",)
    for name in names:
        for kind in ("rgb", "pose"):
            if not any((source / name / part / kind).is_dir() for part in ("data", "pano")):
                raise InputError(
                    f"{source} lacks {name}/data/{kind} (2D-3D-S, {name}_no_xyz.tar of {PAGE}); get it, or name what "
                    "is there with --areas."
                )
    return [source / name for name in names]
