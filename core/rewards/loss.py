"""The reward part of a training step (Eq. 10, 11): the student's prediction, decoded and scored, and guards.

Optimising a reward for long finds what the reward model overrates: oversaturated, sharpened or frozen clips ("reward
hacking"). Three guards, all off by default, and four diagnostics tell and slow it; see ``Guards`` and ``diagnose``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import MixtureScore, RewardMixture
from .mixture import Decode


@dataclass(frozen=True)
class Guards:
    """Protection against reward hacking; the defaults switch all of it off.

    Attributes:
        ramp: steps over which the rewards' weight rises linearly to its full value; 0 = full from the first step.
        ceilings: by reward, the raw score above which a sample gives no more gradient through that reward. Per
            reward, because each has its own scale and is hacked on its own, while a total can hide one that runs
            away behind others that fall.
        teacher: weight of ``teacher_distance``, added to the loss; 0 = it is logged only.
    """

    ramp: int = 0
    ceilings: Mapping[str, float] = field(default_factory=dict)
    teacher: float = 0.0

    def strength(self, step: int) -> float:
        """Factor of the rewards at training step ``step``, 0..1."""
        return min(1.0, (step + 1) / self.ramp) if self.ramp else 1.0

    def bounded(self, score: MixtureScore) -> Tensor:
        """J per sample (B,), with every raw score cut off at its ceiling."""
        parts = []
        for name, weighted in score.weighted.items():
            below = score.raw[name].detach() < self.ceilings.get(name, float("inf"))
            # The value stays, so that the loss is minus the logged reward; only the gradient ends.
            parts.append(torch.where(below, weighted, weighted.detach()))
        return torch.stack(parts).sum(0)


UNGUARDED = Guards()


class RewardLoss:
    """What the rewards add to the loss of a step: −J, averaged over the samples that are scored.

    The image rewards are averaged over their random frames; Eq. 11 prints a sum, which would double their weights.

    Args:
        mixture: the reward models and their weights.
        decode: latents (B, 4, K, h, w) -> frames (B, K, 3, H, W) in 0..1, such as ``VideoVAE.decode``.
        guards: against reward hacking.
        limit: samples of a batch that are scored at most, the first flagged ones; None = all flagged ones.
        chunk: frames decoded at once.

    Raises:
        ValueError: for a ceiling of a reward that the mixture does not have.
    """

    def __init__(
        self,
        mixture: RewardMixture,
        decode: Decode,
        guards: Guards = UNGUARDED,
        limit: int | None = None,
        chunk: int = 1,
    ):
        unknown = sorted(set(guards.ceilings) - set(mixture.rewards))
        if unknown:
            raise ValueError(f"ceilings for {unknown}, which are not among the rewards {sorted(mixture.rewards)}")
        self.mixture, self.decode, self.guards, self.limit, self.chunk = mixture, decode, guards, limit, chunk

    def __call__(
        self,
        prediction: Tensor,
        captions: list[str],
        use_reward: Tensor,
        teacher: Tensor,
        alpha_bar: Tensor,
        step: int,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """The terms of the loss and what is worth a line in the log, as scalars.

        Args:
            prediction: the student's clean latents (B, C, F, h, w), with graph.
            captions: B captions.
            use_reward: which samples are scored (B,), bool; best on the CPU, which must know.
            teacher: the teacher's clean latents at the same noisy point, as ``prediction``.
            alpha_bar: of the timestep of each sample (B,).
            step: training step, for the ramp.
            generator: draws the image rewards' frames.

        Returns:
            "reward_loss" (−J) and, with ``guards.teacher``, "teacher_loss", to be added to the CD loss; zero where no
            sample is flagged. Without graph: "reward_samples", "teacher_distance", and what ``MixtureScore.log`` and
            ``diagnose`` say.
        """
        rows = use_reward.nonzero()[: self.limit, 0]
        if not len(rows):
            names = ("reward_loss", "reward_samples", *(("teacher_loss",) if self.guards.teacher else ()))
            return {name: torch.zeros((), device=prediction.device) for name in names}
        prompts = [captions[row] for row in rows.tolist()]
        rows = rows.to(prediction.device)
        prediction, teacher = prediction[rows], teacher[rows]
        score = self.mixture.score_latents(prediction, prompts, self.decode, generator, self.chunk)
        total = self.guards.bounded(score).to(prediction.device)
        distance = teacher_distance(prediction, teacher, alpha_bar.to(rows.device)[rows]).mean()
        terms = {"reward_loss": -self.guards.strength(step) * total.mean()}
        if self.guards.teacher:
            terms["teacher_loss"] = self.guards.teacher * distance
        told = {"reward_samples": torch.tensor(float(len(rows))), "teacher_distance": distance.detach()}
        told |= diagnose(score, prediction, teacher) | score.log()
        return terms | {name: value.to(prediction.device) for name, value in told.items()}


def teacher_distance(prediction: Tensor, teacher: Tensor, alpha_bar: Tensor) -> Tensor:
    """alpha_bar · mean squared difference of the clean latents, per sample (B,).

    The teacher's clean latents come free with the record. Near pure noise they are a blur that the student, which
    jumps to the trajectory's end, must be free to leave: so the distance counts by the share of the signal in the noisy
    latents. Squared, because a guard should ignore small differences and hold against large ones.

    Args:
        prediction, teacher: (B, C, F, h, w).
        alpha_bar: (B,), 0..1.
    """
    return alpha_bar * (prediction - teacher).square().flatten(1).mean(1)


@torch.no_grad()
def diagnose(score: MixtureScore, prediction: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """Early signs of reward hacking.

    Returns:
        "reward_spread/<name>": deviation of the raw scores within the batch, where there are two or more; it shrinks
        when all clips become alike. "dynamics": change from frame to frame in the latents, over the teacher's; it falls
        when clips freeze.
    """
    spread = {f"reward_spread/{name}": raw.std(correction=0) for name, raw in score.raw.items() if len(raw) > 1}
    return spread | {"dynamics": change(prediction).mean() / change(teacher).mean().clamp(min=1e-8)}


def change(latents: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring frames (B,) of latents (B, C, F, h, w); 0 for a single frame."""
    if latents.shape[2] == 1:
        return latents.new_zeros(len(latents))
    return latents.diff(dim=2).abs().flatten(1).mean(1)
