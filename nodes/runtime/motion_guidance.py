"""Make any native sampler follow a motion.

A sampler's frames are (F, 4, h, w); the core's latents are (1, 4, F, h, w). Both are scaled here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...core.diffusion.guidance import guidance_edge, released
from ...core.diffusion.schedule import TRAIN_TIMESTEPS, NoiseSchedule
from ...core.motion.prior import MotionPrior
from ...core.motion.score import motion_score
from ...core.networks.layers import fold_frames, unfold_frames
from ...core.networks.unet import LAMBDA_UNIT
from .native_inputs import teacher_network
from .wrappers import FramesAsBatch, model_settings


class MotionGuide(NamedTuple):
    """A motion to follow; strength and tau as in ``guidance.motion_model``."""

    prior: MotionPrior
    strength: float
    tau: float


def follow_motion(model, guide: MotionGuide):
    """A copy of a teacher MODEL that follows a motion in every native sampler.

    Raises:
        ValueError: for a foreign MODEL, a student, or a motion of another architecture.
    """
    network = teacher_network(model, "T2V-Turbo Motion Guidance")
    guide.prior.check(network.unet)

    # A plain function: ComfyUI copies the options of a MODEL deeply, and the prior is large.
    def descend(args: dict) -> Tensor:
        return args["denoised"] + motion_shift(network, guide, args)

    guided = model.clone()
    guided.set_model_sampler_post_cfg_function(descend)
    return guided


def motion_shift(network: FramesAsBatch, guide: MotionGuide, args: dict) -> Tensor | float:
    """How far the denoised frames (F, 4, h, w) must move for the next step to follow the motion.

    A native sampler takes the clean clip and the noise from one prediction, the released scheme changes the noise
    alone. Both agree if the prediction moves by as much as makes an Euler step, (1 − r) · denoised + r · x with r the
    ratio of the noise levels, end where the changed noise would: exact for euler and ddim, in the same direction for
    all others. Changing the noise within the prediction would go the opposite way.

    Args:
        args: what ComfyUI hands to a post-CFG function.
    """
    sigma, options = float(args["sigma"].max()), args["model_options"]
    following = next_sigma(options["transformer_options"]["sample_sigmas"], sigma)
    schedule = NoiseSchedule()
    # A step is guided if it ends in the guided range: the rule of ``guidance.guided_timesteps``, for any schedule.
    edge = guidance_edge(TRAIN_TIMESTEPS, guide.tau)
    if not (guide.strength and following) or timestep_of(following, schedule) < edge:
        return 0.0
    t = timestep_of(sigma, schedule)
    x = unfold_frames(args["input"] / (1 + sigma**2) ** 0.5, len(args["input"]))
    guide.prior.check(network.unet, x.shape)
    context, fps = prompt_of(args["cond"], network), model_settings(options)["fps"]
    score = motion_score(network.unet, x, torch.tensor([t]), context, guide.prior.at(t), fps=fps).score
    alpha_bars = (torch.tensor([1 / (1 + level**2)]) for level in (sigma, following))
    change = released(torch.zeros_like(score), score, torch.tensor([guide.strength / LAMBDA_UNIT]), *alpha_bars)
    return fold_frames(change) * (following / (1 - following / sigma))


def next_sigma(sigmas: Tensor, sigma: float) -> float:
    """The first level below ``sigma`` of a sampler's noise levels (S + 1,); 0 at its end."""
    return max((level for level in sigmas.tolist() if level < sigma * (1 - 1e-4)), default=0.0)


def timestep_of(sigma: float, schedule: NoiseSchedule) -> int:
    """The training timestep whose noise level sigma / alpha is nearest."""
    log_sigmas = (1 / schedule.alpha_bar - 1).log() / 2
    return int((log_sigmas - torch.tensor(sigma).log()).abs().argmin())


def prompt_of(conditions: list[dict], network: FramesAsBatch) -> Tensor:
    """The prompt's embedding (1, L, D) out of a sampler's conditions.

    Raises:
        ValueError: if there are several, or for one of another model.
    """
    if len(conditions) != 1 or len(conditions[0]["cross_attn"]) != 1:
        raise ValueError(
            "positive: T2V-Turbo Motion Guidance takes one prompt at a time; sample without combined or scheduled "
            "prompts, or without the guidance"
        )
    return network.check_context(conditions[0]["cross_attn"])
