"""Read the motion of a reference clip.

Images are (F, H, W, 3) in 0..1, LATENT samples (F, 4, h, w), unscaled; the core's latents are (1, 4, F, h, w), scaled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.diffusion.schedule import NoiseSchedule
from ...core.motion.inversion import inversion_steps
from ...core.motion.prior import MotionPrior, Origin, make_prior
from ...core.networks.layers import unfold_frames
from ...core.video import resize_and_crop
from ..host import host
from .native_inputs import frame_count, single_context, teacher_network
from .wrappers import FramesAsBatch, model_settings


def read_motion(
    model, vae, positive: list, images: Tensor, samples: Tensor, timesteps: list[int], method: str, grid: int, seed: int
) -> MotionPrior:
    """The motion of a reference clip, as a teacher MODEL sees it.

    Args:
        positive: CONDITIONING of the reference's caption, one entry.
        images: the reference (N, H, W, 3); N frames at least as many as those of ``samples``.
        samples: (F, 4, h, w), for their shape alone: that of the clip to be guided.
        timesteps, method, grid: see ``motion.prior.make_prior`` and ``Origin``.
        seed: for the method "noise".

    Raises:
        ValueError: for inputs that do not fit each other.
    """
    network = teacher_network(model, "T2V-Turbo Motion Prior")
    context = single_context(positive, network).to(model.load_device)
    x0 = encode_reference(vae, images, samples, network).to(model.load_device)
    steps = inversion_steps(timesteps, method, grid) + len(timesteps)
    host().load(model, model.memory_required(samples.shape))
    fps = model_settings(model.model_options)["fps"]
    return make_prior(
        network.unet,
        x0,
        context,
        timesteps,
        NoiseSchedule(),
        Origin(network.family, method=method, grid=grid, fps=fps),
        generator=torch.Generator().manual_seed(seed),
        callback=host().progress(model, steps, "reading motion"),
    )


def encode_reference(vae, images: Tensor, samples: Tensor, network: FramesAsBatch) -> Tensor:
    """The reference as clean latents (1, 4, F, h, w) of the shape of ``samples``.

    Raises:
        ValueError: for too few frames, or another kind of VAE.
    """
    frames = frame_count(samples, network)
    height, width = (side * vae.spacial_compression_encode() for side in samples.shape[2:])
    encoded = vae.encode(fit_frames(images, frames, height, width))
    if encoded.shape != samples.shape:
        raise ValueError(
            f"vae: gives latents of the shape {tuple(encoded.shape)}, but {tuple(samples.shape)} is needed; use the "
            "VAE of the T2V-Turbo Loader"
        )
    return unfold_frames(encoded, frames) * network.latent_scale


def fit_frames(images: Tensor, frames: int, height: int, width: int) -> Tensor:
    """``frames`` images spread evenly over (N, h, w, 3), scaled to cover (H, W) and cropped to their middle.

    Raises:
        ValueError: for fewer images than frames.
    """
    if len(images) < frames:
        raise ValueError(
            f"images: the reference has {len(images)} frames, but {frames} are needed; take a longer video, or a "
            "shorter clip in T2V-Turbo Empty Latent Video"
        )
    pixels = images[torch.arange(frames) * len(images) // frames, ..., :3]
    return resize_and_crop(pixels.movedim(-1, 1), height, width).movedim(1, -1)
