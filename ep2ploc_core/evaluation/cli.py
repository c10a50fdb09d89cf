"""`ep2ploc evaluate`: how far the poses of queries are from the truth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ep2ploc_core.errors import InputError
from ep2ploc_core.options import Device, Refine
from ep2ploc_core.progress import console, progress_bar

# Which of the options that do not make sense everywhere a protocol takes.
PROTOCOLS = {
    "tracking": {"--noise", "--repeats", "--seed", "--swap", "--foreign", "--refine"},
    "global": {"--swap", "--foreign", "--refine"},
    "retrieval": {"--swap"},
}


def evaluate(
    map_path: Annotated[Path, typer.Argument(metavar="MAP")],
    queries: Annotated[Path, typer.Argument(metavar="QUERIES")],
    protocol: Annotated[
        str,
        typer.Option(help="tracking: from a wrong start; global: without any; retrieval: which place it looks like."),
    ] = "tracking",
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
    from ep2ploc_core.evaluation.protocols import GlobalProtocol, TrackingProtocol, evaluate_global, evaluate_tracking
    from ep2ploc_core.evaluation.report import report_grids
    from ep2ploc_core.evaluation.retrieval import RetrievalProtocol, evaluate_retrieval
    from ep2ploc_core.map.place_index import describe_image
    from ep2ploc_core.map.unit import unit_of
    from ep2ploc_core.map_localizer import open_localizer
    from ep2ploc_core.visualization.plots import plot_evaluation
    from ep2ploc_core.written_file import write_json, write_text

    given = {
        "--noise": noise, "--repeats": repeats, "--seed": seed, "--swap": swap or None, "--foreign": foreign,
        "--refine": None if refine == "auto" else refine,
    }  # fmt: skip
    _check_options(protocol, [name for name, value in given.items() if value is not None])
    if foreign and (swap or plots):
        raise InputError("With --foreign there are no right poses, so neither --swap nor --plots goes with it.")
    limits = _parse_noise(noise) if noise else None
    asked = Queries(queries)
    others = Queries(foreign) if foreign else None
    localizer, point_map = open_localizer(map_path, checkpoint, device, refine, search=protocol != "tracking")
    unit = unit_of(point_map.voxel_size)
    metres, degrees = limits or (2.0 * unit, 10.0)
    with progress_bar("localizing") as progress:
        if protocol == "tracking":
            settings = TrackingProtocol(metres, degrees, repeats or 1, seed or 0, swap)
            report = evaluate_tracking(localizer, asked, settings, progress, others)
        elif protocol == "global":
            report = evaluate_global(localizer, asked, GlobalProtocol(swap), progress, others)
        else:
            localizer.check_map()
            if not localizer.places:
                raise InputError(f"The map {map_path} has no places; `ep2ploc train --site` finds and learns them.")
            wanted = RetrievalProtocol(tuple(unit * metres for metres in RetrievalProtocol.metres), swap=swap)
            report = evaluate_retrieval(
                lambda image, camera: describe_image(localizer.network, image, camera),
                localizer.places, asked, wanted, progress,
            )  # fmt: skip
    report = {
        "map": str(map_path),
        "metres_per_unit": unit,
        "queries": str(queries),
        "network": localizer.network.fingerprint,
        "refine": refine,
        **report,
    }
    truth = asked.map_from_camera
    if truth is not None:
        _add_distances(report, truth, point_map)
    grids = report_grids(report)
    for grid in grids:
        Console().print(grid.on_terminal())
    if json_out:
        write_json(json_out, report)
    if markdown:
        write_text(markdown, "\n".join(grid.in_markdown() for grid in grids))
    if plots and truth is not None:
        plot_evaluation(report, truth, point_map, plots)


def _check_options(protocol: str, given: list[str]) -> None:
    if protocol not in PROTOCOLS:
        raise InputError(f"The protocol '{protocol}' is not known; there are: {', '.join(PROTOCOLS)}.")
    for name in given:
        if name not in PROTOCOLS[protocol]:
            raise InputError(f"{name} does not apply to the protocol '{protocol}'; leave it out.")


def _add_distances(report: dict[str, Any], truth: Any, point_map: Any) -> None:
    """Adds how far each query `(N, 4, 4)` is from the mapping images, and says so where that is nothing."""
    from ep2ploc_core.evaluation.mapping_distance import SAME_PLACE_METRES, distance_to_mapping

    distance = distance_to_mapping(point_map, truth)
    if distance is None:
        return
    for row in report["results"]:
        row["distance_to_mapping_m"] = round(float(distance[row["query"]]), 3)
    same = report["summary"]["queries_at_mapping_images"] = int((distance < SAME_PLACE_METRES).sum())
    if same:
        console.print(
            f"{same} of {len(truth)} queries lie where an image of the mapping run was taken: was the map built "
            "with --hold-out? If not, these figures say little."
        )


def _parse_noise(text: str) -> tuple[float, float]:
    """Metres and degrees."""
    number = r"(\d+(?:\.\d*)?|\.\d+)"
    numbers = re.fullmatch(f"{number}m,{number}deg", text)
    if not numbers:
        raise InputError(f"The noise '{text}' cannot be read; write it like 2m,10deg.")
    return float(numbers[1]), float(numbers[2])
