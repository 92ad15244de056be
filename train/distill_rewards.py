"""Rewards in distillation: which models from where, loaded once, every n steps, on which samples."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from ..core.checkpoints.locations import BASE_FILES, family_folder
from ..core.checkpoints.networks import load_vae
from ..core.device import WIDE_PRECISIONS, pick_device, pick_dtype
from ..core.diffusion.distillation import Batch, ConsistencyDistillation, StepOutput
from ..core.families import FamilyConfig
from ..core.rewards import load_mixture
from ..core.rewards.loss import Guards, RewardLoss
from .config import ModelConfig, RewardConfig
from .data.records import use_reward

logger = logging.getLogger(__name__)

# Batches after which records without a sample to score are told of.
PATIENCE = 20
MEANING = """\
With rewards the log names (in stats.jsonl and TensorBoard):
  loss                what is minimised: cd + reward_loss, and teacher_loss where rewards.teacher is set
  cd                  consistency distillation, Eq. 9; at least 0
  reward_loss         minus the weighted rewards J of the samples that were scored (Eq. 10, 11), times the ramp. It is
                      NEGATIVE BY CONSTRUCTION: training minimises a loss, rewards are to rise, so they enter with a
                      minus sign. The lower it is the better the clips are liked; loss may be negative too, and nothing
                      is wrong with that.
  teacher_loss        rewards.teacher times teacher_distance
  reward/NAME         mean raw score of one model, in its own unit
  weighted_reward/…   the same times its weight; …/total is their sum, J
  reward_spread/NAME  deviation of the raw scores within the batch; shrinking = all clips become alike
  dynamics            change between neighbouring frames over the teacher's, in latents; falling = clips freeze
  teacher_distance    mean distance to the teacher's clean latents, by the share of signal; growing = drifting away
  reward_samples      samples that were scored
Scores that rise while the spread or the dynamics fall, or the distance grows, are reward hacking. Stop earlier, or use
a guard: rewards.ramp (rise slowly), rewards.ceilings (no gradient above a score), rewards.teacher (stay near it).
"""


class RewardPart:
    """What the rewards add to a step's losses.

    Args:
        rewards: settings; some model is named.
        model: the family's folder.
        family: which models are the usual ones.

    Raises:
        ValueError: for a device that is not there.
        CheckpointError: for a file of the autoencoder or a reward model that is missing or of another model.
    """

    def __init__(self, rewards: RewardConfig, model: ModelConfig, family: FamilyConfig):
        own = rewards.device != "auto"
        device = pick_device(rewards.device, "rewards.device=") if own else pick_device(model.device)
        self.config, dtype = rewards, pick_dtype(rewards.dtype, device, WIDE_PRECISIONS)
        self._without = 0  # batches so far without a flagged sample; None once there was one
        folder = Path(model.folder) if model.folder else family_folder(family.name)
        self.vae = load_vae(folder / BASE_FILES[family.name][1], family.vae).requires_grad_(False).to(dtype=dtype)
        self.mixture = load_mixture(
            rewards.weights(), family.name, rewards.files(), rewards.image_frames, dtype=dtype, folder=model.folder,
            long_captions=rewards.long_captions,
        )  # fmt: skip
        if rewards.checkpointing:
            self.mixture.enable_checkpointing()
        guards = Guards(rewards.ramp, rewards.limits(), rewards.teacher)
        self.loss = RewardLoss(self.mixture, self.vae.decode, guards, rewards.batch_size, rewards.chunk)

    def attach(self, device: torch.device) -> None:
        """Move to the configured device, where "auto" is ``device``."""
        chosen = device if self.config.device == "auto" else torch.device(self.config.device)
        for network in (self.vae, *self.mixture.rewards.values()):
            network.to(chosen)
        if self.config.offload:
            self.mixture.offload()
        logger.info("%s", MEANING)

    def due(self, step: int) -> bool:
        """Whether step ``step`` has rewards: every n-th, such that steps with a multiple in the log have them."""
        return (step + 1) % self.config.every == 0

    def __call__(
        self,
        output: StepOutput,
        batch: Batch,
        origins: list[dict],
        omega: Tensor,
        distillation: ConsistencyDistillation,
        step: int,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """The terms and the diagnostics of ``RewardLoss``; to be called outside of autocast."""
        if self.config.samples == "all":
            flags = torch.ones(len(origins), dtype=torch.bool)
        else:
            flags = torch.tensor([use_reward(origin) for origin in origins])
        self._watch(flags)
        captions = [origin["caption"] for origin in origins]
        teacher, signal = distillation.teacher_x0(batch, omega), distillation.solver.alpha_bar_at(batch.index)
        if self.config.offload:
            # The gradient of the prediction is there once the backward pass has left the decoder and the rewards.
            output.prediction.register_hook(lambda _: self.mixture.offload())
        return self.loss(output.prediction, captions, flags, teacher, signal, step, generator)

    def _watch(self, flags: Tensor) -> None:
        """Warn where the rewards have nothing to score, which would otherwise pass unseen."""
        if self._without is None or flags.any():
            self._without = None
            return
        self._without += 1
        if self._without == PATIENCE:
            logger.warning(
                "no sample of %d batches has a short caption, so the rewards do nothing: "
                "preprocess short captions too, or set rewards.samples=all",
                PATIENCE,
            )
