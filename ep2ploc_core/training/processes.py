"""Training in several processes: those that torchrun started, or on a CPU one for each core.

On CPU cores two single-threaded processes train half as fast again as one process with two threads.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing

from ep2ploc_core.errors import Ep2plocError, InputError


def choose_device(name: str) -> torch.device:
    """The device of a setting "auto", "cpu" or "cuda"."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def run_everywhere(function: Callable[..., None], device: torch.device, *arguments: Any, processes: int = 0) -> None:
    """Calls `function(device, *arguments)` in each process of the training.

    Under torchrun this process is one of them. Else on a CPU `processes` are started here (0: one for each core, four
    at the most); on a GPU the function is called once.
    """
    if "RANK" in os.environ:
        backend = "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        distributed.init_process_group(backend)
        _call(function, device, arguments)
        distributed.destroy_process_group()
        return
    count = processes or min(4, len(os.sched_getaffinity(0)))
    if device.type == "cuda" or count == 1:
        function(device, *arguments)
        return
    with tempfile.TemporaryDirectory() as meeting:
        try:
            multiprocessing.spawn(_process, (os.getpid(), count, meeting, function, device, arguments), nprocs=count)
        except (multiprocessing.ProcessExitedException, multiprocessing.ProcessRaisedException):
            message = Path(meeting) / "error"
            if message.exists():
                raise InputError(message.read_text()) from None
            raise


def _process(
    rank: int,
    parent: int,
    count: int,
    meeting: str,
    function: Callable[..., None],
    device: torch.device,
    arguments: tuple[Any, ...],
) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # the processes are all on this machine
    address = f"file://{Path(meeting) / 'rendezvous'}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=count)
    try:
        _call(function, device, arguments)
    except Ep2plocError as error:
        (Path(meeting) / "error").write_text(str(error))
        raise SystemExit(2) from None
    distributed.destroy_process_group()


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone: one that was killed cannot end its children itself."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _call(function: Callable[..., None], device: torch.device, arguments: tuple[Any, ...]) -> None:
    if device.type == "cpu":
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
    function(device, *arguments)
