"""What the sampling nodes do: ComfyUI's inputs in the core's shapes, the core's sampler, and back.

LATENT samples are (F, 4, h, w), unscaled; the core's latents are (1, 4, F, h, w), scaled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.consistency import sample_consistency
from ..core.layers import fold_frames
from ..core.schedule import NoiseSchedule, draw_noise, sampling_timesteps
from .adapters import FramesAsBatch, model_settings
from .comfy_host import host


@torch.no_grad()
def sample_clip(
    model, positive: list, samples: Tensor, seed: int, steps: int, guidance: float, fps: int | None
) -> Tensor:
    """Few-step sampling with a student MODEL.

    Args:
        model: a MODEL of our loader.
        positive: CONDITIONING with one entry.
        samples: (F, 4, h, w), for their shape alone.
        guidance: usual guidance scale, 1 = none; the student's omega is this minus 1.
        fps: the network's frame rate input; None = the model's own.

    Returns:
        (F, 4, h, w), unscaled.

    Raises:
        ValueError: for a MODEL, CONDITIONING or LATENT that does not fit.
    """
    network = student_network(model)
    frames, context = frame_count(samples, network), single_context(positive, network)
    settings = model_settings(model.model_options) | {"omega": guidance - 1} | ({"fps": fps} if fps else {})
    host().load(model, model.memory_required(samples.shape))
    generator = torch.Generator().manual_seed(seed)
    noise = draw_noise((1, samples.shape[1], frames, *samples.shape[2:]), generator).to(model.load_device)
    predict = network.denoiser(context.to(model.load_device), settings)
    callback = host().progress(model, steps)
    latents = sample_consistency(predict, noise, NoiseSchedule(), steps, generator, callback=callback)
    return fold_frames(latents).div(network.latent_scale).to(host().output_device())


def student_sigmas(steps: int) -> Tensor:
    """Noise levels sigma / alpha (steps + 1,) of the student's timesteps, descending, with a final 0."""
    alpha_bar = NoiseSchedule().alpha_bar[sampling_timesteps(steps)]
    return torch.cat([((1 - alpha_bar) / alpha_bar).sqrt(), torch.zeros(1)])


def student_network(model) -> FramesAsBatch:
    """The student inside a MODEL.

    Raises:
        ValueError: for a foreign MODEL, or a teacher.
    """
    network = model.get_model_object("diffusion_model")
    if not isinstance(network, FramesAsBatch):
        raise ValueError(
            f"model: this is another kind of model ({type(network).__name__}); T2V-Turbo Sampler takes a student "
            "from T2V-Turbo Loader. Use KSampler for other models"
        )
    if not network.is_student:
        raise ValueError(
            "model: this is a teacher, which cannot sample in a few steps. Load a student, or use KSampler with "
            "sampler ddim, scheduler ddim_uniform, 50 steps and cfg 7.5"
        )
    return network


def frame_count(samples: Tensor, network: FramesAsBatch) -> int:
    channels = network.unet.config.in_channels
    if samples.ndim != 4 or samples.shape[1] != channels:
        raise ValueError(
            f"latent: has the shape {tuple(samples.shape)}, but (frames, {channels}, height, width) is needed; "
            "use T2V-Turbo Empty Latent Video"
        )
    return samples.shape[0]


def single_context(positive: list, network: FramesAsBatch) -> Tensor:
    """The prompt's embedding (1, L, D) out of a CONDITIONING."""
    if len(positive) != 1 or positive[0][0].shape[0] != 1:
        raise ValueError(
            f"positive: holds {len(positive)} prompts, but T2V-Turbo Sampler takes one; for combined or scheduled "
            "prompts use KSampler with sampler lcm and cfg 1"
        )
    return network.check_context(positive[0][0])
