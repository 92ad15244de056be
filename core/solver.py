"""DDIM: the step that distillation copies, its inversion, and the plain sampler of the teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .schedule import SOLVER_STEPS, TRAIN_TIMESTEPS, NoiseSchedule, expand, solver_grid

# Predicts the noise: (x (B, C, F, H, W), t (B,)) -> eps.
Denoiser = Callable[[Tensor, Tensor], Tensor]
# Called after every step with {"i", "steps", "t", "x", "denoised"}.
Callback = Callable[[dict], None]


class DDIMSolver:
    """Deterministic DDIM (eta = 0) on a grid of ``steps`` timesteps."""

    def __init__(self, schedule: NoiseSchedule, steps: int = SOLVER_STEPS):
        self.schedule = schedule
        self.timesteps = solver_grid(steps)  # (steps,), ascending
        self.skip = TRAIN_TIMESTEPS // steps
        self.alpha_bar = schedule.alpha_bar[self.timesteps]
        # The step from the first grid point ends at t = 0, not at a noise-free alpha_bar of 1.
        self.alpha_bar_prev = torch.cat([schedule.alpha_bar[:1], self.alpha_bar[:-1]])

    def __len__(self) -> int:
        return len(self.timesteps)

    def step(self, x0: Tensor, eps: Tensor, index: Tensor) -> Tensor:
        """Ψ: from grid point ``index`` (B,) to the one before it, given predicted x0 and noise."""
        alpha_bar = expand(self.alpha_bar_prev[index.cpu()], x0)
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps

    def invert_step(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """One step of DDIM inversion: from timestep max(t − skip, 0) up to ``t`` (B,)."""
        before = (t.cpu() - self.skip).clamp(min=0)
        alpha_prev, sigma_prev = self.schedule.coefficients(before, x)
        alpha, sigma = self.schedule.coefficients(t, x)
        return (x - sigma_prev * eps) * (alpha / alpha_prev) + sigma * eps

    def invert(self, eps_model: Denoiser, x: Tensor, steps: int, callback: Callback | None = None) -> list[Tensor]:
        """DDIM inversion of clean latents over the first ``steps`` grid points, without CFG.

        The network is evaluated at the timestep that each step arrives at, on the latents of the level below.

        Returns:
            One tensor per step; the i-th belongs to ``self.timesteps[i]``.
        """
        trajectory = []
        for i in range(steps):
            t = self.timesteps[i].expand(x.shape[0])
            x = self.invert_step(x, eps_model(x, t), t)
            trajectory.append(x)
            if callback:
                callback({"i": i, "steps": steps, "t": int(t[0]), "x": x, "denoised": x})
        return trajectory


def sample_ddim(
    eps_model: Denoiser,
    noise: Tensor,
    schedule: NoiseSchedule,
    steps: int = 50,
    callback: Callback | None = None,
) -> Tensor:
    """The teacher's sampler: DDIM from pure noise (B, C, F, H, W) to clean latents.

    ``eps_model`` applies classifier-free guidance itself (``guidance.cfg_model``).
    """
    solver = DDIMSolver(schedule, steps)
    x = noise
    for i, index in enumerate(reversed(range(steps))):
        t = solver.timesteps[index].expand(x.shape[0])
        eps = eps_model(x, t)
        x0 = schedule.predict_x0(x, eps, t)
        x = solver.step(x0, eps, torch.full_like(t, index))
        if callback:
            callback({"i": i, "steps": steps, "t": int(t[0]), "x": x, "denoised": x0})
    return x0
