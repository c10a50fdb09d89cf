"""Which network goes with a map: the one that encoded it, and no other."""

from __future__ import annotations

from pathlib import Path

import torch

from ep2ploc_core.errors import CheckpointError, MapError
from ep2ploc_core.model.checkpoint import load_network
from ep2ploc_core.model.ep2ploc import EP2PLoc
from ep2ploc_ros.map_info import MapDescription

SHIPPED = "edge"


def network_for(described: MapDescription, checkpoint: str) -> EP2PLoc:
    """The network of the parameter `checkpoint` for this map.

    "auto" is the map's own file, or the shipped network where the map has none. Raises MapError when the map is not
    encoded and CheckpointError when the network is not here or is not the one that encoded the map.
    """
    if not described.checkpoint:
        raise MapError(f"The map {described.path} has no descriptors; build it again with --checkpoint.")
    name = checkpoint
    if checkpoint == "auto":
        name = described.checkpoint_file or SHIPPED
        if described.checkpoint_file and not Path(name).exists():
            raise CheckpointError(
                f"The map was encoded with {name}, which is not on this machine; copy it here and set the parameter "
                "checkpoint to where it is."
            )
    network = load_network(name)
    if network.fingerprint != described.checkpoint:
        raise CheckpointError(
            f"The map {described.path} was encoded by the network {described.checkpoint}, but {name} is "
            f"{network.fingerprint}; set the parameter checkpoint to the right file, or build the map with this one."
        )
    return network


def device_for(device: str) -> str:
    """The device of the parameter `device`: "auto" takes a GPU where there is one."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
