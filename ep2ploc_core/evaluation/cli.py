"""`ep2ploc evaluate`: how far the poses of queries are from the truth."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ep2ploc_core.errors import InputError
from ep2ploc_core.options import Device, Landmarks, Refine
from ep2ploc_core.progress import console, stage_bars

# Which of the options that do not make sense everywhere a protocol takes.
PROTOCOLS = {
    "tracking": {"--noise", "--repeats", "--seed", "--swap", "--foreign", "--refine", "--no-landmarks", "--method"},
    "global": {"--swap", "--foreign", "--refine", "--no-landmarks", "--method"},
    "retrieval": {"--swap"},
    "registration": {"--noise", "--repeats", "--seed", "--swap", "--refine"},
}


def evaluate(
    map_path: Annotated[
        Path, typer.Argument(metavar="MAP", help="For registration the recording that the queries come from.")
    ],
    queries: Annotated[Path, typer.Argument(metavar="QUERIES")],
    protocol: Annotated[
        str,
        typer.Option(
            help="tracking: from a wrong start; global: without any; retrieval: the views most like the image; "
            "registration: in the query's own scan."
        ),
    ] = "tracking",
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="network, or a baseline: nid, edges, retrieval, sift. Given several times, all go into one table."
        ),
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option(help="Largest start error. Tracking: 10 voxels, 10 degrees; registration: 10m,180deg."),
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Starts per query; 1 if not given.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Of the start errors; 0 if not given.")] = None,
    swap: Annotated[bool, typer.Option(help="Control: give each query another one's image.")] = False,
    foreign: Annotated[Path | None, typer.Option(help="Control: images of these queries, of another site.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write every result here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Write plots into this directory.")] = None,
    checkpoint: Annotated[str, typer.Option(help="Weights; auto: those the map was encoded with.")] = "auto",
    refine: Refine = "auto",
    landmarks: Landmarks = True,
    device: Device = "auto",
) -> None:
    """Localize queries with known poses and compare."""
    from ep2ploc_core.datasets.queries import Queries
    from ep2ploc_core.evaluation.report import comparison_grid, report_grids
    from ep2ploc_core.evaluation.run import Evaluation, evaluate_in_map, evaluate_in_scans
    from ep2ploc_core.visualization.plots import plot_evaluation
    from ep2ploc_core.written_file import write_json, write_text

    given = {
        "--noise": noise, "--repeats": repeats, "--seed": seed, "--swap": swap or None, "--foreign": foreign,
        "--method": method or None, "--refine": None if refine == "auto" else refine,
        "--no-landmarks": None if landmarks else True,
    }  # fmt: skip
    _check_options(protocol, [name for name, value in given.items() if value is not None])
    methods = _check_methods(method or ["network"], plots is not None)
    _check_network_options(methods, refine, checkpoint)
    if foreign and (swap or plots):
        raise InputError("With --foreign there are no right poses, so neither --swap nor --plots goes with it.")
    limits = _parse_noise(noise) if noise else None
    asked = Queries(queries)
    others = Queries(foreign) if foreign else None
    wanted = Evaluation(protocol, limits, repeats or 1, seed or 0, swap, others, checkpoint, refine, landmarks, device)
    point_map, reports = None, {}
    with stage_bars() as progress:
        for name in methods:
            bar = partial(progress, "localizing" if methods == ["network"] else name)
            if protocol == "registration":
                reports[name] = evaluate_in_scans(map_path, asked, wanted, bar)
            else:
                reports[name], point_map = evaluate_in_map(map_path, asked, replace(wanted, method=name), bar)
    report = reports[methods[0]]
    same = report["summary"].get("queries_at_mapping_images")
    if same:
        console.print(
            f"{same} of {len(asked)} queries lie where an image of the mapping run was taken: was the map built "
            "with --hold-out? If not, these figures say little."
        )
    grids = report_grids(report) if len(reports) == 1 else [comparison_grid(reports)]
    for grid in grids:
        Console().print(grid.on_terminal())
    if json_out:
        write_json(json_out, report if len(reports) == 1 else {"methods": reports})
    if markdown:
        write_text(markdown, "\n".join(grid.in_markdown() for grid in grids))
    if plots and asked.map_from_camera is not None:
        plot_evaluation(report, asked.map_from_camera, point_map, plots)


def _check_methods(methods: list[str], plotted: bool) -> list[str]:
    """The methods, each once."""
    from ep2ploc_core.evaluation.run import METHODS

    for name in methods:
        if name not in METHODS:
            raise InputError(f"The method '{name}' is not known; there are: {', '.join(METHODS)}.")
    methods = list(dict.fromkeys(methods))
    if plotted and len(methods) > 1:
        raise InputError("--plots draws one method; give a single --method with it.")
    return methods


def _check_network_options(methods: list[str], refine: str, checkpoint: str) -> None:
    users = {"--refine": (refine, {"network"}), "--checkpoint": (checkpoint, {"network", "retrieval"})}
    for name, (value, used_by) in users.items():
        if value != "auto" and not used_by & set(methods):
            raise InputError(f"{name} is of the network, which none of the methods needs; leave it out.")


def _check_options(protocol: str, given: list[str]) -> None:
    if protocol not in PROTOCOLS:
        raise InputError(f"The protocol '{protocol}' is not known; there are: {', '.join(PROTOCOLS)}.")
    for name in given:
        if name not in PROTOCOLS[protocol]:
            raise InputError(f"{name} does not apply to the protocol '{protocol}'; leave it out.")


def _parse_noise(text: str) -> tuple[float, float]:
    """Metres and degrees."""
    number = r"(\d+(?:\.\d*)?|\.\d+)"
    numbers = re.fullmatch(f"{number}m,{number}deg", text)
    if not numbers:
        raise InputError(f"The noise '{text}' cannot be read; write it like 2m,10deg.")
    return float(numbers[1]), float(numbers[2])
