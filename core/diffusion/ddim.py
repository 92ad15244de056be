"""DDIM: the step that distillation copies, its inversion, and the plain sampler of the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import SOLVER_STEPS, TRAIN_TIMESTEPS, Lookup, NoiseSchedule, expand, solver_grid

# Predicts the noise: (x (B, C, F, H, W), t (B,)) -> eps. The samplers give t on the CPU, where it may steer a program.
Denoiser = Callable[[Tensor, Tensor], Tensor]
# The same, or where the solver's step shall go elsewhere than x0 says, the pair (eps of x0, eps of the step).
GuidedDenoiser = Callable[[Tensor, Tensor], Tensor | tuple[Tensor, Tensor]]
# Called after every step with {"i", "steps", "t", "x", "denoised"}. A sampler's step begins with x and has "latents" as
# well, with which the next step begins, or which are the result; others that are put in their place are sampled on.
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
        self.timesteps_at, self.alpha_bar_at = Lookup(self.timesteps), Lookup(self.alpha_bar)
        self.alpha_bar_prev_at = Lookup(self.alpha_bar_prev)

    def __len__(self) -> int:
        return len(self.timesteps)

    def steps_to(self, t: int) -> int:
        """Number of grid points up to the first at or above timestep ``t``: what an inversion to ``t`` takes.

        Raises:
            ValueError: if ``t`` lies outside the grid.
        """
        top = int(self.timesteps[-1])
        if not 0 <= t <= top:
            raise ValueError(
                f"timestep {t} lies outside the grid of {len(self)} steps, which is 0..{top}; a number of steps that "
                f"divides {TRAIN_TIMESTEPS} reaches {TRAIN_TIMESTEPS - 1}"
            )
        return int(torch.searchsorted(self.timesteps, t)) + 1

    def step(self, x0: Tensor, eps: Tensor, index: Tensor) -> Tensor:
        """Ψ: from grid point ``index`` (B,) to the one before it, given predicted x0 and noise."""
        alpha_bar = expand(self.alpha_bar_prev_at(index), x0)
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps

    def invert_step(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """One step of DDIM inversion: from timestep max(t − skip, 0) up to ``t`` (B,)."""
        before = (t - self.skip).clamp(min=0)
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


@dataclass(frozen=True)
class Trajectory:
    """The path of a DDIM inversion: its levels, and any timestep between them.

    On a coarse grid this is an approximation whose error is that of the coarse steps.
    """

    solver: DDIMSolver
    x0: Tensor  # clean latents (B, C, F, H, W), the level of t = 0
    levels: list[Tensor]  # of ``DDIMSolver.invert``; the i-th belongs to the i-th grid point

    def at(self, t: int) -> Tensor:
        """Latents at timestep ``t``, without evaluating the network.

        A step of DDIM holds the noise constant, so that x / alpha moves in a straight line of sigma / alpha. A point on
        the line is where a shorter step with the same noise would have ended.

        Raises:
            ValueError: if the trajectory does not reach ``t``.
        """
        i = self.solver.steps_to(t) - 1
        if i >= len(self.levels):
            raise ValueError(f"timestep {t} lies beyond the {len(self.levels)} inverted levels")
        upper = int(self.solver.timesteps[i])
        if upper == t:
            return self.levels[i]
        lower, below = (int(self.solver.timesteps[i - 1]), self.levels[i - 1]) if i else (0, self.x0)
        (a0, s0), (a, s), (a1, s1) = (
            self.solver.schedule.coefficients(torch.tensor([step]), self.x0) for step in (lower, t, upper)
        )
        part = (s / a - s0 / a0) / (s1 / a1 - s0 / a0)
        return a * torch.lerp(below / a0, self.levels[i] / a1, part)


def ddim_steps(eps_model: GuidedDenoiser, noise: Tensor, schedule: NoiseSchedule, steps: int = 50) -> Iterator[dict]:
    """The teacher's sampler, step by step: DDIM from pure noise (B, C, F, H, W) to clean latents.

    ``eps_model`` applies its guidance itself (``guidance.cfg_model``, ``guidance.motion_model``).

    Yields:
        After every step what a ``Callback`` gets.
    """
    solver = DDIMSolver(schedule, steps)
    x = noise
    for i, index in enumerate(reversed(range(steps))):
        t = solver.timesteps[index].expand(x.shape[0])
        eps = eps_model(x, t)
        eps, eps_step = eps if isinstance(eps, tuple) else (eps, eps)
        x0 = schedule.predict_x0(x, eps, t)
        after = solver.step(x0, eps_step, torch.full_like(t, index)) if index else x0
        step = {"i": i, "steps": steps, "t": int(t[0]), "x": x, "denoised": x0, "latents": after}
        yield step
        x = step["latents"]


def sample_ddim(
    eps_model: GuidedDenoiser,
    noise: Tensor,
    schedule: NoiseSchedule,
    steps: int = 50,
    callback: Callback | None = None,
) -> Tensor:
    """The result (B, C, F, H, W) of ``ddim_steps``, with a callback after every step."""
    return finish(ddim_steps(eps_model, noise, schedule, steps), callback)


def finish(steps: Iterator[dict], callback: Callback | None = None) -> Tensor:
    """Sample to the end, calling back after every step: the latents of the last one."""
    for step in steps:
        if callback:
            callback(step)
    return step["latents"]
