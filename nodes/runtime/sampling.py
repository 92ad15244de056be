"""What the sampling nodes do: ComfyUI's inputs in the core's shapes, the core's sampler, and back.

LATENT samples are (F, 4, h, w), unscaled; the core's latents are (1, 4, F, h, w), scaled.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...core.diffusion.consistency import sample_consistency
from ...core.diffusion.ddim import sample_ddim
from ...core.diffusion.guidance import cfg_model
from ...core.diffusion.schedule import NoiseSchedule, draw_noise, sampling_timesteps
from ...core.motion.guidance import motion_model
from ...core.motion.prior import MotionPrior
from ...core.networks.layers import fold_frames
from ..host import host
from .wrappers import SETTINGS, FramesAsBatch, model_settings


class MotionGuide(NamedTuple):
    """A motion to follow; strength and tau as in ``guidance.motion_model``."""

    prior: MotionPrior
    strength: float
    tau: float


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


# --- ComfyUI's inputs ----------


def our_network(model, node: str) -> FramesAsBatch:
    """The network inside a MODEL of our loader, for the node of this name.

    Raises:
        ValueError: for a foreign MODEL.
    """
    network = model.get_model_object("diffusion_model")
    if not isinstance(network, FramesAsBatch):
        raise ValueError(
            f"model: this is another kind of model ({type(network).__name__}); {node} takes one from T2V-Turbo Loader. "
            "Use KSampler for other models"
        )
    return network


def refuse_changes(model, node: str) -> None:
    """Refuse a MODEL whose changes a node that samples by itself would pass over; those of weights are heeded.

    Raises:
        ValueError: naming the changes, for the node of this name.
    """
    changes = host().changes(model) | model.model_options["transformer_options"]
    names = sorted(changes.keys() - {"transformer_options", SETTINGS})
    if names:
        raise ValueError(
            f"model: a node before has changed how it samples ({', '.join(names)}), which has no effect in {node}; "
            "take that node away, or sample with KSampler"
        )


def student_network(model) -> FramesAsBatch:
    """The student inside a MODEL.

    Raises:
        ValueError: for a foreign MODEL, or a teacher.
    """
    network = our_network(model, "T2V-Turbo Sampler")
    if not network.is_student:
        raise ValueError(
            "model: this is a teacher, which cannot sample in a few steps. Load a student, or use KSampler with "
            "sampler ddim, scheduler ddim_uniform, 50 steps and cfg 7.5, or T2V-Turbo Teacher Sampler"
        )
    return network


def teacher_network(model, node: str) -> FramesAsBatch:
    """The teacher inside a MODEL, for the node of this name.

    Raises:
        ValueError: for a foreign MODEL, or a student.
    """
    network = our_network(model, node)
    if network.is_student:
        raise ValueError(
            f"model: this is a student, whose guidance is built in, but {node} needs a teacher. Load its teacher "
            "(model.ckpt, or shapes teacher), or use T2V-Turbo Sampler"
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


def single_context(conditioning: list, network: FramesAsBatch, name: str = "positive") -> Tensor:
    """The prompt's embedding (1, L, D) out of the CONDITIONING of the input ``name``.

    Raises:
        ValueError: for several prompts, or one with settings, such as a mask, that would be passed over.
    """
    if len(conditioning) != 1 or conditioning[0][0].shape[0] != 1:
        raise ValueError(
            f"{name}: holds {len(conditioning)} prompts, but one is taken here; for combined or scheduled prompts use "
            "KSampler, with a student sampler lcm and cfg 1"
        )
    context, settings = conditioning[0]
    if names := sorted(settings.keys() - {"pooled_output"}):
        raise ValueError(
            f"{name}: carries settings ({', '.join(names)}) that have no effect here; take away the node that made "
            "them, or sample with KSampler"
        )
    return network.check_context(context, name)
