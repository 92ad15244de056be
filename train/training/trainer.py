"""The training loop that every network of this package shares: it knows nothing of losses.

One step: reseed from (seed, rank, step), ask for the losses, backward, clip, update, EMA. Reseeding makes a resumed
run draw exactly what an uninterrupted one would have drawn. A run's folder holds `stats.jsonl` (one JSON object a
line), TensorBoard events and `checkpoints/step-NNNNNN`, each written whole or not at all.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...core.device import WIDE_PRECISIONS, pick_autocast, pick_device
from ..config import TrainerConfig
from .ema import EMA
from .run_checkpoints import Checkpoint, RunCheckpoints, load_weights, newest_checkpoint, weights_of
from .stats import Stats, read_stats

__all__ = ["DivergedError", "Trainer", "TrainerConfig", "WriteError", "newest_checkpoint", "read_stats", "seeded"]

logger = logging.getLogger(__name__)

# (prepared model, step, generator of this rank and step) -> scalar losses; "loss" is the one that is minimised.
# Called ``config.accumulate`` times a step, with the same generator.
Losses = Callable[[nn.Module, int, torch.Generator], dict[str, Tensor]]


class DivergedError(ValueError):
    """The loss or its gradient is no longer finite; the message says how to go on."""


class WriteError(OSError):
    """The run's folder cannot be written, such as on a full disk; the message says how to go on."""


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

    Raises:
        ValueError: for a setting that cannot be had on this machine or under this launcher.
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
        follower: EMA | None = None,
    ):
        self.config, self.losses, self.folder, self.export, self.title = config, losses, Path(folder), export, title
        self.checkpoints = RunCheckpoints(self.folder / "checkpoints", config.keep_checkpoints)
        self.accelerator = make_accelerator(config, cpu or no_accelerator())
        self.ema = EMA(model, config.ema_decay, warmup=True).to(self.device) if config.ema_decay else None
        self.follower = follower.to(self.device) if follower else None
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=config.lr, **self._settings())
        if config.compile:
            model.compile()  # in place: names of weights and checkpoints stay as they are
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.step = 0

    def _settings(self) -> dict:
        """AdamW's, which a resumed run takes from its settings too, not from the checkpoint."""
        return {"betas": (0.9, self.config.beta2), "weight_decay": self.config.weight_decay}

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def run(self) -> nn.Module:
        """Train to the last step and return the averaged model (unwrapped).

        Raises:
            DivergedError: if the loss or its gradient is not finite.
            WriteError: if the disk is full.
            ValueError: if the checkpoints are damaged or of another network, or an operation is not deterministic.
        """
        self._resume()
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.step >= self.config.steps:
                self._export()  # which may be all that a full disk left undone
        main, config = self.accelerator.is_main_process, self.config
        bar = tqdm(total=config.steps, initial=self.step, desc=self.title, unit="step", disable=not main)
        with deterministic(config.deterministic), bar, self._stats() as stats:
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
                    with self._writing():
                        stats.write(self.step, values)
                if saves:
                    self.save()
        return self.averaged()

    @contextlib.contextmanager
    def _stats(self) -> Iterator[Stats | None]:
        """The main process's statistics; None in others."""
        if not self.accelerator.is_main_process:
            yield None
            return
        with self._writing():
            stats = Stats(self.folder, self.step)
        try:
            yield stats
        finally:
            stats.close()

    def _train_step(self) -> dict[str, Tensor]:
        config, rank = self.config, self.accelerator.process_index
        generator = step_generator(config.seed, rank, self.step)
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))  # dropout follows the step too
        self.model.train()
        values = self._backward(generator)
        limit = config.max_grad_norm or math.inf  # without one, the norm is still worth a line and a check
        values["grad_norm"] = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        values["lr"] = torch.tensor(group["lr"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for average in filter(None, (self.ema, self.follower)):
            average.follow(self._unwrapped())
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

    def averaged(self) -> nn.Module:
        """The model with the averaged weights (the raw ones stay in the last checkpoint)."""
        return self.ema.network if self.ema else self._unwrapped().eval()

    # --- checkpoints ---------

    def save(self) -> None:
        """Write ``checkpoints/step-NNNNNN`` and export the averaged weights; all processes hold the same."""
        if self.accelerator.is_main_process:
            with self._writing():
                self.checkpoints.write(self._checkpoint())
                self._export()
        self.accelerator.wait_for_everyone()

    def _export(self) -> None:
        if self.export and self.accelerator.is_main_process:
            self.export(self.averaged(), self.step)

    def _checkpoint(self) -> Checkpoint:
        tensors, states = {"model": weights_of(self._unwrapped())}, {"optimizer": self.optimizer.state_dict()}
        progress = {"step": self.step, "processes": self.accelerator.num_processes}
        if self.ema:
            tensors["ema"], progress["ema_step"] = self.ema.tensors(), self.ema.updates
        if self.follower:
            tensors["follower"] = self.follower.tensors()
        if self.accelerator.scaler:
            states["scaler"] = self.accelerator.scaler.state_dict()
        return Checkpoint(tensors, states, progress)

    def _resume(self) -> None:
        found = self.checkpoints.read_newest()
        if found is None:
            return
        try:
            self._restore(found)
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{found.path}: is of another network ({' '.join(str(error).split())[:200]}); use another folder, or "
                f"delete {found.path.parent} to begin anew"
            ) from error
        processes = self.accelerator.num_processes
        if found.progress["processes"] != processes:
            logger.warning(
                "%s was begun with %d processes and goes on with %d: it draws other samples than it would have",
                self.folder, found.progress["processes"], processes,
            )  # fmt: skip
        logger.info("resumed %s from step %d of %d", self.title, self.step, self.config.steps)

    def _restore(self, found: Checkpoint) -> None:
        load_weights(self._unwrapped(), found.tensors["model"])
        self.optimizer.load_state_dict(found.states["optimizer"])
        for group in self.optimizer.param_groups:
            group.update(self._settings())
        if self.accelerator.scaler and "scaler" in found.states:
            self.accelerator.scaler.load_state_dict(found.states["scaler"])
        if self.ema and "ema" in found.tensors:
            self.ema.load(found.tensors["ema"], found.progress["ema_step"])
        elif self.ema:
            self.ema.follow(self._unwrapped())  # the first update copies
            logger.warning("%s had no averaged weights: their average starts here", found.path)
        if self.follower:
            self.follower.load(found.tensors["follower"], found.progress["step"])
        self.step = found.progress["step"]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Tells how to go on where the run's folder cannot be written."""
        try:
            yield
        except WriteError:
            raise
        except OSError as error:
            whole = newest_checkpoint(self.folder)
            there = f"{whole} is whole, the same command goes on from it" if whole else "no checkpoint was saved yet"
            reason = error.strerror or error
            raise WriteError(f"{self.folder}: cannot be written ({reason}); {there}: make room there first") from error


def make_accelerator(config: TrainerConfig, cpu: bool) -> Accelerator:
    """accelerate's view of this process.

    Raises:
        ValueError: for what the trainer does not do: fp16 on a CPU, networks in parts, a second accumulation.
    """
    precision = pick_autocast(config.precision, torch.device("cpu") if cpu else pick_device("auto"), WIDE_PRECISIONS)
    if precision == "fp16" and cpu:
        raise ValueError("precision=fp16 needs a GPU: use bf16 or no")
    accelerator = Accelerator(mixed_precision=precision, cpu=cpu)
    kind = accelerator.distributed_type.value
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise ValueError(f"accelerate's {kind} splits the network, which the trainer does not do: use --multi_gpu")
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError("accelerate's gradient_accumulation_steps is not used: set accumulate=… instead")
    return accelerator


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


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside the block networks are built with fresh weights that follow from ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn on the CPU
        torch.manual_seed(seed % 2**63)
        yield


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Inside the block a GPU gives the same bits every time, by slower algorithms, if ``on``.

    Raises:
        ValueError: for an operation that has no such algorithm.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may refuse
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # slow, and nothing here reads such memory
    try:
        yield
    except RuntimeError as error:
        operation, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not (on and found):
            raise
        raise ValueError(f"deterministic=true: {operation} has no such algorithm here: leave it false") from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
