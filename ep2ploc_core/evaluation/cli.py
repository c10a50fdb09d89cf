"""`ep2ploc evaluate`: how far the poses of queries are from the truth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ep2ploc_core.errors import InputError
from ep2ploc_core.options import Device, Refine
from ep2ploc_core.progress import console, progress_bar


def evaluate(
    map_path: Annotated[Path, typer.Argument(metavar="MAP")],
    queries: Annotated[Path, typer.Argument(metavar="QUERIES")],
    protocol: Annotated[str, typer.Option(help="tracking: from a wrong start; global: without any.")] = "tracking",
    noise: Annotated[str | None, typer.Option(help="Tracking: largest start error; 10 voxels, 10 degrees.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Tracking: starts per query; 1 if not given.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Tracking: of the start errors; 0 if not given.")] = None,
    swap: Annotated[bool, typer.Option(help="Control: give each query another one's image.")] = False,
    foreign: Annotated[Path | None, typer.Option(help="Control: images of these queries, of another site.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write every result here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Write plots into this directory.")] = None,
    checkpoint: Annotated[str, typer.Option(help="Weights; auto: those the map was encoded with.")] = "auto",
    refine: Refine = "auto",
    device: Device = "auto",
) -> None:
    """Localize queries with known poses and compare."""
    from ep2ploc_core.datasets.queries import Queries
    from ep2ploc_core.evaluation.mapping_distance import SAME_PLACE_METRES, distance_to_mapping
    from ep2ploc_core.evaluation.protocols import GlobalProtocol, TrackingProtocol, evaluate_global, evaluate_tracking
    from ep2ploc_core.evaluation.report import report_grids
    from ep2ploc_core.map.unit import unit_of
    from ep2ploc_core.map_localizer import open_localizer
    from ep2ploc_core.visualization.plots import plot_evaluation
    from ep2ploc_core.written_file import write_json, write_text

    if protocol not in ("tracking", "global"):
        raise InputError(f"The protocol '{protocol}' is not known; there are: tracking, global.")
    of_tracking = {"--noise": noise, "--repeats": repeats, "--seed": seed}
    given = [name for name, value in of_tracking.items() if value is not None]
    if protocol == "global" and given:
        raise InputError(f"The protocol 'global' has no starts, so {given[0]} does not apply; leave it out.")
    if foreign and (swap or plots):
        raise InputError("With --foreign there are no right poses, so neither --swap nor --plots goes with it.")
    limits = _parse_noise(noise) if noise else None
    asked = Queries(queries)
    others = Queries(foreign) if foreign else None
    localizer, point_map = open_localizer(map_path, checkpoint, device, refine, search=protocol == "global")
    metres, degrees = limits or (2.0 * unit_of(point_map.voxel_size), 10.0)
    with progress_bar("localizing") as progress:
        if protocol == "tracking":
            settings = TrackingProtocol(metres, degrees, repeats or 1, seed or 0, swap)
            report = evaluate_tracking(localizer, asked, settings, progress, others)
        else:
            report = evaluate_global(localizer, asked, GlobalProtocol(swap), progress, others)
    report = {
        "map": str(map_path),
        "metres_per_unit": unit_of(point_map.voxel_size),
        "queries": str(queries),
        "network": localizer.network.fingerprint,
        "refine": refine,
        **report,
    }
    truth = asked.map_from_camera
    distance = None if truth is None else distance_to_mapping(point_map, truth)
    if distance is not None:
        for row in report["results"]:
            row["distance_to_mapping_m"] = round(float(distance[row["query"]]), 3)
        same = report["summary"]["queries_at_mapping_images"] = int((distance < SAME_PLACE_METRES).sum())
        if same:
            console.print(
                f"{same} of {len(asked)} queries lie where an image of the mapping run was taken: was the map built "
                "with --hold-out? If not, these figures say little."
            )
    grids = report_grids(report)
    for grid in grids:
        Console().print(grid.on_terminal())
    if json_out:
        write_json(json_out, report)
    if markdown:
        write_text(markdown, "\n".join(grid.in_markdown() for grid in grids))
    if plots and truth is not None:
        plot_evaluation(report, truth, point_map, plots)


def _parse_noise(text: str) -> tuple[float, float]:
    """Metres and degrees."""
    number = r"(\d+(?:\.\d*)?|\.\d+)"
    numbers = re.fullmatch(f"{number}m,{number}deg", text)
    if not numbers:
        raise InputError(f"The noise '{text}' cannot be read; write it like 2m,10deg.")
    return float(numbers[1]), float(numbers[2])
