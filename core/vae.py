"""The KL autoencoder between frames and latents: diffusers' AutoencoderKL behind a face for clips."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from .config import VAEConfig
from .layers import fold_frames, unfold_frames


class VideoVAE(nn.Module):
    """Encodes and decodes clips frame by frame.

    Frames are (B, F, 3, H, W) in 0..1; latents are (B, 4, F, H/8, W/8), scaled to about unit variance.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        levels = len(config.channels)
        self.model = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.channels,
            layers_per_block=config.num_res_blocks,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_groups,
            scaling_factor=config.scale_factor,
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        return self.model.device

    def encode(self, frames: Tensor, generator: torch.Generator | None = None, chunk: int = 16) -> Tensor:
        """Frames -> a sample of the posterior (with ``generator``) or its mean (without), as scaled latents.

        Args:
            frames: (B, F, 3, H, W) in 0..1; H and W divisible by the downsampling factor.
            generator: source of the posterior's noise, on the CPU so that one seed means one latent everywhere.
            chunk: frames encoded at once, which bounds the memory.

        Raises:
            ValueError: if a side is not divisible by the downsampling factor.
        """
        factor = self.config.downsampling
        height, width = frames.shape[-2:]
        if height % factor or width % factor:
            raise ValueError(f"frame size {width}x{height} is not divisible by {factor}: crop or resize the clip")
        pixels = frames.flatten(0, 1).to(self.device, self.dtype) * 2 - 1
        latents = torch.cat([self._encode(part, generator) for part in pixels.split(chunk)])
        return unfold_frames(latents, frames.shape[1]) * self.config.scale_factor

    def _encode(self, pixels: Tensor, generator: torch.Generator | None) -> Tensor:
        posterior = self.model.encode(pixels).latent_dist
        if generator is None:
            return posterior.mean
        noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
        return posterior.mean + posterior.std * noise

    def decode(self, latents: Tensor, chunk: int = 16) -> Tensor:
        """Scaled latents (B, 4, F, h, w) -> frames (B, F, 3, 8h, 8w) in 0..1, clamped.

        ``chunk`` frames are decoded at once, which bounds the memory.
        """
        frames = latents.shape[2]
        z = fold_frames(latents).to(self.device, self.dtype) / self.config.scale_factor
        pixels = torch.cat([self.model.decode(part).sample for part in z.split(chunk)])
        return ((pixels + 1) / 2).clamp(0, 1).unflatten(0, (-1, frames))
