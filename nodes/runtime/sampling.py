"""Sample a clip with a student or a teacher.

LATENT samples are (F, 4, h, w), unscaled; the core's latents are (1, 4, F, h, w), scaled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.diffusion.consistency import sample_consistency
from ...core.diffusion.ddim import sample_ddim
from ...core.diffusion.guidance import cfg_model
from ...core.diffusion.schedule import NoiseSchedule, draw_noise, sampling_timesteps
from ...core.motion.guidance import motion_model
from ...core.networks.layers import fold_frames
from ..host import host
from .motion_guidance import MotionGuide
from .native_inputs import frame_count, refuse_changes, single_context, student_network, teacher_network
from .wrappers import FramesAsBatch, model_settings

# --- students ----------


@torch.no_grad()
def sample_clip(model, positive: list, samples: Tensor, seed: int, steps: int, settings: dict) -> Tensor:
    """Few-step sampling with a student MODEL.

    Args:
        model: a MODEL of our loader.
        positive: CONDITIONING with one entry.
        samples: (F, 4, h, w), for their shape alone.
        settings: those of ``consistency.student_model`` that differ from the MODEL's own.

    Returns:
        (F, 4, h, w), unscaled.

    Raises:
        ValueError: for a MODEL, CONDITIONING or LATENT that does not fit.
    """
    network = student_network(model)
    refuse_changes(model, "T2V-Turbo Sampler")
    context = single_context(positive, network).to(model.load_device)
    generator = torch.Generator().manual_seed(seed)
    noise = clip_noise(samples, network, generator).to(model.load_device)
    host().load(model, model.memory_required(samples.shape))
    predict = network.denoiser(context, model_settings(model.model_options) | settings)
    callback = host().progress(model, steps)
    return unscaled(sample_consistency(predict, noise, NoiseSchedule(), steps, generator, callback=callback), network)


def student_sigmas(steps: int) -> Tensor:
    """Noise levels sigma / alpha (steps + 1,) of the student's timesteps, descending, with a final 0."""
    alpha_bar = NoiseSchedule().alpha_bar[sampling_timesteps(steps)]
    return torch.cat([((1 - alpha_bar) / alpha_bar).sqrt(), torch.zeros(1)])


# --- teachers ----------


@torch.no_grad()
def sample_teacher_clip(
    model,
    positive: list,
    negative: list,
    samples: Tensor,
    seed: int,
    steps: int,
    cfg: float,
    fps: int = 0,
    guide: MotionGuide | None = None,
) -> Tensor:
    """DDIM sampling with a teacher MODEL.

    Args:
        model, positive, samples: as for ``sample_clip``.
        negative: CONDITIONING with one entry.
        cfg: usual guidance scale, 1 = none.
        fps: the network's frame rate input; 0 = the model's own.
        guide: the motion to follow; None = none.

    Returns:
        (F, 4, h, w), unscaled.

    Raises:
        ValueError: for a MODEL, CONDITIONING, LATENT or motion that does not fit.
    """
    network = teacher_network(model, "T2V-Turbo Teacher Sampler")
    refuse_changes(model, "T2V-Turbo Teacher Sampler, which takes a motion as an input of its own")
    context, empty = (
        single_context(given, network, name).to(model.load_device)
        for given, name in ((positive, "positive"), (negative, "negative"))
    )
    noise = clip_noise(samples, network, torch.Generator().manual_seed(seed)).to(model.load_device)
    # Both conditions go through the network at once.
    host().load(model, model.memory_required((2 * len(samples), *samples.shape[1:])))
    schedule, fps = NoiseSchedule(), fps or model_settings(model.model_options)["fps"]
    if guide:
        guide.prior.check(network.unet, noise.shape)
        predict = motion_model(
            network.unet, guide.prior, context, empty, cfg, schedule, steps, guide.strength, guide.tau, fps=fps
        )
    else:
        predict = cfg_model(network.unet, context, empty, cfg, fps)
    return unscaled(sample_ddim(predict, noise, schedule, steps, host().progress(model, steps)), network)


# --- clips ----------


def clip_seed(latent: dict, seed: int) -> int:
    """The seed of the clip that a LATENT is the place of: ``seed`` for the first, the following for those after it.

    Only the first clip of several may come without ``batch_index``, its frames' places in the whole.
    """
    first = latent.get("batch_index", [0])[0]
    return (seed + first // len(latent["samples"])) % 2**64


def clip_noise(samples: Tensor, network: FramesAsBatch, generator: torch.Generator) -> Tensor:
    """Noise (1, 4, F, h, w) of the clip that ``samples`` (F, 4, h, w) have the shape of."""
    frames = frame_count(samples, network)
    return draw_noise((1, samples.shape[1], frames, *samples.shape[2:]), generator)


def unscaled(latents: Tensor, network: FramesAsBatch) -> Tensor:
    """Sampled latents (1, 4, F, h, w) as samples (F, 4, h, w), where ComfyUI wants them."""
    return fold_frames(latents).div(network.latent_scale).to(host().output_device())
