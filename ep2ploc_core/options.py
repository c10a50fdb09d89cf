"""Options that several commands have."""

from typing import Annotated

import typer

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
