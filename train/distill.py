"""``t2v-turbo distill``: records to a few-step student (Algorithm 2)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from ..core.checkpoints.locations import BASE_FILES, family_folder
from ..core.checkpoints.networks import load_unet, save_unet
from ..core.device import DTYPES
from ..core.diffusion.distillation import Batch, ConsistencyDistillation
from ..core.diffusion.schedule import NoiseSchedule
from ..core.families import FamilyConfig, resolve_family
from ..core.files import file_hash
from ..core.networks.unet import UNet3D
from .config import DistillConfig, save_config
from .data.reader import RecordReader, RecordSet, iterate_batches
from .distill_rewards import RewardPart
from .training.ema import EMA
from .training.trainer import Trainer, seeded

logger = logging.getLogger(__name__)

STUDENT, SETTINGS = "student.safetensors", "config.yaml"
# Settings without which the state of a run means something else: they cannot change when it is resumed.
FIXED = (
    "model.family", "records", "motion", "motion_strength", "tau", "combination", "target", "seed", "batch_size",
    "accumulate", "shuffle", "init", "rewards.models",
)  # fmt: skip
# And where there are rewards, these.
FIXED_REWARDS = (
    "rewards.image_frames", "rewards.every", "rewards.samples", "rewards.batch_size", "rewards.long_captions",
    "rewards.ramp", "rewards.ceilings", "rewards.teacher",
)  # fmt: skip
# What rewards add to the loss.
LOSS_TERMS = ("reward_loss", "teacher_loss")
# What a student with motion guidance gets from records; others are trained as if it were not there.
MOTION_TENSORS = ("score", "use_motion_guide")


def distill(config: DistillConfig) -> UNet3D:
    """Train (or resume) in ``config.out`` and return the student with averaged weights.

    Raises:
        ValueError: for a wrong setting, records that do not fit, or a run that was begun with other settings.
    """
    family, out = resolve_family(config.model.family), Path(config.out)
    if config.model.device not in ("auto", "cpu"):
        raise ValueError(f"model.device={config.model.device}: use auto or cpu; CUDA_VISIBLE_DEVICES chooses the card")
    records = RecordSet(config.records)
    check_records(records, family)
    if config.motion_strength is None:
        config = replace(config, motion_strength=family.motion_strength)
    check_resumable(config, out)
    check_motion(config, records)
    student = build_student(config, family)
    student.checkpointing = config.gradient_checkpointing
    follower = EMA(student, config.target_decay) if config.target == "ema" else None
    rewards = RewardPart(config.rewards, config.model, family) if config.rewards.models else None
    losses = DistillLosses(config, records, follower, rewards)
    trainer = Trainer(
        config, student, losses, out, exporter(config, records, out), "distill", config.model.device == "cpu", follower
    )
    losses.attach(trainer)
    if trainer.accelerator.is_main_process:
        save_config(config, out / SETTINGS)
    return trainer.run()


def check_records(records: RecordSet, family: FamilyConfig) -> None:
    """Refuse records of another family."""
    if records.made_from["family"] != family.name:
        raise ValueError(
            f"the records are of model.family={records.made_from['family']}, the student is of {family.name}: "
            "set model.family, or preprocess anew"
        )


def check_motion(config: DistillConfig, records: RecordSet) -> None:
    """Refuse motion guidance where the records have no scores."""
    if not config.motion:
        return
    if not records.motion:
        raise ValueError(
            f"motion=true: the records {config.records} have no motion scores; make them with `t2v-turbo preprocess … "
            "motion=true`, or distil with motion=false"
        )
    if config.tau > records.tau:
        raise ValueError(
            f"tau={config.tau}: the records have motion scores for tau={records.tau} only; use at most that, or "
            "preprocess anew"
        )


def check_resumable(config: DistillConfig, out: Path) -> None:
    """Refuse to go on with a run whose fixed settings were others; tell of other changes."""
    path = out / SETTINGS
    if not path.exists():
        return
    now = OmegaConf.structured(config)
    # What an older run did not know had its default.
    defaults = OmegaConf.to_container(OmegaConf.structured(DistillConfig))
    before = OmegaConf.merge(OmegaConf.create(defaults), OmegaConf.load(path))
    for name in FIXED + (FIXED_REWARDS if config.rewards.models else ()):
        old, new = OmegaConf.select(before, name), OmegaConf.select(now, name)
        if old != new:
            raise ValueError(f"out={out}: was begun with {name}={old}, not {new}; use that, or another folder")
    changed = [key for key in now if before[key] != now[key]]
    if changed:
        logger.warning("%s goes on with other settings than it was begun with: %s", out, ", ".join(changed))


# --- the student ---------


def build_student(config: DistillConfig, family: FamilyConfig) -> UNet3D:
    """The student at the start: ``config.init``, or the teacher with inputs for the guidance strengths."""
    folder = Path(config.model.folder) if config.model.folder else family_folder(family.name)
    unet = load_unet(config.init or folder / BASE_FILES[family.name][0], family.unet)
    if not unet.takes_guidance:
        return student_from_teacher(unet, config.motion, config.seed)
    if unet.takes_motion != config.motion:
        raise ValueError(f"init={config.init}: has motion={unet.takes_motion}; motion={config.motion} was asked for")
    return unet


def student_from_teacher(teacher: UNet3D, motion: bool = False, seed: int = 0) -> UNet3D:
    """The teacher with inputs for omega and, with ``motion``, for lambda, which at first change nothing.

    The last projection on the way of the new inputs is zero, so that training starts from the teacher's function;
    the authors start from a random one. Those before it are random, by ``seed``.
    """
    with seeded(seed):
        student = UNet3D(teacher.config.as_student(motion))
    missing, unexpected = student.load_state_dict(teacher.state_dict(), strict=False)
    assert not unexpected and all("_proj" in name for name in missing)
    nn.init.zeros_((student.combine_proj if motion else student.guidance_proj).weight)
    return student


def exporter(config: DistillConfig, records: RecordSet, out: Path):
    """Writes the student with what it was made from."""
    made_from = records.made_from | {"motion": records.motion}
    about = {"records": json.dumps(made_from), "distill": json.dumps(settings_to_publish(config))}

    def export(student: nn.Module, step: int) -> None:
        save_unet(student, out / STUDENT, DTYPES[config.export_dtype], step=str(step), **about)

    return export


def settings_to_publish(config: DistillConfig) -> dict:
    """The settings without the folders of this machine, which mean nothing to others; ``init`` as a hash."""
    settings = asdict(config)
    del settings["records"], settings["out"], settings["model"]["folder"], settings["rewards"]["paths"]
    settings["init"] = file_hash(Path(config.init)) if config.init else None
    return settings


# --- the loss ---------


class DistillLosses:
    """One step's losses, on the records that belong to it."""

    def __init__(
        self, config: DistillConfig, records: RecordSet, follower: EMA | None, rewards: RewardPart | None = None
    ):
        self.config, self.records, self.follower, self.rewards = config, records, follower, rewards
        grid, fps = records.made_from["solver_steps"], records.made_from["fps"]
        strength = config.motion_strength if config.motion else None
        self.distillation = ConsistencyDistillation(
            NoiseSchedule(), grid, strength, config.tau, config.huber_c, fps, config.combination
        )
        self._batches: Iterator | None = None

    def attach(self, trainer: Trainer) -> None:
        """Learn the device and this process's share of the records."""
        self.trainer, c, accelerator = trainer, self.config, trainer.accelerator
        self.reader = RecordReader(
            self.records, c.seed, accelerator.process_index, accelerator.num_processes, c.shuffle, c.cache_gb
        )
        if self.rewards:
            self.rewards.attach(trainer.device)

    def __call__(self, student: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch, origins = self.next_batch(step)
        omega = self.draw_omega(len(batch.z), generator)
        with self.trainer.accelerator.autocast():
            target = self.follower.network if self.follower else None
            output = self.distillation(student, batch, omega, target)
        values = {"loss": output.loss, "cd": output.loss}
        if self.rewards and self.rewards.due(step):
            added = self.rewards(output, batch, origins, omega, self.distillation, step, generator)
            values |= added | {"loss": output.loss + sum(added[name] for name in LOSS_TERMS if name in added)}
        return values

    def next_batch(self, step: int) -> tuple[Batch, list[dict]]:
        """The next batch and its origins; the first call finds the place in the records that belongs to ``step``."""
        c = self.config
        if self._batches is None:
            start = step * c.accumulate * c.batch_size
            self._batches = iterate_batches(self.reader, c.batch_size, start, c.prefetch)
        tensors, origins = next(self._batches)
        if not c.motion:
            tensors = {name: value for name, value in tensors.items() if name not in MOTION_TENSORS}
        device = self.trainer.device
        tensors = {n: x.to(device).float() if x.is_floating_point() else x.to(device) for n, x in tensors.items()}
        return Batch(**tensors), origins

    def draw_omega(self, count: int, generator: torch.Generator) -> Tensor:
        """omega ~ U[omega_min, omega_max] per sample (B,), drawn afresh at every step."""
        low, high = self.config.omega_min, self.config.omega_max
        return (low + (high - low) * torch.rand(count, generator=generator)).to(self.trainer.device)
