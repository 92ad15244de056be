"""The consistency model: boundary scalings, the consistency function, its loss, the few-step sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..families import TAU
from ..networks.unet import UNet3D
from .ddim import Callback, Denoiser, finish
from .schedule import NoiseSchedule, draw_noise, expand, sampling_timesteps

# c_skip and c_out see the timestep multiplied by this, and have this data deviation squared.
TIMESTEP_SCALING = 10.0
SIGMA_DATA_SQUARED = 0.25
HUBER_C = 0.001


def boundary_scalings(t: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out (B,) at timesteps ``t`` (B,): 1 and 0 at t = 0, so that f(x, 0) = x."""
    s = t.float() * TIMESTEP_SCALING
    return SIGMA_DATA_SQUARED / (s**2 + SIGMA_DATA_SQUARED), s / (s**2 + SIGMA_DATA_SQUARED).sqrt()


def consistency_function(x: Tensor, eps: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """f_theta(x, t) = c_skip · x + c_out · x0, with x0 from the predicted noise ``eps``; t (B,)."""
    c_skip, c_out = boundary_scalings(t)
    return expand(c_skip, x) * x + expand(c_out, x) * schedule.predict_x0(x, eps, t)


def pseudo_huber(prediction: Tensor, target: Tensor, c: float = HUBER_C) -> Tensor:
    """mean( sqrt(diff² + c²) − c ), Eq. 9's distance, in fp32 because c² is below bf16's resolution of diff²."""
    diff = prediction.float() - target.float()
    return ((diff**2 + c**2).sqrt() - c).mean()


def student_model(
    unet: UNet3D,
    context: Tensor,
    omega: float,
    fps: int = 8,
    motion: float = 0.0,
    tau: float = TAU,
) -> Denoiser:
    """The student's noise prediction for sampling.

    Args:
        context: prompt embedding (B, L, D).
        omega: guidance scale the student was distilled for, in the paper's unit (5 to 15; CFG scale minus 1).
        motion: lambda in the paper's unit (0 to 1000, trained at 500); ignored by a student without that input.
        tau: lambda applies in the first ``tau`` fraction of the sampling, at t >= (1 − tau) · 1000.
    """

    def predict(x: Tensor, t: Tensor) -> Tensor:
        t = t.to(x.device)  # everything that the network is given lies where the latents do
        scales = {"omega": torch.full((x.shape[0],), float(omega), device=x.device)}
        if unet.takes_motion:
            scales["motion"] = (t >= (1 - tau) * 1000).float() * motion  # 0 is embedded, not dropped
        return unet(x, t, context, fps=fps, **scales).float()

    return predict


def consistency_steps(
    eps_model: Denoiser,
    noise: Tensor,
    schedule: NoiseSchedule,
    steps: int = 4,
    generator: torch.Generator | list[torch.Generator] | None = None,
    renoise: Callable[[int], Tensor] | None = None,
    timesteps: Tensor | None = None,
) -> Iterator[dict]:
    """Few-step sampling, step by step: denoise to the origin, re-noise to the next timestep, and again.

    Args:
        noise: initial latents (B, C, F, H, W), unit variance.
        steps: number of network evaluations, 1 to 16 in use.
        generator: draws the noise between steps, one for all or one per sample (``schedule.draw_noise``).
        renoise: noise source instead of the generator, a function of the step number i -> noise shaped like ``noise``.
        timesteps: descending timesteps (steps,) instead of ``sampling_timesteps(steps)``.

    Yields:
        After every evaluation what a ``Callback`` gets.
    """
    if renoise is None:
        def renoise(i):
            return draw_noise(noise.shape, generator).to(noise)
    timesteps = sampling_timesteps(steps) if timesteps is None else timesteps
    x = noise
    for i, t in enumerate(timesteps):
        t = t.expand(x.shape[0])
        denoised = consistency_function(x, eps_model(x, t), t, schedule)
        after = denoised
        if i + 1 < len(timesteps):
            after = schedule.add_noise(denoised, renoise(i), timesteps[i + 1].expand(x.shape[0]))
        step = {"i": i, "steps": len(timesteps), "t": int(t[0]), "x": x, "denoised": denoised, "latents": after}
        yield step
        x = step["latents"]


def sample_consistency(
    eps_model: Denoiser,
    noise: Tensor,
    schedule: NoiseSchedule,
    steps: int = 4,
    generator: torch.Generator | list[torch.Generator] | None = None,
    renoise: Callable[[int], Tensor] | None = None,
    callback: Callback | None = None,
    timesteps: Tensor | None = None,
) -> Tensor:
    """The result (B, C, F, H, W) of ``consistency_steps``, with a callback after every step."""
    return finish(consistency_steps(eps_model, noise, schedule, steps, generator, renoise, timesteps), callback)
