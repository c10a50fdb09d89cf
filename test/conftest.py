"""A small site that every test of the whole way shares: a synthetic drive, its map, a network that has learned it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ep2ploc_core import se3
from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.kitti import KittiDrive
from ep2ploc_core.datasets.synthetic import write_synthetic_drive
from ep2ploc_core.map.build import accumulate
from ep2ploc_core.map.encode import encode_map
from ep2ploc_core.map.point_map import MapInfo, write_map
from ep2ploc_core.map.sources import KittiSource
from ep2ploc_core.model.checkpoint import load_network
from ep2ploc_core.training.processes import run_everywhere
from ep2ploc_core.training.site import SITE_SCHEDULE, adapt_to_site

# The tests and their child processes share the machine's few cores: one thread each. With one thread sums have one
# order too, which the tests of exact resumption need, as training on a CPU does.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


@dataclass
class Site:
    """`query`: the frame whose image, truth and wrong start `prior` are given, poses map_from_camera `(4, 4)`."""

    map_path: Path
    drive_path: Path
    query: int
    image: np.ndarray
    camera: Camera
    truth: np.ndarray
    prior: np.ndarray


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The query's scan is in this map and its image was trained on: good for testing the plumbing, not for figures."""
    path = tmp_path_factory.mktemp("site")
    drive_path = write_synthetic_drive(path, frames=24, seed=7)
    source = KittiSource(drive_path)
    info = MapInfo(voxel_size=0.2, source=source.describe())
    point_map = write_map(path / "map", accumulate(source.scans(), 0.2), info)
    encode_map(point_map, load_network("edge"))
    schedule = replace(SITE_SCHEDULE, steps=250, warmup=20, ema=0.97)
    run_everywhere(adapt_to_site, torch.device("cpu"), path / "map", "edge", schedule)
    drive = KittiDrive(drive_path)
    frame = drive.frame(10)
    truth = drive.map_from_camera(frame)
    error = np.array([0.6, -0.1, -0.8, 0.01, 0.05, -0.01])
    prior = truth @ se3.exp(torch.from_numpy(error)).numpy()
    return Site(path / "map", drive_path, 10, drive.read_image(frame), drive.camera, truth, prior)
