"""7-Scenes: of each scene a map of its training sequences; the queries are images of its test sequences."""

from __future__ import annotations

import re
from pathlib import Path

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.rgbd import RgbdSource
from ep2ploc_core.errors import InputError
from ep2ploc_core.preparation.site import Report, Site, build_once, check_out, named, queries_once, spread, write_split

SCENES = ["chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs"]
RULE = (
    "of each scene: the map, and what is learned, from the sequences of TrainSplit.txt, the queries from TestSplit.txt"
)
PAGE = "the page of Microsoft Research's RGB-D Dataset 7-Scenes"
# The recordings bring no calibration; with this one the map's edges lie on those of the colour images.
COLOUR_CAMERA = Camera(640, 480, 525.0, 525.0, 320.0, 240.0)


def prepare_seven_scenes(
    source: Path, out: Path, scenes: list[str], most_queries: int, voxel: float, report: Report
) -> list[Site]:
    """Maps and queries of `scenes` in `out`. source: the directory of the scenes. report: called with a stage, how much
    of it is done, of how much. Raises InputError naming what is missing in `source`."""
    splits = {scene: _read_splits(source / scene) for scene in scenes}
    check_out(out, "7scenes")
    sites = []
    for scene, (train, test) in splits.items():
        (out / scene).mkdir(parents=True, exist_ok=True)
        colour = out / "colour_camera.yaml"
        if not colour.is_file():  # maps remember this file, and whether it was changed
            COLOUR_CAMERA.to_yaml(colour)
        mapped = RgbdSource(source / scene, colour_camera=colour, sequences=train)
        images = RgbdSource(source / scene, colour_camera=colour, sequences=test).images
        if not images:
            raise InputError(f"The test sequences of {source / scene} have no colour images; unpack them again.")
        queries = [images[number] for number in spread(len(images), most_queries)]
        queries_once(queries, out / scene / "queries")
        built = build_once(mapped, out / scene / "map", voxel, named(report, scene))
        sites.append(Site(out / scene, len(built), len(queries)))
        write_split(out, "7scenes", SCENES, SCENES, RULE)
    return sites


def _read_splits(scene: Path) -> tuple[list[int], list[int]]:
    """The numbers of a scene's training and test sequences."""
    if not scene.is_dir():
        raise InputError(
            f"{scene.parent} lacks {scene.name} ({scene.name}.zip of {PAGE}); get it, or name what is there with "
            "--scenes."
        )
    splits = []
    for name in ("TrainSplit.txt", "TestSplit.txt"):
        try:
            lines = (scene / name).read_text(encoding="ascii").split("\n")
        except FileNotFoundError as error:
            raise InputError(f"{scene} lacks {name} ({scene.name}.zip of {PAGE}); unpack it again.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{scene / name} cannot be read ({type(error).__name__}); unpack it again.") from error
        numbers = [re.fullmatch(r"sequence\s*([0-9]{1,4})", line.strip()) for line in lines if line.strip()]
        if not numbers or not all(numbers):
            raise InputError(f"{scene / name} names no sequences in rows such as 'sequence1'; unpack it again.")
        splits.append([int(number[1]) for number in numbers if number])
    both = sorted(set(splits[0]) & set(splits[1]))
    if both:
        raise InputError(f"{scene} has the sequence {both[0]} in both TrainSplit.txt and TestSplit.txt; correct them.")
    for number in sorted({*splits[0], *splits[1]}):
        folder = scene / f"seq-{number:02d}"
        if not folder.is_dir():
            packed = folder.with_name(folder.name + ".zip").is_file()
            where = f"unpack {folder.name}.zip there" if packed else f"it is in {scene.name}.zip of {PAGE}"
            raise InputError(f"{scene} lacks {folder.name}, which its splits name; {where}.")
    return splits[0], splits[1]
