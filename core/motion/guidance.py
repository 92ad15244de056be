"""The teacher's sampling with the motion of a reference clip (Eq. 8)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.ddim import DDIMSolver, GuidedDenoiser
from ..diffusion.guidance import cfg_model, combine_cfg, find_combination, guided_timesteps
from ..diffusion.schedule import NoiseSchedule
from ..families import MOTION_STRENGTH, TAU
from ..networks.unet import LAMBDA_UNIT, UNet3D
from .energies import Energy, find_energy
from .prior import MotionPrior
from .score import motion_score


def motion_model(
    unet: UNet3D,
    prior: MotionPrior,
    context: Tensor,
    empty: Tensor,
    scale: float,
    schedule: NoiseSchedule,
    steps: int = 50,
    strength: float = MOTION_STRENGTH,
    tau: float = TAU,
    energy: str | Energy = "mean",
    combination: str = "released",
    fps: int = 8,
    chunk: int = 1,
    checkpointing: bool = True,
) -> GuidedDenoiser:
    """The teacher's noise prediction with CFG and, in the first part of the sampling, motion guidance (Eq. 8).

    For ``sample_ddim`` with the same ``schedule`` and ``steps``. A guided step costs a backward pass, no more forwards.

    Args:
        prior: the reference's motion; of several timesteps the nearest is taken.
        context, empty, scale, fps: as in ``cfg_model``.
        strength: lambda in the paper's unit, 500 with the energy "mean"; 0 = unguided.
        tau: fraction of the sampling that is guided, from the noisiest step on (``guided_timesteps``).
        energy: name of an energy, or an energy.
        combination: name of an entry of ``COMBINATIONS``.
        chunk, checkpointing: bounds of memory, as in ``motion_score``.

    Raises:
        ValueError: for an unknown name, tau outside 0..1, or a prior of another architecture.
    """
    prior.check(unet)
    combine, energy, solver = find_combination(combination), find_energy(energy), DDIMSolver(schedule, steps)
    guided = guided_timesteps(steps, tau) if strength else []
    prior.warn_of_gaps(guided, steps)
    unguided = cfg_model(unet, context, empty, scale, fps)

    def predict(x: Tensor, t: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if int(t[0]) not in guided:
            return unguided(x, t)
        prior.check(unet, x.shape)
        found = motion_score(unet, x, t, context, prior.at(int(t[0])), energy, fps, chunk, checkpointing)
        eps = found.noise
        if scale != 1:
            uncond = unet(x, t.to(x.device), empty.expand_as(context), fps=fps).float()
            eps = combine_cfg(eps, uncond, torch.full((len(x),), scale - 1.0, device=x.device))
        strengths = torch.full((len(x),), strength / LAMBDA_UNIT)
        index = torch.searchsorted(solver.timesteps, t.cpu().contiguous())
        return eps, combine(eps, found.score, strengths, solver.alpha_bar[index], solver.alpha_bar_prev[index])

    return predict
