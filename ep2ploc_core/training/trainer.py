"""The training loop: batches by number, several processes by torchrun, exact resume, TensorBoard."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as distributed
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from ep2ploc_core.datasets.sampling import Batch, Sampler
from ep2ploc_core.errors import CheckpointError
from ep2ploc_core.model.checkpoint import save_network, write_safetensors
from ep2ploc_core.model.ep2ploc import EP2PLoc
from ep2ploc_core.model.voxels import voxelize
from ep2ploc_core.training.losses import LossWeights, compute_losses

PROGRESS_COLUMNS = (
    TextColumn("training"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
    TextColumn("{task.fields[note]}"),
)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. `noise_start` is the share of the full start error at the beginning; it reaches 1 after
    `noise_ramp` of all steps."""

    steps: int = 5000
    learning_rate: float = 1.0e-3
    code_learning_rate: float = 1.0e-2
    warmup: int = 200
    weight_decay: float = 0.02
    clip: float = 1.0
    ema: float = 0.998
    noise_start: float = 0.3
    noise_ramp: float = 0.3
    save_seconds: float = 180.0
    log_steps: int = 20
    bf16: bool = True
    workers: int = 0
    seed: int = 0


class SiteCodes(nn.Module):
    """What adaptation learns of each voxel of one site, beyond its geometry: `(V, D)`, zero at first."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(count, width))

    def of_voxels(self, batch: Batch, voxel_size: float) -> Tensor | None:
        """The codes `(V, D)` of the batch's voxels in the order in which the point encoder makes them."""
        if batch.code_voxel is None:
            return None
        voxels = voxelize(batch.xyz, batch.cloud, voxel_size)
        site_voxel = torch.zeros(len(voxels), dtype=torch.long, device=batch.xyz.device)
        site_voxel[voxels.parent] = batch.code_voxel
        return self.table[site_voxel]


@dataclass
class Trainer:
    """Trains `network` (and the site's `codes`) on the batches of `sampler`; everything it writes lies in `out`."""

    network: EP2PLoc
    sampler: Sampler
    schedule: Schedule
    weights: LossWeights
    out: Path
    device: torch.device
    codes: SiteCodes | None = None
    step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.network.to(self.device)
        groups = [{"params": list(self.network.parameters()), "base": self.schedule.learning_rate}]
        if self.codes is not None:
            self.codes.to(self.device)
            groups.append({
                "params": list(self.codes.parameters()), "base": self.schedule.code_learning_rate, "weight_decay": 0.0,
            })  # fmt: skip
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=self.schedule.weight_decay, fused=True)
        self.average = {name: value.clone() for name, value in self._state().items()}
        self.rank = distributed.get_rank() if distributed.is_initialized() else 0
        self.processes = distributed.get_world_size() if distributed.is_initialized() else 1

    def run(self) -> dict[str, float]:
        """Trains until the schedule ends; returns the means of the last log. Resumes what `out` holds."""
        self._resume()
        last_save = time.monotonic()
        writer = SummaryWriter(str(self.out / "tensorboard")) if self.rank == 0 else None
        sums: dict[str, float] = {}
        summed = 0
        means: dict[str, float] = {}
        with Progress(*PROGRESS_COLUMNS, disable=self.rank > 0) as progress:
            task = progress.add_task("", total=self.schedule.steps, completed=self.step, note="")
            if self.rank == 0 and not progress.console.is_terminal:
                print(f"training from step {self.step} to {self.schedule.steps}", flush=True)
            for batch in self._batches():
                log = self._train_step(batch.to(self.device))
                self.step += 1
                for name, value in log.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
                summed += 1
                if self.step % self.schedule.log_steps == 0:
                    means = {name: value / summed for name, value in sums.items()}
                    sums, summed = {}, 0
                    self._log(writer, means)
                    note = f"pose {means['pose']:.2f} patch {means['patch']:.2f}"
                    progress.update(task, note=note)
                    if self.rank == 0 and not progress.console.is_terminal:  # bars are not drawn into files
                        left = progress.tasks[task].time_remaining
                        minutes = "" if left is None else f"  {left / 60:.0f} min left"
                        print(f"step {self.step}/{self.schedule.steps}{minutes}  {note}", flush=True)
                progress.update(task, completed=self.step)
                now = time.monotonic()
                if now - last_save > self.schedule.save_seconds:
                    self._save()
                    last_save = now
        self._save()
        return means

    def averaged_network(self) -> EP2PLoc:
        """The network with the exponential moving average of its weights, which localizes better than the last ones."""
        network = EP2PLoc(self.network.config).to(self.device)
        network.load_state_dict({
            name.removeprefix("network."): value for name, value in self.average.items() if name.startswith("network.")
        })  # fmt: skip
        return network.eval()

    def averaged_codes(self) -> Tensor | None:
        """The moving average of the site's codes `(V, D)`."""
        return self.average.get("codes.table")

    def noise_scale(self, step: int) -> float:
        """The share of the full start error at a step."""
        schedule = self.schedule
        done = min(1.0, step / max(1.0, schedule.noise_ramp * schedule.steps))
        return schedule.noise_start + (1 - schedule.noise_start) * done

    def _batches(self) -> Iterator[Batch]:
        dataset = _Batches(self)
        order = range(self.step, self.schedule.steps)
        workers = self.schedule.workers
        return iter(DataLoader(dataset, batch_size=None, sampler=order, num_workers=workers, pin_memory=workers > 0))

    def _train_step(self, batch: Batch) -> dict[str, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * self._rate(self.step)
        self.network.train()
        generator = torch.Generator().manual_seed(self._batch_number(self.step))
        torch.manual_seed(self._batch_number(self.step))  # of backbones that drop parts at random
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.schedule.bf16):
            codes = None
            if self.codes is not None:
                codes = self.codes.of_voxels(batch, self.network.config.point_voxel)
            losses = compute_losses(self.network, batch, self.weights, generator, codes)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._share_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.schedule.clip)
        if torch.isfinite(norm):
            self.optimizer.step()
        self._update_average()
        return {"loss": losses.total.detach(), "gradient": norm.detach(), **losses.log}

    def _share_gradients(self, parameters: list[nn.Parameter]) -> None:
        if self.processes > 1:
            flat = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
            distributed.all_reduce(flat)
            flat /= self.processes
            pieces = flat.split([parameter.numel() for parameter in parameters])
            for parameter, piece in zip(parameters, pieces, strict=True):
                parameter.grad = piece.view_as(parameter)

    def _batch_number(self, step: int) -> int:
        return step * self.processes + self.rank

    def _rate(self, step: int) -> float:
        schedule = self.schedule
        if step < schedule.warmup:
            return (step + 1) / schedule.warmup
        done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))

    def _state(self) -> dict[str, Tensor]:
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        if self.codes is not None:
            state |= {f"codes.{name}": value for name, value in self.codes.state_dict().items()}
        return state

    def _update_average(self) -> None:
        decay = min(self.schedule.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, value in self._state().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - decay)
                else:
                    self.average[name].copy_(value)

    def _log(self, writer: SummaryWriter | None, means: dict[str, float]) -> None:
        if writer is not None:
            for name, value in means.items():
                writer.add_scalar(name, value, self.step)
            with (self.out / "log.jsonl").open("a") as file:
                file.write(
                    json.dumps({"step": self.step, **{name: round(value, 5) for name, value in means.items()}}) + "\n"
                )

    def _save(self) -> None:
        if self.rank > 0:
            return
        state = {f"model.{name}": value for name, value in self._state().items()}
        state |= {f"average.{name}": value for name, value in self.average.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
        state = {name: value.detach().cpu().clone() for name, value in state.items()}
        write_safetensors(state, self.out / "training.safetensors", {"step": str(self.step)})
        save_network(self.averaged_network(), self.out / "network.safetensors", {"steps": str(self.step)})

    def _resume(self) -> None:
        path = self.out / "training.safetensors"
        self.out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return
        try:
            with safe_open(str(path), framework="pt", device=str(self.device)) as file:
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
                self.step = int(file.metadata()["step"])
            with torch.no_grad():
                for name, value in self._state().items():
                    value.copy_(state[f"model.{name}"])
                    self.average[name].copy_(state[f"average.{name}"])
            slots: dict[int, dict[str, Tensor]] = {}
            for name, value in state.items():
                if name.startswith("optimizer."):
                    _, index, slot = name.split(".")
                    slots.setdefault(int(index), {})[slot] = value
            self.optimizer.load_state_dict(
                {"state": slots, "param_groups": self.optimizer.state_dict()["param_groups"]}
            )
        except Exception as error:
            raise CheckpointError(
                f"The training state {path} does not fit this training; remove it to start again."
            ) from error


class _Batches(Dataset[Batch]):
    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def __getitem__(self, step: int) -> Batch:
        return self.trainer.sampler.batch(self.trainer._batch_number(step), self.trainer.noise_scale(step))

    def __len__(self) -> int:
        return self.trainer.schedule.steps
