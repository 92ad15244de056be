"""The training loop that every network of this package shares: it knows nothing of losses.

One step: reseed from (seed, rank, step), ask for the losses, backward, clip, update, EMA. Reseeding makes a resumed
run draw exactly what an uninterrupted one would have drawn. A run's folder holds `stats.jsonl` (one JSON object a
line), TensorBoard events and `checkpoints/step-NNNNNN`, each written whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..core.checkpoints import read_state, save_tensors
from ..core.device import WIDE_PRECISIONS, pick_autocast, pick_device
from .config import TrainerConfig

logger = logging.getLogger(__name__)

# (prepared model, step, generator of this rank and step) -> scalar losses; "loss" is the one that is minimised.
# Called ``config.accumulate`` times a step, with the same generator.
Losses = Callable[[nn.Module, int, torch.Generator], dict[str, Tensor]]


class DivergedError(ValueError):
    """The loss or its gradient is no longer finite; the message says how to go on."""


class Follower(nn.Module):
    """A copy of a network that follows it as an exponential moving average.

    Args:
        network: where it starts; not changed.
        decay: of the average, 0..1; 0 = an exact copy.
    """

    def __init__(self, network: nn.Module, decay: float):
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Move towards ``model``, which has the same parameters in the same order."""
        torch._foreach_lerp_(list(self.network.parameters()), list(model.parameters()), 1 - self.decay)


class Trainer:
    """Runs ``losses`` for ``config.steps`` steps, resuming from the newest checkpoint in ``folder``.

    Args:
        model: the network in training, on any device.
        losses: one step's losses.
        folder: of the run; everything that is written lies below it.
        export: called on the main process at every checkpoint and at the end with the averaged model and the step.
        title: of the progress bar.
        cpu: stay on the CPU even where there is an accelerator.
        follower: follows the model after every step; part of the checkpoints.
    """

    def __init__(
        self,
        config: TrainerConfig,
        model: nn.Module,
        losses: Losses,
        folder: Path,
        export: Callable[[nn.Module, int], None] | None = None,
        title: str = "train",
        cpu: bool = False,
        follower: Follower | None = None,
    ):
        self.config, self.losses, self.folder, self.export, self.title = config, losses, Path(folder), export, title
        device = torch.device("cpu") if cpu else pick_device("auto")
        precision = pick_autocast(config.precision, device, WIDE_PRECISIONS)
        self.accelerator = Accelerator(mixed_precision=precision, cpu=cpu or no_accelerator())
        torch.manual_seed(config.seed)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=config.lr, betas=(0.9, config.beta2), weight_decay=config.weight_decay
        )
        if config.compile:
            model.compile()  # in place: names of weights and checkpoints stay as they are
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.follower = follower.to(self.device) if follower else None
        self.ema = None
        if config.ema_decay:
            self.ema = EMAModel(parameters, decay=config.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
            self.ema.to(self.device)
        self.step = 0

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def run(self) -> nn.Module:
        """Train to the last step and return the averaged model (unwrapped)."""
        self._resume()
        self.folder.mkdir(parents=True, exist_ok=True)
        main, config = self.accelerator.is_main_process, self.config
        bar = tqdm(total=config.steps, initial=self.step, desc=self.title, unit="step", disable=not main)
        stats = _Stats(self.folder, self.step) if main else None
        with bar, stats or contextlib.nullcontext():
            while self.step < config.steps:
                values = self._train_step()
                self.step += 1
                bar.update()
                last = self.step == config.steps
                saves, logs = last or self.step % config.save_every == 0, last or self.step % config.log_every == 0
                if saves or logs:  # the only steps that wait for the device
                    values = {name: float(value) for name, value in values.items()}
                    self._check_finite(values)
                    bar.set_postfix(loss=f"{values['loss']:.4f}")
                if logs and stats:
                    stats.write(self.step, values)
                if saves:
                    self.save()
        return self.averaged()

    def _train_step(self) -> dict[str, Tensor]:
        config, rank = self.config, self.accelerator.process_index
        generator = step_generator(config.seed, rank, self.step)
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))  # dropout follows the step too
        self.model.train()
        values = self._backward(generator)
        if config.max_grad_norm:
            values["grad_norm"] = self.accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        values["lr"] = torch.tensor(group["lr"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.step(self._parameters())
        if self.follower:
            self.follower.follow(self._unwrapped())
        return values

    def _backward(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Gradients of the mean loss over the forward passes of one step, and means over those that had a value."""
        passes, found = self.config.accumulate, {}
        for i in range(passes):
            last = i + 1 == passes
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                values = self.losses(self.model, self.step, generator)
                self.accelerator.backward(values["loss"] / passes)
            for name, value in values.items():
                found.setdefault(name, []).append(value.detach())
        return {name: torch.stack(values).mean() for name, values in found.items()}

    def _check_finite(self, values: dict[str, float]) -> None:
        # The fp16 scaler meets infinite gradients by design and skips their steps.
        names = ["loss"] if self.accelerator.scaler else ["loss", "grad_norm"]
        broken = [name for name in names if not math.isfinite(values.get(name, 0))]
        if broken:
            raise DivergedError(
                f"{broken[0]} is {values[broken[0]]} at step {self.step}; the last checkpoint in {self.folder} is "
                "intact: lower lr or use precision bf16/no and run the same command again"
            )

    def _unwrapped(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    def _parameters(self) -> list[nn.Parameter]:
        return [p for p in self._unwrapped().parameters() if p.requires_grad]

    def averaged(self) -> nn.Module:
        """The model with the averaged weights in place (the raw ones stay in the last checkpoint)."""
        if self.ema:
            self.ema.copy_to(self._parameters())
        return self._unwrapped().eval()

    # --- checkpoints ---------

    def save(self) -> None:
        """Write ``checkpoints/step-NNNNNN`` and export the averaged weights."""
        target = self.folder / "checkpoints" / f"step-{self.step:06d}"
        partial = target.with_name("partial")
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed while it saved
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()  # every process writes into the folder, which is then renamed
        if self.accelerator.is_main_process:
            self._save_own_state(partial)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)
            for old in sorted(target.parent.glob("step-*"))[: -self.config.keep_checkpoints]:
                shutil.rmtree(old)
            if self.export:
                with self._averaged_in_place() as model:
                    self.export(model, self.step)
        self.accelerator.wait_for_everyone()

    def _save_own_state(self, folder: Path) -> None:
        progress = {"step": self.step, "processes": self.accelerator.num_processes}
        if self.ema:
            shadow = {f"{i:05d}": value for i, value in enumerate(self.ema.shadow_params)}
            save_tensors(shadow, folder / "ema.safetensors", {})
            progress["ema_step"] = self.ema.optimization_step
        if self.follower:
            save_tensors(self.follower.state_dict(), folder / "follower.safetensors", {})
        (folder / "progress.json").write_text(json.dumps(progress))

    def _resume(self) -> None:
        found = newest_checkpoint(self.folder)
        if found is None:
            return
        self.accelerator.load_state(str(found))
        progress = json.loads((found / "progress.json").read_text())
        self.step = progress["step"]
        if self.ema:
            shadow, _ = read_state(found / "ema.safetensors")
            for own, saved in zip(self.ema.shadow_params, (shadow[key] for key in sorted(shadow)), strict=True):
                own.copy_(saved)
            self.ema.optimization_step = progress["ema_step"]
        if self.follower:
            self.follower.load_state_dict(read_state(found / "follower.safetensors")[0])
        if progress["processes"] != self.accelerator.num_processes:
            logger.warning(
                "%s was begun with %d processes and goes on with %d: it draws other samples than it would have",
                self.folder, progress["processes"], self.accelerator.num_processes,
            )  # fmt: skip
        logger.info("resumed %s from step %d of %d", self.title, self.step, self.config.steps)

    @contextlib.contextmanager
    def _averaged_in_place(self) -> Iterator[nn.Module]:
        if self.ema:
            self.ema.store(self._parameters())
            self.ema.copy_to(self._parameters())
        yield self._unwrapped()
        if self.ema:
            self.ema.restore(self._parameters())


class _Stats:
    """`stats.jsonl` and TensorBoard, without what a stopped run wrote after its last checkpoint."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "stats.jsonl"
        kept = [line for line in read_stats(folder) if line["step"] <= step]
        partial = self.path.with_name("stats.jsonl.part")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(partial, self.path)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)
        self.step, self.since = step, time.perf_counter()

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line, with the mean time of a step since the last one."""
        now = time.perf_counter()
        values = values | {"seconds_per_step": (now - self.since) / (step - self.step)}
        self.step, self.since = step, now
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step} | {k: float(f"{v:.6g}") for k, v in values.items()}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def __enter__(self) -> _Stats:
        return self

    def __exit__(self, *_) -> None:
        self.board.close()


def no_accelerator() -> bool:
    """Whether this machine has a CPU alone; accelerate must be told, or launched processes would not join."""
    return not torch.accelerator.is_available()


def learning_rate(config: TrainerConfig, step: int) -> float:
    """Linear warm-up, constant, linear decay. Raising ``steps`` before the decay began prolongs a run seamlessly."""
    rising = min(1.0, (step + 1) / max(config.warmup, 1))
    falling = min(1.0, (config.steps - step) / max(config.decay * config.steps, 1))
    return config.lr * min(rising, falling)


def step_generator(seed: int, rank: int, step: int) -> torch.Generator:
    """CPU generator that depends on (seed, rank, step) alone."""
    mixed = (seed * 1_000_003 + rank) * 1_000_003 + step
    return torch.Generator().manual_seed(mixed % 2**63)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run's folder, or None."""
    found = sorted((Path(folder) / "checkpoints").glob("step-*/progress.json"))
    return found[-1].parent if found else None


def read_stats(folder: Path) -> list[dict]:
    """The lines of a run's `stats.jsonl`; [] if there is none. A line cut off by a crash is left out."""
    path = Path(folder) / "stats.jsonl"
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            logger.warning("%s: left out a broken line", path)
    return lines
