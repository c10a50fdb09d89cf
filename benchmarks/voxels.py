"""How long it takes to find voxels and their neighbours, in PyTorch and, where it is installed, in MinkowskiEngine.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/voxels.py

A made-up street canyon, one point per map voxel of 0.2 m on average; network voxels of 0.5 m and two coarser levels, as
the point encoder makes of it. The shortest of 15 runs, in milliseconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ep2ploc_core.errors import InputError
from ep2ploc_core.model.voxel_backend import VARIABLE, VoxelBackend, voxel_backend

SIZE = 0.5  # metres
LENGTHS = (100.0, 300.0)  # of the canyon, metres
DENSITY = 25  # points per square metre
RUNS = 15


def main() -> None:
    """Prints the table."""
    table = Table(title=f"finding voxels and neighbours, ms; threads: {torch.get_num_threads()}")
    for column in ("voxels", "backend", "voxelize", "coarsen", "neighbour_pairs", "all three levels"):
        table.add_column(column, justify="right")
    for length in LENGTHS:
        xyz = canyon(length)
        for name in ("torch", "minkowski"):
            with patch.dict(os.environ, {VARIABLE: name}):
                try:
                    measured = times(xyz, voxel_backend())
                except InputError:
                    table.add_row("", name, "not installed")
                else:
                    table.add_row(f"{measured.pop('voxels'):,.0f}", name, *(f"{ms:.1f}" for ms in measured.values()))
    Console().print(table)


def canyon(length: float) -> Tensor:
    """Points `(N, 3)` on a street 20 m wide and on the walls beside it, 12 m high, with 3 cm of noise."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for width, axis, offset in ((20.0, 1, 0.0), (12.0, 2, -10.0), (12.0, 2, 10.0)):
        drawn = torch.rand(int(length * width * DENSITY), 2, generator=generator) * torch.tensor([length, width])
        xyz = torch.zeros(len(drawn), 3)
        xyz[:, 0], xyz[:, axis] = drawn[:, 0], drawn[:, 1] - (10 if axis == 1 else 0)
        xyz[:, 3 - axis] = offset
        parts.append(xyz)
    everything = torch.cat(parts)
    return everything + 0.03 * torch.randn(everything.shape, generator=generator)


def times(
    xyz: Tensor, backend: VoxelBackend, runs: int = RUNS, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """How many voxels points `(N, 3)` make, and the milliseconds of finding them and their neighbours."""
    batch = torch.zeros(len(xyz), dtype=torch.long)
    voxels = backend.voxelize(xyz, batch, SIZE)

    def levels() -> None:
        level = backend.voxelize(xyz, batch, SIZE)
        backend.neighbour_pairs(level)
        for _ in range(2):
            level = backend.coarsen(level)
            backend.neighbour_pairs(level)

    works: dict[str, Callable[[], object]] = {
        "voxelize": lambda: backend.voxelize(xyz, batch, SIZE),
        "coarsen": lambda: backend.coarsen(voxels),
        "neighbour_pairs": lambda: backend.neighbour_pairs(voxels),
        "levels": levels,
    }
    return {"voxels": len(voxels), **{name: _shortest(work, runs, clock) for name, work in works.items()}}


def _shortest(work: Callable[[], object], runs: int, clock: Callable[[], float]) -> float:
    """Milliseconds."""
    seconds = []
    for _ in range(runs):
        begun = clock()
        work()
        seconds.append(clock() - begun)
    return 1000 * min(seconds)


if __name__ == "__main__":
    main()
