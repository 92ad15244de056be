"""Guidance of the teacher: classifier-free guidance, and motion guidance on top of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..families import TAU
from ..networks.unet import UNet3D
from .ddim import Denoiser
from .schedule import expand, solver_grid


def combine_cfg(cond: Tensor, uncond: Tensor, omega: Tensor) -> Tensor:
    """cond + omega · (cond − uncond), Eq. 3: omega (B,) is the usual CFG scale minus 1.

    Linear, so it may be applied to noise and to x0 alike.
    """
    return cond + expand(omega, cond).to(cond) * (cond - uncond)


def cfg_model(unet: UNet3D, context: Tensor, empty: Tensor, scale: float, fps: int = 8) -> Denoiser:
    """The teacher's guided noise prediction.

    Args:
        context: prompt embedding (B, L, D).
        empty: embedding of the empty prompt (1, L, D).
        scale: usual CFG scale, omega + 1; 1 = no guidance, which spares the second evaluation.
    """

    def predict(x: Tensor, t: Tensor) -> Tensor:
        t = t.to(x.device)
        if scale == 1:
            return unet(x, t, context, fps=fps).float()
        both = torch.cat([context, empty.expand_as(context)])
        cond, uncond = unet(x.repeat(2, 1, 1, 1, 1), t.repeat(2), both, fps=fps).float().chunk(2)
        return combine_cfg(cond, uncond, torch.full((x.shape[0],), scale - 1.0, device=x.device))

    return predict


# How a score enters a step of the solver: (eps, score, strength (B,), alpha_bar (B,) where the step begins, alpha_bar
# (B,) where it ends) -> the noise that the step takes, while x0 follows from eps.
Combination = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def released(eps: Tensor, score: Tensor, strength: Tensor, alpha_bar: Tensor, alpha_bar_prev: Tensor) -> Tensor:
    """As the released weights were trained: the score enters the noise only, x0 stays as it is.

    Args:
        eps: CFG-combined noise (B, C, F, H, W).
        score: gradient of the energy with respect to the latents times LAMBDA_UNIT (``motion_score``), same shape.
        strength: lambda / LAMBDA_UNIT (B,), 0.05 for the paper's 500; 0 = unguided.

    The factor is sqrt(1 − sqrt(alpha_bar)), as in the authors' code, where classifier guidance would have
    sqrt(1 − alpha_bar). Subtracting from the noise makes the DDIM step descend the energy.
    """
    factor = strength.to(alpha_bar) * (1 - alpha_bar.sqrt()).sqrt()
    return eps - expand(factor, eps).to(eps) * score


def equation8(eps: Tensor, score: Tensor, strength: Tensor, alpha_bar: Tensor, alpha_bar_prev: Tensor) -> Tensor:
    """Eq. 8: the solution moves by −lambda · gradient at every timestep. (The paper prints a plus; descent is meant.)

    Said in the noise, which the solver's step multiplies by sqrt(1 − alpha_bar_prev).
    """
    factor = strength.to(alpha_bar_prev) / (1 - alpha_bar_prev).sqrt()
    return eps - expand(factor, eps).to(eps) * score


COMBINATIONS: dict[str, Combination] = {"released": released, "equation8": equation8}


def find_combination(name: str) -> Combination:
    """A combination by name.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in COMBINATIONS:
        raise ValueError(f"unknown combination '{name}' of score and step; known are {', '.join(COMBINATIONS)}")
    return COMBINATIONS[name]


def guidance_edge(steps: int, tau: float) -> float:
    """The solver index (1 − tau) · steps where the guided range begins: sampling excludes it, distillation includes it.

    Rounded, for in binary fractions it may come out just beside the whole number that it is.
    """
    return round((1 - tau) * steps, 6)


def guided_timesteps(steps: int, tau: float = TAU) -> list[int]:
    """Descending timesteps at which a sampling of ``steps`` is guided: what a prior for it should hold.

    The noisiest fraction ``tau``, without the edge, as in the released sampler.

    Raises:
        ValueError: if tau is outside 0..1.
    """
    if not 0 <= tau <= 1:
        raise ValueError(f"tau={tau} is outside 0..1, the fraction of the sampling that is guided")
    edge = guidance_edge(steps, tau)
    return [int(t) for index, t in enumerate(solver_grid(steps)) if index > edge][::-1]
