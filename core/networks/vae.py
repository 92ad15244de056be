"""The KL autoencoder between frames and latents, Stable Diffusion's, frame by frame.

Its parameters are named as in diffusers' AutoencoderKL. It stands here in full, because importing that class costs
seconds at every start; `tests/test_vae.py` holds both against each other.

Shapes: pixels (N, 3, H, W) in -1..1; latents (N, C, h, w), unscaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import VAEConfig
from .layers import fold_frames, unfold_frames
from .tiling import tile_count, tiled

NORM_EPS = 1e-6
# Frames that are encoded or decoded at once if nothing else is said.
CHUNK = 8
# Tiles of ``enable_tiling`` in latent cells, Stable Diffusion's 512 pixels.
TILE, OVERLAP = 64, 16


class ResnetBlock(nn.Module):
    """Two normalised convolutions around a skip connection: (N, C, H, W) -> (N, C', H, W)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class AttentionBlock(nn.Module):
    """Self-attention over all positions of a picture, one head: (N, C, H, W) -> the same shape."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.group_norm(x), "n c h w -> n 1 (h w) c")
        h = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        h = self.to_out[0](h)
        return x + rearrange(h, "n 1 (h w) c -> n c h w", h=x.shape[2])


class MidBlock(nn.Module):
    """The deepest level: a residual block, attention, a residual block."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([AttentionBlock(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Downsample(nn.Module):
    """Halves height and width; padded at the right and below alone."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles height and width."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DownBlock(nn.Module):
    """Residual blocks of one resolution and, but for the deepest, the step to the next."""

    def __init__(self, in_channels: int, channels: int, config: VAEConfig, last: bool):
        super().__init__()
        widths = [in_channels] + [channels] * (config.num_res_blocks - 1)
        self.resnets = nn.ModuleList(ResnetBlock(width, channels, config.norm_groups) for width in widths)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(channels)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """Residual blocks of one resolution and, but for the full one, the step to the next."""

    def __init__(self, in_channels: int, channels: int, config: VAEConfig, last: bool):
        super().__init__()
        widths = [in_channels] + [channels] * config.num_res_blocks
        self.resnets = nn.ModuleList(ResnetBlock(width, channels, config.norm_groups) for width in widths)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(channels)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Pixels (N, 3, H, W) -> mean and log-variance of the latents (N, 2·C, h, w)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths, deepest = config.channels, config.channels[-1]
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(widths[max(0, i - 1)], width, config, i == len(widths) - 1) for i, width in enumerate(widths)
        )
        self.mid_block = MidBlock(deepest, config.norm_groups)
        self.conv_norm_out = nn.GroupNorm(config.norm_groups, deepest, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(deepest, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents (N, C, h, w) -> pixels (N, 3, H, W)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = config.channels[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], config.norm_groups)
        self.up_blocks = nn.ModuleList(
            UpBlock(widths[max(0, i - 1)], width, config, i == len(widths) - 1) for i, width in enumerate(widths)
        )
        self.conv_norm_out = nn.GroupNorm(config.norm_groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            z = block(z)
        return self.conv_out(F.silu(self.conv_norm_out(z)))


class Posterior(NamedTuple):
    """The normal distribution of latents that an encoder finds, mean and log-variance (N, C, h, w)."""

    mean: Tensor
    log_variance: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> Posterior:
        """From (N, 2·C, h, w); the bounds are Stable Diffusion's, beyond which the exponential over- or underflows."""
        mean, log_variance = moments.chunk(2, dim=1)
        return cls(mean, log_variance.clamp(-30, 20))

    @property
    def std(self) -> Tensor:
        return (self.log_variance / 2).exp()

    def kl(self) -> Tensor:
        """Divergence from the standard normal distribution (N,), in nats."""
        return (self.mean**2 + self.std**2 - 1 - self.log_variance).flatten(1).sum(1) / 2


class AutoencoderKL(nn.Module):
    """Encoder and decoder of single pictures."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        channels = config.latent_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    def moments(self, pixels: Tensor) -> Tensor:
        """Pixels -> mean and log-variance of the posterior (N, 2·C, h, w)."""
        return self.quant_conv(self.encoder(pixels))

    def encode(self, pixels: Tensor) -> Posterior:
        return Posterior.of(self.moments(pixels))

    def decode(self, z: Tensor) -> Tensor:
        """Latents -> pixels."""
        return self.decoder(self.post_quant_conv(z))


class VideoVAE(nn.Module):
    """Encodes and decodes clips frame by frame.

    Frames are (B, F, 3, H, W) in 0..1; latents are (B, C, F, H/8, W/8), scaled to about unit variance.

    Attributes:
        tile, overlap: of tiles in latent cells, for frames beyond the memory; a tile of None works on whole frames.
        sliced: encode and decode one frame at a time, whatever ``chunk`` says.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.model = AutoencoderKL(config)
        self.tile: int | None = None
        self.overlap = 0
        self.sliced = False

    def enable_slicing(self) -> None:
        """Work on one frame at a time, for the least memory without tiles."""
        self.sliced = True

    def disable_slicing(self) -> None:
        """Work on several frames at once."""
        self.sliced = False

    def enable_tiling(self, *, tile: int = TILE, overlap: int = OVERLAP) -> None:
        """Work on overlapping tiles of a frame, in latent cells, where it is larger than one.

        Raises:
            ValueError: for a tile below 1 or an overlap below 0.
        """
        if tile < 1 or overlap < 0:
            raise ValueError(f"tile={tile}, overlap={overlap}: a tile needs 1 or more, an overlap 0 or more")
        self.tile, self.overlap = tile, overlap

    def disable_tiling(self) -> None:
        """Work on whole frames."""
        self.tile, self.overlap = None, 0

    @property
    def dtype(self) -> torch.dtype:
        return self.model.post_quant_conv.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.post_quant_conv.weight.device

    def encode(self, frames: Tensor, generator: torch.Generator | None = None, chunk: int = CHUNK) -> Tensor:
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
        parts = rearrange(frames, "b f c h w -> (b f) c h w").split(1 if self.sliced else chunk)
        latents = torch.cat([self._encode(part.to(self.device, self.dtype) * 2 - 1, generator) for part in parts])
        return unfold_frames(latents, frames.shape[1]) * self.config.scale_factor

    def _encode(self, pixels: Tensor, generator: torch.Generator | None) -> Tensor:
        moments = self._in_tiles(self.model.moments, pixels, self.config.downsampling)
        posterior = Posterior.of(moments)
        if generator is None:
            return posterior.mean
        noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
        return posterior.mean + posterior.std * noise

    def decode(self, latents: Tensor, chunk: int = CHUNK) -> Tensor:
        """Scaled latents (B, C, F, h, w) -> frames (B, F, 3, 8h, 8w) in 0..1, clamped.

        ``chunk`` frames are decoded at once, which bounds the memory.
        """
        z = fold_frames(latents).to(self.device, self.dtype) / self.config.scale_factor
        pixels = torch.cat([self._in_tiles(self.model.decode, part) for part in z.split(1 if self.sliced else chunk)])
        return ((pixels + 1) / 2).clamp(0, 1).unflatten(0, (-1, latents.shape[2]))

    def frame_memory(self, height: int, width: int) -> int:
        """Bytes that encoding or decoding one frame of ``height`` x ``width`` latent cells needs, beside the weights.

        The peak lies at full size, where about five activations of the second level's width are alive.
        """
        cells = height * width if self.tile is None else min(self.tile, height) * min(self.tile, width)
        channels = self.config.channels[min(1, len(self.config.channels) - 1)]
        return 5 * channels * cells * self.config.downsampling**2 * self.dtype.itemsize

    def evaluations(self, frames: int, height: int, width: int, chunk: int, unit: int = 1) -> int:
        """How often the network is called for ``frames`` pictures; ``unit`` is the side of a latent cell in them."""
        tiles = 1 if self.tile is None else tile_count(height, width, self.tile * unit, self.overlap * unit)
        return math.ceil(frames / chunk) * tiles

    def _in_tiles(self, function: Callable[[Tensor], Tensor], x: Tensor, unit: int = 1) -> Tensor:
        """``function`` on whole pictures or in tiles; ``unit`` is the side of a latent cell in x."""
        if self.tile is None or max(x.shape[-2:]) <= self.tile * unit:
            return function(x)
        return tiled(function, x, self.tile * unit, self.overlap * unit)
