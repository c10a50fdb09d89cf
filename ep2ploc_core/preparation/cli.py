"""`ep2ploc dataset prepare`: from the official downloads to maps, queries and splits."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ep2ploc_core.progress import console, stage_bars

dataset_app = typer.Typer(no_args_is_help=True, help="Public data sets.")
prepare_app = typer.Typer(no_args_is_help=True, help="Maps, queries and splits from the official downloads.")
dataset_app.add_typer(prepare_app, name="prepare")

Out = Annotated[Path, typer.Option(help="Where maps, queries and splits go; what is there is kept.")]
Queries = Annotated[int, typer.Option(help="At the most so many queries for each map, spread evenly.", min=1)]
Voxel = Annotated[float, typer.Option(help="Edge of the maps' voxels in metres.", min=0.01, max=5.0)]


@prepare_app.command("kitti")
def kitti(
    source: Annotated[Path, typer.Argument(help="KITTI odometry: the directory with sequences/ and poses/.")],
    out: Out,
    sequences: Annotated[str, typer.Option(help="Some of 00 to 10, joined by commas; all by default.")] = "",
    queries: Queries = 200,
    voxel: Voxel = 0.2,
) -> None:
    """A map and queries for each of the sequences 00 to 10; train on 00 to 08, test on 09 and 10."""
    from ep2ploc_core.preparation.kitti import TEST, TRAIN, prepare_kitti
    from ep2ploc_core.preparation.site import chosen_names

    _prepare(prepare_kitti, source, out, chosen_names(sequences, [*TRAIN, *TEST], "--sequences"), queries, voxel)


@prepare_app.command("2d3ds")
def stanford(
    source: Annotated[Path, typer.Argument(help="2D-3D-S: the directory with area_1 and so on, and S3DIS in it.")],
    out: Out,
    areas: Annotated[str, typer.Option(help="Some of 1 to 6, joined by commas; all by default.")] = "",
    queries: Queries = 200,
    voxel: Voxel = 0.05,
) -> None:
    """A map of S3DIS's points and queries for each of the areas 1 to 6; train on 1, 2, 3, 4 and 6, test on 5."""
    from ep2ploc_core.preparation.site import chosen_names
    from ep2ploc_core.preparation.stanford2d3ds import AREAS, prepare_stanford

    _prepare(prepare_stanford, source, out, chosen_names(areas, AREAS, "--areas"), queries, voxel)


@prepare_app.command("7scenes")
def seven_scenes(
    source: Annotated[Path, typer.Argument(help="7-Scenes: the directory with chess/, fire/ and so on.")],
    out: Out,
    scenes: Annotated[str, typer.Option(help="Some of the seven, joined by commas; all by default.")] = "",
    queries: Queries = 200,
    voxel: Voxel = 0.05,
) -> None:
    """A map of the training sequences and queries of the test sequences for each scene."""
    from ep2ploc_core.preparation.seven_scenes import SCENES, prepare_seven_scenes
    from ep2ploc_core.preparation.site import chosen_names

    _prepare(prepare_seven_scenes, source, out, chosen_names(scenes, SCENES, "--scenes"), queries, voxel)


def _prepare(prepare: Callable, source: Path, out: Path, names: list[str], queries: int, voxel: float) -> None:
    """Prepares, and says what there is and which commands come next."""
    from ep2ploc_core.preparation.site import sites_of_test

    with stage_bars() as report:
        sites = prepare(source, out, names, queries, voxel, report)
    for site in sites:
        note = f" ({site.note})" if site.note else ""
        _say(f"{site.path}: {site.points:,} points, {site.queries} queries{note}")
    of_test = [site.path for site in sites if site.path.name in sites_of_test(out)]
    last = of_test[-1] if of_test else sites[-1].path
    site_map, site_queries = shlex.quote(str(last / "map")), shlex.quote(str(last / "queries"))
    _say(f"The split is in {out / 'split.yaml'}. Next, for {last.name} as for each of them:")
    _say(f"  ep2ploc train --site {site_map}")
    _say(f"  ep2ploc evaluate {site_map} {site_queries} --repeats 3")
    _say(f"  ep2ploc evaluate {site_map} {site_queries} --protocol global")
    if (out / "train.yaml").is_file():
        training = out / "train.yaml"
        _say(f"or one network for all that is to train on, {training}, and with it to what is to test on:")
        _say(f"  ep2ploc train {shlex.quote(str(training))}")
        network = shlex.quote(str(out / "training/network.safetensors"))
        _say(f"  ep2ploc map encode {site_map} --checkpoint {network}")
        _say(f"  ep2ploc evaluate {site_map} {site_queries} --checkpoint {network} --repeats 3")


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)
