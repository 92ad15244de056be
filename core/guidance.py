"""Guidance of the teacher: classifier-free guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from .schedule import expand
from .solver import Denoiser
from .unet import UNet3D


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
        if scale == 1:
            return unet(x, t, context, fps=fps).float()
        both = torch.cat([context, empty.expand_as(context)])
        cond, uncond = unet(x.repeat(2, 1, 1, 1, 1), t.repeat(2), both, fps=fps).float().chunk(2)
        return combine_cfg(cond, uncond, torch.full((x.shape[0],), scale - 1.0))

    return predict


def guided_noise(eps: Tensor, score: Tensor, strength: Tensor, alpha_bar: Tensor) -> Tensor:
    """Motion guidance as the released weights saw it: the score enters the noise only, x0 stays as it is.

    Args:
        eps: CFG-combined noise (B, C, F, H, W).
        score: gradient of the energy with respect to the latents, same shape.
        strength: lambda in the network's unit (B,), 0.05 for the paper's 500; 0 = unguided.
        alpha_bar: at the latents' timesteps (B,).

    The factor is sqrt(1 − sqrt(alpha_bar)), as in the authors' code, where classifier guidance would have
    sqrt(1 − alpha_bar). Subtracting from the noise makes the DDIM step descend the energy.
    """
    factor = strength.to(alpha_bar) * (1 - alpha_bar.sqrt()).sqrt()
    return eps - expand(factor, eps).to(eps) * score


def guided_solution(solution: Tensor, gradient: Tensor, strength: float) -> Tensor:
    """Motion guidance as Eq. 8 prints it: solution + lambda · gradient, added to the ODE solution itself.

    ``gradient`` is used as given; pass the negative gradient of the energy to descend it.
    """
    return solution + strength * gradient
