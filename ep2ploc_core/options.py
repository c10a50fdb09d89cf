"""Options that several commands have, and how they are read."""

from typing import Annotated

import numpy as np
import typer

from ep2ploc_core.errors import InputError

Refine = Annotated[
    str, typer.Option(help="align: refine the pose by feature alignment; align_first: the prior; none; auto.")
]
Landmarks = Annotated[bool, typer.Option(help="Look for features of the mapping images too, where the map has them.")]
ImageTopic = Annotated[
    str, typer.Option(help="Of a bag: by default the one of colour or grey images with camera_info and most messages.")
]
LidarFromCamera = Annotated[
    str, typer.Option(help="Of a bag: x,y,z,qx,qy,qz,qw of the camera in the LiDAR's frame, where TF does not tell.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: the GPU where there is one.")]


def parse_pose(text: str) -> list[float]:
    """The seven numbers of a pose as it is given on the command line. Raises InputError where it cannot be read."""
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 7 or not np.isfinite(numbers).all() or not any(numbers[3:]):
        raise InputError(f"The pose '{text}' cannot be read; give x,y,z,qx,qy,qz,qw.")
    return numbers
