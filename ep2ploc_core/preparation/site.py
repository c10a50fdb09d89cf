"""What every data set is prepared into: a map and its queries for each site, and which sites are for what.

```
OUT/NAME/map        for `train --site` and `evaluate`
OUT/NAME/queries    for `evaluate`
OUT/split.yaml      which names are to train on and which to test on, and by what rule
OUT/train.yaml      for `train`: one network for all maps that are to train on
```
Nothing that is there is replaced: what was prepared the same way is kept, anything else is refused. Half-built maps and
half-written queries have other names, and are gone on with or written anew.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ep2ploc_core.datasets.posed_image import PosedImage
from ep2ploc_core.datasets.queries import Queries, write_image_queries
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.build import BuildSettings, build_map
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_core.map.posed_scan import ScanSource

Report = Callable[[str, int, int], None]
_SPLIT = "split.yaml"


@dataclass(frozen=True)
class Site:
    """A prepared site: its directory, with `map` and `queries` in it; note: what there is to say of it, or empty."""

    path: Path
    points: int
    queries: int
    note: str = ""


def build_once(source: ScanSource, path: Path, voxel: float, report: Report) -> PointMap:
    """The map of `source` at `path`, built if it is not there; a build that was stopped goes on. Raises InputError when
    the map there was made of something else, MapError as `build_map` does."""
    path = Path(path).resolve()
    if (path / "map.yaml").exists():
        there = PointMap.open(path)
        if there.info.source != _plain(source.describe()) or there.voxel_size != voxel:
            raise InputError(
                f"The map {path} was made of other scans, with others held out, or with another voxel; give another "
                "--out, or move it away."
            )
        return there
    return build_map(source, path, BuildSettings(voxel_size=voxel), report)


def queries_once(images: list[PosedImage], path: Path) -> Queries:
    """The queries of `images` at `path`, written if they are not there. Raises InputError when others are there."""
    images = sorted(images, key=lambda image: image.frame)  # as their files will be
    if path.exists():
        there = Queries(path)
        frames = [image.frame for image in images]
        same = there.frames is not None and there.map_from_camera is not None and there.frames.tolist() == frames
        if not same or not np.allclose(
            np.asarray(there.map_from_camera), [image.map_from_camera for image in images], atol=1e-5
        ):
            raise InputError(f"{path} holds other queries than these; give another --out, or move it away.")
        return there
    aside = path.with_name(path.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    write_image_queries(images, aside)
    aside.rename(path)
    return Queries(path)


def spread(count: int, most: int) -> list[int]:
    """At the most `most` of the numbers 0..count - 1, evenly."""
    most = min(count, most)
    return [int((number + 0.5) * count / most) for number in range(most)]


def named(report: Report, name: str) -> Report:
    """`report` with the site's name before the stage."""
    return lambda stage, done, total: report(f"{name}: {stage}", done, total)


def write_split(out: Path, dataset: str, train: Sequence[str], test: Sequence[str], rule: str) -> None:
    """Writes split.yaml and train.yaml over the sites in `out`, those of earlier runs included; `train` and `test` name
    all sites that the data set may have."""
    whole = {site.name for site in out.iterdir() if (site / "map/map.yaml").is_file() and (site / "queries").is_dir()}
    split = {
        "dataset": dataset,
        "rule": rule,
        "train": [name for name in train if name in whole],
        "test": [name for name in test if name in whole],
    }
    _write_yaml(out / _SPLIT, split, "Made anew by each `ep2ploc dataset prepare` into this directory.")
    maps = [str((out / name / "map").resolve()) for name in split["train"]]
    if maps:
        training = {"out": str((out / "training").resolve()), "maps": maps}
        _write_yaml(out / "train.yaml", training, "Made anew as split.yaml is: copy it to change it.")


def sites_of_test(out: Path) -> list[str]:
    """The names that split.yaml has for the test."""
    names: list[str] = yaml.safe_load((out / _SPLIT).read_text())["test"]
    return names


def check_out(out: Path, dataset: str) -> None:
    """Raises InputError when another data set was prepared in `out`, or `out` is no directory."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a directory.")
    try:
        other = yaml.safe_load((out / _SPLIT).read_text())["dataset"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError):
        return
    if other != dataset:
        raise InputError(f"{out} holds the prepared data set '{other}'; give another --out.")


def chosen_names(text: str, known: Sequence[str], option: str) -> list[str]:
    """The names in a comma-separated text, all known ones if it is empty, in the order of the known ones. Raises
    InputError when one is not known."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise InputError(f"{option} '{name}' is not known; there are: {', '.join(known)}.")
    return [name for name in known if name in names or not names]


def _plain(description: dict[str, Any]) -> Any:
    """As it comes back from YAML."""
    return yaml.safe_load(yaml.safe_dump(description))


def _write_yaml(path: Path, content: dict[str, Any], comment: str) -> None:
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(f"# {comment}\n" + yaml.safe_dump(content, sort_keys=False, width=120))
    os.replace(aside, path)
