"""The training loop that every network of this package shares: it knows nothing of losses.

One step: reseed from (seed, rank, step), ask for the losses, backward, clip, update, EMA. Reseeding makes a resumed
run draw exactly what an uninterrupted one would have drawn. A run's folder holds `stats.jsonl` (one JSON object a
line), TensorBoard events and `checkpoints/step-NNNNNN`, each written whole or not at all.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

# (prepared model, step, generator of this rank and step) -> scalar losses; "loss" is the one that is minimised.
Losses = Callable[[nn.Module, int, torch.Generator], dict[str, Tensor]]


@dataclass
class TrainerConfig:
    """How long and how hard; None = off."""

    steps: int = 1000
    # Samples of a step on each process.
    batch_size: int = 16
    lr: float = 1e-4
    warmup: int = 100
    # The learning rate is constant after the warm-up and falls to zero over this last fraction of the steps.
    decay: float = 0.2
    weight_decay: float = 0.0
    # Optimiser's memory of squared gradients.
    beta2: float = 0.99
    max_grad_norm: float | None = 1.0
    # Decay of the averaged weights that are saved as the result.
    ema_decay: float | None = 0.999
    # "no" (fp32), "bf16" or "fp16"
    precision: str = "no"
    seed: int = 0
    log_every: int = 10
    save_every: int = 500
    keep_checkpoints: int = 2


class Trainer:
    """Runs ``losses`` for ``config.steps`` steps, resuming from the newest checkpoint in ``folder``.

    Args:
        model: the network in training, on any device.
        losses: one step's losses.
        folder: of the run; everything that is written lies below it.
        export: called on the main process at every checkpoint and at the end with the averaged model and the step.
        title: of the progress bar.
        cpu: stay on the CPU even where there is an accelerator.
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
    ):
        self.config, self.losses, self.folder, self.export, self.title = config, losses, Path(folder), export, title
        self.accelerator = Accelerator(mixed_precision=config.precision, cpu=cpu)
        torch.manual_seed(config.seed)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=config.lr, betas=(0.9, config.beta2), weight_decay=config.weight_decay
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.ema = None
        if config.ema_decay:
            self.ema = EMAModel(parameters, decay=config.ema_decay, use_ema_warmup=True, power=0.75)
            self.ema.to(self.accelerator.device)
            self.accelerator.register_for_checkpointing(self.ema)
        self.step = 0

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def run(self) -> nn.Module:
        """Train to the last step and return the averaged model (unwrapped)."""
        self._resume()
        self.folder.mkdir(parents=True, exist_ok=True)
        main = self.accelerator.is_main_process
        bar = tqdm(total=self.config.steps, initial=self.step, desc=self.title, unit="step", disable=not main)
        writer = _Stats(self.folder, self.step) if main else None
        while self.step < self.config.steps:
            started = time.perf_counter()
            values = self._train_step()
            self.step += 1
            bar.update()
            if main and (self.step % self.config.log_every == 0 or self.step == self.config.steps):
                values = {name: float(value) for name, value in values.items()}
                self._check_finite(values)
                values["seconds_per_step"] = time.perf_counter() - started
                writer.write(self.step, values)
                bar.set_postfix(loss=f"{values['loss']:.4f}")
            if self.step % self.config.save_every == 0 and self.step < self.config.steps:
                self.save()
        bar.close()
        if writer:
            writer.close()
        self.save()
        return self.averaged()

    def _train_step(self) -> dict[str, Tensor]:
        config, rank = self.config, self.accelerator.process_index
        generator = step_generator(config.seed, rank, self.step)
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))  # dropout follows the step too
        self.model.train()
        values = self.losses(self.model, self.step, generator)
        self.accelerator.backward(values["loss"])
        if config.max_grad_norm:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
            values = values | {"grad_norm": norm}
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        values = values | {"lr": torch.tensor(group["lr"])}
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.step(p for p in self._unwrapped().parameters() if p.requires_grad)
        return {name: value.detach() for name, value in values.items()}

    def _check_finite(self, values: dict[str, float]) -> None:
        if values["loss"] != values["loss"]:
            raise FloatingPointError(
                f"the loss is NaN at step {self.step}; the last checkpoint in {self.folder} is intact: "
                "lower lr or use precision bf16/no and run the same command again"
            )

    def _unwrapped(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    def averaged(self) -> nn.Module:
        """The model with the averaged weights in place (the raw ones stay in the last checkpoint)."""
        model = self._unwrapped()
        if self.ema:
            self.ema.copy_to(p for p in model.parameters() if p.requires_grad)
        return model.eval()

    # --- checkpoints ---------

    def save(self) -> None:
        """Write ``checkpoints/step-NNNNNN`` and export the averaged weights."""
        target = self.folder / "checkpoints" / f"step-{self.step:06d}"
        partial = target.with_name(f"partial-{self.step:06d}")
        self.accelerator.save_state(str(partial))
        if self.accelerator.is_main_process:
            (partial / "progress.json").write_text(json.dumps({"step": self.step}))
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)
            for old in sorted(target.parent.glob("step-*"))[: -self.config.keep_checkpoints]:
                shutil.rmtree(old)
            if self.export:
                self._export_averaged()
        self.accelerator.wait_for_everyone()

    def _export_averaged(self) -> None:
        model = self._unwrapped()
        parameters = [p for p in model.parameters() if p.requires_grad]
        if self.ema:
            self.ema.store(parameters)
            self.ema.copy_to(parameters)
        self.export(model, self.step)
        if self.ema:
            self.ema.restore(parameters)

    def _resume(self) -> None:
        found = newest_checkpoint(self.folder)
        if found is None:
            return
        self.accelerator.load_state(str(found))
        self.step = json.loads((found / "progress.json").read_text())["step"]
        logger.info("resumed %s from step %d of %d", self.title, self.step, self.config.steps)


class _Stats:
    """`stats.jsonl` and TensorBoard, without what a stopped run wrote after its last checkpoint."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "stats.jsonl"
        kept = [line for line in read_stats(folder) if line["step"] <= step]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)

    def write(self, step: int, values: dict[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step} | {k: float(f"{v:.6g}") for k, v in values.items()}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        self.board.close()


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
