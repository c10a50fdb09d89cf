"""One YAML file is one experiment: data, network, samples, losses, schedule; `key=value` overrides."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ep2ploc_core.datasets.sampling import SamplingSettings
from ep2ploc_core.errors import InputError
from ep2ploc_core.model.ep2ploc import NetworkConfig
from ep2ploc_core.training.losses import LossWeights
from ep2ploc_core.training.trainer import Schedule


@dataclass
class TrainConfig:
    """`drives`: KITTI raw drives; `maps`: maps, learned from with the images of their recordings; `pairs`: a directory
    in KITTI object layout, with the range of numbers to take for each first letter of the names; `streets`: how many
    synthetic streets of `street_frames` images to make and learn from, seeds FIRST_STREET and up; `start_from`: weights
    to begin with, or empty; `network` then counts only for what they lack, the features for the refinement by
    alignment."""

    out: str = "out/training"
    device: str = "auto"
    drives: list[str] = field(default_factory=list)
    maps: list[str] = field(default_factory=list)
    pairs: str = ""
    pair_ranges: dict[str, list[int]] = field(default_factory=dict)
    streets: int = 0
    street_frames: int = 40
    start_from: str = ""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    losses: LossWeights = field(default_factory=LossWeights)
    schedule: Schedule = field(default_factory=Schedule)


def load_config(path: Path, overrides: list[str]) -> TrainConfig:
    """The configuration of a YAML file, with `key=value` overrides; every key is checked against TrainConfig."""
    if not Path(path).is_file():
        raise InputError(f"There is no training configuration {path}.")
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(TrainConfig), OmegaConf.load(path), OmegaConf.from_dotlist(overrides)
        )
        return cast(TrainConfig, cast(Any, OmegaConf.to_object(merged)))
    except OmegaConfBaseException as error:
        raise InputError(f"The training configuration {path} is wrong: {str(error).splitlines()[0]}.") from error
    except Exception as error:  # YAML's own errors have no common base that OmegaConf exports
        raise InputError(f"The training configuration {path} cannot be read: {str(error).splitlines()[0]}.") from error
