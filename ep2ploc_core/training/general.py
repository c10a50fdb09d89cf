"""Training of the network that comes with the package, from a configuration file."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as distributed
from omegaconf import OmegaConf
from rich.progress import Progress

from ep2ploc_core.datasets.sampling import Sampler
from ep2ploc_core.datasets.synthetic import drive_path, write_synthetic_drive
from ep2ploc_core.model.checkpoint import load_network
from ep2ploc_core.model.ep2ploc import EP2PLoc
from ep2ploc_core.training.config import TrainConfig
from ep2ploc_core.training.scenes import load_scenes
from ep2ploc_core.training.trainer import Trainer

FIRST_STREET = 1000  # seeds below are left to demonstrations and tests


def train_network(device: torch.device, config: TrainConfig) -> None:
    """Runs or resumes the experiment of `config`; its `out` ends with network.safetensors and config.yaml."""
    torch.manual_seed(config.schedule.seed)
    network = load_network(config.start_from) if config.start_from else EP2PLoc(config.network)
    if config.network.alignment_width and network.alignment_head is None:
        network = network.with_alignment(config.network.alignment_width)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    drives = [*config.drives, *map(str, _streets(out / "streets", config.streets, config.street_frames))]
    with Progress(transient=True) as progress:
        task = progress.add_task("reading data", total=None)
        scenes = load_scenes(
            drives, config.pairs, config.pair_ranges,
            lambda done, total: progress.update(task, completed=done, total=total), config.maps,
        )  # fmt: skip
    OmegaConf.save(OmegaConf.structured(config), out / "config.yaml")
    sampler = Sampler(scenes, network.config.image_width, config.sampling, config.schedule.seed)
    Trainer(network, sampler, config.schedule, config.losses, out, device).run()


def _streets(directory: Path, count: int, frames: int) -> list[Path]:
    """Synthetic drives in `directory`, made by the first process where they are missing or of another length."""
    seeds = range(FIRST_STREET, FIRST_STREET + count)
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        missing = [s for s in seeds if len([*(drive_path(directory, s) / "image_02/data").glob("*.jpg")]) != frames]
        with Progress(transient=True) as progress:
            for seed in progress.track(missing, description="streets"):
                write_synthetic_drive(directory, frames, seed)
    if distributed.is_initialized():
        distributed.barrier()
    return [drive_path(directory, seed) for seed in seeds]
