"""Noisy latents of a reference clip at the wanted timesteps: by DDIM inversion, or by adding noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.ddim import Callback, DDIMSolver, Denoiser, Trajectory
from ..diffusion.schedule import SOLVER_STEPS, TRAIN_TIMESTEPS, NoiseSchedule, draw_noise

# How the reference gets its latents at a timestep.
METHODS = ("ddim", "noise")


@dataclass(frozen=True)
class PriorLatents:
    """Latents of a reference at some timesteps."""

    latents: dict[int, Tensor]  # timestep -> (B, C, F, H, W)
    evaluations: int  # of the UNet, one per sample and step


def inversion_steps(timesteps: Sequence[int], method: str, grid: int) -> int:
    """UNet evaluations per sample that ``prior_latents`` spends.

    Raises:
        ValueError: for an unknown method, or a timestep outside 0..999 or the grid.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method '{method}' of a motion prior; known are {', '.join(METHODS)}")
    for t in timesteps:
        if not 0 <= t < TRAIN_TIMESTEPS:
            raise ValueError(
                f"timestep {t} is outside 0..{TRAIN_TIMESTEPS - 1}: name others, or leave them to the sampling's steps "
                "and tau"
            )
    if method == "noise":
        return 0
    solver = DDIMSolver(NoiseSchedule(), grid)
    return max(solver.steps_to(t) for t in timesteps)


@torch.no_grad()
def prior_latents(
    eps_model: Denoiser,
    x0: Tensor,
    timesteps: Sequence[int],
    schedule: NoiseSchedule,
    method: str = "ddim",
    grid: int = SOLVER_STEPS,
    generator: torch.Generator | list[torch.Generator] | None = None,
    callback: Callback | None = None,
) -> PriorLatents:
    """Latents of clips at all of ``timesteps``, from one inversion or none.

    Args:
        eps_model: the teacher's noise prediction for the clips' own captions without CFG (``cfg_model``, scale 1).
        x0: clean latents (B, C, F, H, W).
        timesteps: 0..999, in any order.
        method: "ddim" inverts once up to the highest timestep and keeps the trajectory; "noise" noises the clips once,
            which asks nothing of the network.
        grid: steps of a whole inversion. 200 are the authors'; with 50 or 25 a timestep between two grid points is
            interpolated (``Trajectory.at``).
        generator: for "noise", one for all or one per sample.

    Raises:
        ValueError: for an unknown method, no timestep, or one outside the grid.
    """
    if not timesteps:
        raise ValueError("timesteps: a motion prior needs at least one, 0..999")
    steps = inversion_steps(timesteps, method, grid)
    if method == "noise":
        noise = draw_noise(x0.shape, generator).to(x0)
        latents = {t: schedule.add_noise(x0, noise, torch.full((len(x0),), t)) for t in timesteps}
        return PriorLatents(latents, 0)
    solver = DDIMSolver(schedule, grid)
    trajectory = Trajectory(solver, x0, solver.invert(eps_model, x0, steps, callback))
    return PriorLatents({t: trajectory.at(t) for t in timesteps}, steps * len(x0))
