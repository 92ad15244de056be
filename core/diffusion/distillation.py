"""One step of consistency distillation (Algorithm 2, lines on the CD loss): a batch of records to a loss.

Knows nothing of devices, logging or checkpoints; the trainer knows nothing of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..families import TAU
from ..networks.unet import LAMBDA_UNIT, UNet3D
from .consistency import HUBER_C, consistency_function, pseudo_huber
from .ddim import DDIMSolver
from .guidance import combine_cfg, find_combination, guidance_edge
from .schedule import NoiseSchedule


@dataclass
class Batch:
    """Records of Algorithm 1, B samples."""

    z: Tensor  # noisy latents at the solver's grid point ``index`` (B, C, F, H, W)
    index: Tensor  # solver index (B,), int64
    cond: Tensor  # the teacher's noise for the prompt, as z
    uncond: Tensor  # the teacher's noise for the empty prompt, as z
    context: Tensor  # prompt embedding (B, L, D)
    score: Tensor | None = None  # motion score, as z; None = no motion guidance
    use_motion_guide: Tensor | None = None  # (B,), bool; None = all


@dataclass
class StepOutput:
    """The loss and what it was made of; ``prediction`` is the student's clean latents, which rewards would decode."""

    loss: Tensor  # scalar
    prediction: Tensor  # f_theta(z_{t_{n+k}}) (B, C, F, H, W), with graph
    target: Tensor  # f_theta(ẑ_{t_n}) (B, C, F, H, W), without graph
    solution: Tensor  # ẑ_{t_n}, the solver's augmented step (B, C, F, H, W)


class ConsistencyDistillation:
    """The CD loss, Eq. 9, over the augmented solver step, Eq. 3 and Eq. 8.

    Args:
        schedule: the noise schedule.
        solver_steps: grid of the solver; 200 steps of 5 training timesteps.
        motion: lambda in the paper's unit, an input of the student and the strength of guidance where the records carry
            a score; None = the student has no such input.
        tau: motion guidance applies at solver index >= (1 − tau) · solver_steps.
        huber_c: width of the pseudo-Huber loss.
        fps: frame rate condition.
        combination: how the score enters the solver's step, a name of ``guidance.COMBINATIONS``.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        solver_steps: int = 200,
        motion: float | None = None,
        tau: float = TAU,
        huber_c: float = HUBER_C,
        fps: int = 8,
        combination: str = "released",
    ):
        self.combine = find_combination(combination)
        self.schedule, self.solver = schedule, DDIMSolver(schedule, solver_steps)
        self.motion, self.tau, self.huber_c, self.fps = motion, tau, huber_c, fps

    def lambdas(self, batch: Batch) -> Tensor:
        """lambda per sample (B,): the setting inside the guided range and where the sample's flag is set, else 0."""
        guided = batch.index >= guidance_edge(len(self.solver), self.tau)
        if batch.use_motion_guide is not None:
            guided = guided & batch.use_motion_guide
        return guided.float() * (self.motion or 0.0 if batch.score is not None else 0.0)

    def teacher_x0(self, batch: Batch, omega: Tensor) -> Tensor:
        """The teacher's clean latents at ``batch.z`` with CFG, as z."""
        t = self.solver.timesteps_at(batch.index)
        cond, uncond = (self.schedule.predict_x0(batch.z, eps, t) for eps in (batch.cond, batch.uncond))
        return combine_cfg(cond, uncond, omega)

    def solve(self, batch: Batch, omega: Tensor) -> Tensor:
        """ẑ_{t_n}: one DDIM jump with CFG in x0 and noise alike, and the motion score in the noise."""
        x0 = self.teacher_x0(batch, omega)
        eps = combine_cfg(batch.cond, batch.uncond, omega)
        if batch.score is not None:
            alpha_bars = self.solver.alpha_bar_at(batch.index), self.solver.alpha_bar_prev_at(batch.index)
            eps = self.combine(eps, batch.score, self.lambdas(batch) / LAMBDA_UNIT, *alpha_bars)
        return self.solver.step(x0, eps, batch.index)

    def __call__(self, student: UNet3D, batch: Batch, omega: Tensor, target_net: UNet3D | None = None) -> StepOutput:
        """The loss on one batch.

        Args:
            student: the network in training.
            omega: guidance scale per sample (B,), drawn from [5, 15] in the paper.
            target_net: an EMA of the student for the target; None = the student itself under stop-gradient.
        """
        t = self.solver.timesteps_at(batch.index)
        t_prev = (t - self.solver.skip).clamp(min=0)
        scales = {"omega": omega}
        if self.motion is not None:
            scales["motion"] = self.lambdas(batch)
        prediction = self._predict(student, batch.z, t, batch.context, scales)
        with torch.no_grad():
            solution = self.solve(batch, omega)
            target = self._predict(target_net or student, solution, t_prev, batch.context, scales)
        return StepOutput(pseudo_huber(prediction, target, self.huber_c), prediction, target, solution)

    def _predict(self, net: UNet3D, x: Tensor, t: Tensor, context: Tensor, scales: dict) -> Tensor:
        eps = net(x, t, context, fps=self.fps, **scales).float()
        return consistency_function(x, eps, t, self.schedule)
