"""Options that several commands have."""

from typing import Annotated

import typer

Refine = Annotated[
    str, typer.Option(help="align: refine the pose by feature alignment; align_first: the prior; none; auto.")
]
Landmarks = Annotated[bool, typer.Option(help="Look for features of the mapping images too, where the map has them.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: the GPU where there is one.")]
