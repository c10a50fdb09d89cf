"""Weights files: safetensors with the network's configuration inside, recognised by a fingerprint of their content."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ep2ploc_core.errors import CheckpointError, InputError
from ep2ploc_core.model.ep2ploc import EP2PLoc, NetworkConfig

WEIGHTS_DIRECTORY = Path(__file__).resolve().parent.parent / "weights"
PLACES_NOTE = "places"  # in the notes of networks whose global descriptors have learned a site
_KIND = "ep2ploc network"


def save_network(network: EP2PLoc, path: Path, notes: dict[str, str] | None = None) -> str:
    """Writes the weights as fp16 (integers as they are) and returns the fingerprint of the file's content."""
    tensors = {
        name: value.detach().cpu().to(torch.float16 if value.is_floating_point() else value.dtype).contiguous()
        for name, value in network.state_dict().items()
    }
    metadata = {"kind": _KIND, "config": json.dumps(asdict(network.config)), **(notes or {})}
    write_safetensors(tensors, path, metadata)
    network.fingerprint = fingerprint(tensors)
    return network.fingerprint


def load_network(name_or_path: str | Path, device: str | torch.device = "cpu") -> EP2PLoc:
    """The network of a weights file, or of a name that comes with the package ("edge"), ready to localize.

    Raises CheckpointError when the file is missing, corrupted, or holds something else.
    """
    path = Path(name_or_path)
    if path.suffix != ".safetensors" and (WEIGHTS_DIRECTORY / f"{name_or_path}.safetensors").is_file():
        path = WEIGHTS_DIRECTORY / f"{name_or_path}.safetensors"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in WEIGHTS_DIRECTORY.glob("*.safetensors"))) or "none"
        raise CheckpointError(f"There is no weights file {name_or_path}; these come with the package: {shipped}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        if metadata.get("kind") != _KIND:
            raise CheckpointError(f"{path} is no weights file of this network; give one that `ep2ploc train` wrote.")
        network = EP2PLoc(NetworkConfig(**json.loads(metadata["config"])))
        network.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError, InputError) as error:
        raise CheckpointError(f"The weights file {path} is corrupted or of another version; get it again.") from error
    network.fingerprint = fingerprint(tensors)
    network.knows_places = PLACES_NOTE in metadata
    return network.eval().to(device)


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """Eight hex digits of the names and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def write_safetensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes aside, then renames: a file of this name is always whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    save_file(tensors, str(aside), metadata)
    os.replace(aside, path)
