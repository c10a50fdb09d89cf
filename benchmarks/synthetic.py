"""How fast synthetic drives are made: the sun's shadows of a street, an image, a scan, and whole drives.

    .venv/bin/python benchmarks/synthetic.py [--frames 20] [--device cuda]

Single steps are timed on one thread, as they run when a drive is written; a drive is written on as many threads as
torch may use, with nothing moving and with all that can move. Both wall time and the process's own time are shown:
where they differ much from what the threads explain, something else was using the machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ep2ploc_core.datasets import synthetic
from ep2ploc_core.datasets.synthetic_moving import KINDS
from ep2ploc_core.datasets.synthetic_render import ShadowMap
from ep2ploc_core.datasets.synthetic_sensors import Exposure, Lidar, SensorRig
from ep2ploc_core.datasets.synthetic_street import random_street

SEED = 0
REPEATS = 8


def seconds(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Wall time and the process's own time that some work takes."""
    wall, own = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - own


def steps(device: torch.device, frames: int) -> list[tuple[str, float, float]]:
    """Wall and own seconds of the parts that a drive of so many frames is made of."""
    scene = random_street(-synthetic.BEHIND, frames * synthetic.STEP + synthetic.AHEAD, SEED, device)
    rig = SensorRig(scene, SEED)
    trajectory = synthetic.drive_along(scene.road, frames, SEED)
    chosen = trajectory[np.linspace(0, frames - 1, REPEATS).astype(int)]
    generator = torch.Generator().manual_seed(SEED)

    def tensor(pose: np.ndarray) -> torch.Tensor:
        return torch.tensor(pose, dtype=torch.float32, device=device)

    def images() -> None:
        for pose in chosen @ np.linalg.inv(synthetic.CAMERA_FROM_LIDAR):
            rig.image(synthetic.CAMERA, tensor(pose), Exposure(), generator)

    def scans() -> None:
        for pose in chosen:
            rig.scan(Lidar(), tensor(pose), generator)

    size = f"{synthetic.CAMERA.width}x{synthetic.CAMERA.height}"
    shadows = seconds(lambda: ShadowMap(scene, rig.noise), device)
    return [
        (f"shadows of a street of {frames * synthetic.STEP + synthetic.AHEAD + synthetic.BEHIND:.0f} m", *shadows),
        (f"image {size}", *np.divide(seconds(images, device), REPEATS)),
        ("scan", *np.divide(seconds(scans, device), REPEATS)),
    ]


def drive(device: torch.device, frames: int, moving: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as directory:
        return seconds(
            lambda: synthetic.write_synthetic_drive(Path(directory), frames, SEED, device=device, moving=moving), device
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=20, help="length of the drives that are written")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device, threads = torch.device(arguments.device), torch.get_num_threads()

    torch.set_num_threads(1)
    rows = steps(device, arguments.frames)
    torch.set_num_threads(threads)
    for moving in (0, len(KINDS)):
        wall, own = drive(device, arguments.frames, moving)
        name = f"drive of {arguments.frames} frames, {moving} moving: {arguments.frames / wall:.1f} frames per second"
        rows.append((name, wall, own))

    model = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    table = Table(title=f"Synthetic drives on {model}, {os.cpu_count()} cores, {threads} threads")
    table.add_column("step")
    table.add_column("wall s", justify="right")
    table.add_column("process s", justify="right")
    for name, wall, own in rows:
        table.add_row(name, f"{wall:.2f}", f"{own:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
