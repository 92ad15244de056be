"""What badly made frames look like: the bad halves of the preference pairs, and the mild views of training.

Every damage takes frames (N, 3, H, W) in 0..1 and a generator, and returns frames of the same shape and range.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ....core.networks.vae import VideoVAE
from ..world.rendering import blur_matrix

Damage = Callable[[Tensor, torch.Generator], Tensor]

# Difference of the highest and the lowest channel above which a pixel belongs to the shape: backgrounds are muted.
SATURATED = 0.3


def _uniform(frames: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """One value per frame, (N, 1, 1, 1)."""
    return low + (high - low) * torch.rand(len(frames), 1, 1, 1, generator=generator)


def _blurred(frames: Tensor, sigma: float) -> Tensor:
    kernel = torch.from_numpy(blur_matrix(frames.shape[-1], sigma))
    return kernel @ frames @ kernel.T


def _with_noise(frames: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    return (frames + sigma * torch.randn(frames.shape, generator=generator)).clamp(0, 1)


def shape_mask(frames: Tensor) -> Tensor:
    """Where the shape is, (N, 1, H, W), 0 or 1."""
    return (frames.amax(1, keepdim=True) - frames.amin(1, keepdim=True) > SATURATED).float()


def _stranger(frames: Tensor) -> Tensor:
    """The same frames turned upside down, with their hues moved on by a third of the circle."""
    return frames.flip(-1, -2).roll(1, dims=1)


def noise(frames: Tensor, generator: torch.Generator) -> Tensor:
    return _with_noise(frames, _uniform(frames, 0.08, 0.25, generator), generator)


def blur(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Blurs of up to 4 pixels."""
    return frames.lerp(_blurred(frames, 4.0), _uniform(frames, 0.5, 1.0, generator))


def fade(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Colours that go grey."""
    return frames.lerp(frames.mean(1, keepdim=True), _uniform(frames, 0.4, 0.9, generator))


def pixels(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Coarse blocks."""
    return F.interpolate(F.avg_pool2d(frames, 8), scale_factor=8.0)


def warp(frames: Tensor, generator: torch.Generator) -> Tensor:
    """A deformed picture: every point is moved by some pixels, neighbours alike."""
    shift = torch.randn(len(frames), 2, 6, 6, generator=generator) * _uniform(frames, 0.08, 0.16, generator)
    shift = F.interpolate(shift, frames.shape[-2:], mode="bicubic", align_corners=True)
    identity = torch.eye(2, 3).expand(len(frames), 2, 3)
    grid = F.affine_grid(identity, list(frames.shape), align_corners=False) + shift.permute(0, 2, 3, 1)
    return F.grid_sample(frames, grid, padding_mode="border", align_corners=False)


def ghost(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Two pictures at once, both translucent."""
    return frames.lerp(_stranger(frames), _uniform(frames, 0.3, 0.5, generator))


def double(frames: Tensor, generator: torch.Generator) -> Tensor:
    """A second shape of another colour."""
    other = _stranger(frames)
    return frames.lerp(other, shape_mask(other))


def missing(frames: Tensor, generator: torch.Generator) -> Tensor:
    """The shape is gone: its pixels take the mean colour of the others."""
    shape = _blurred(shape_mask(frames), 1.0).mul(4).clamp(0, 1)  # with its soft edge
    ground = 1 - shape
    mean = (frames * ground).sum((2, 3), keepdim=True) / ground.sum((2, 3), keepdim=True).clamp(min=1)
    return frames.lerp(mean, shape)


def patches(frames: Tensor, generator: torch.Generator) -> Tensor:
    """The shape in two colours: the half of it on a random side has its hues moved on."""
    angle = 2 * torch.pi * torch.rand(len(frames), 1, 1, 1, generator=generator)
    at = torch.linspace(-1, 1, frames.shape[-1])
    position = at * angle.cos() + at[:, None] * angle.sin()  # (N, 1, H, W), along a random direction
    shape = shape_mask(frames)
    middle = (shape * position).sum((2, 3), keepdim=True) / shape.sum((2, 3), keepdim=True).clamp(min=1)
    return frames.lerp(frames.roll(1, dims=1), shape * (position > middle))


def resampled(vae: VideoVAE, change: Damage, frames: Tensor, generator: torch.Generator) -> Tensor:
    """Frames (N, 3, H, W) through the autoencoder, with ``change`` applied to their latents (N, 4, h, w)."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        latents = vae.encode(frames[None], generator)[0].transpose(0, 1).float()
        return vae.decode(change(latents, generator).transpose(0, 1)[None])[0].float()


def noised(latents: Tensor, generator: torch.Generator, low: float = 0.4, high: float = 0.8) -> Tensor:
    """Latents of variance 1 in part replaced by noise, whose deviation is between ``low`` and ``high``."""
    sigma = _uniform(latents, low, high, generator)
    return (1 - sigma**2).sqrt() * latents + sigma * torch.randn(latents.shape, generator=generator)


def mixed(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the latents of the same frame upside down."""
    return (latents + latents.flip(-1, -2)) / 2


def melted(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Every latent the mean of its neighbourhood."""
    return F.avg_pool2d(F.pad(latents, (1, 1, 1, 1), mode="replicate"), 3, 1)


PIXEL_DAMAGES: dict[str, Damage] = {
    damage.__name__: damage for damage in (noise, blur, fade, pixels, warp, ghost, double, missing, patches)
}


def damages(vae: VideoVAE) -> dict[str, Damage]:
    """All damages by name, with those that an unfinished sampler leaves in the latents of ``vae``."""
    latent = {f"latent {change.__name__}": partial(resampled, vae, change) for change in (noised, mixed, melted)}
    return PIXEL_DAMAGES | latent


def mild(clips: Tensor, generator: torch.Generator) -> Tensor:
    """Views of clips (B, F, 3, H, W) that mean the same: half of them slightly blurred, noisy and brighter or darker.

    A reward that knows flawless frames alone has gradients that change what no eye sees.
    """
    chosen = (torch.rand(len(clips), 1, 1, 1, 1, generator=generator) < 0.5).float()
    strength = chosen * torch.rand(3, len(clips), 1, 1, 1, 1, generator=generator)
    seen = clips.lerp(_blurred(clips, 1.5), strength[0])
    seen = seen * (1 + 0.3 * strength[1] * (torch.rand(chosen.shape, generator=generator) - 0.5))
    return _with_noise(seen, 0.08 * strength[2], generator)
