"""Building blocks of the 3D UNet. Frames are folded into the batch: (B·F, C, H, W), unless said otherwise."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of timesteps or frame rates (B,) -> (B, dim), [cos, sin], float32."""
    half = dim // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * freqs
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


def guidance_embedding(scale: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of a guidance strength (B,) -> (B, dim), [sin, cos], of 1000 · scale.

    Always float32: the arguments reach 1.5e4, where lower precision is off by whole entries.
    """
    half = dim // 2
    step = math.log(10000) / (half - 1)
    freqs = torch.exp(torch.arange(half, dtype=torch.float32, device=scale.device) * -step)
    angles = (scale.float() * 1000)[:, None] * freqs
    embedding = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


class EmbeddingMLP(nn.Sequential):
    """Linear, SiLU, Linear: sinusoidal embedding (B, dim) -> (B, out_dim)."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__(nn.Linear(dim, out_dim), nn.SiLU(), nn.Linear(out_dim, out_dim))


def zero_init(module: nn.Module) -> nn.Module:
    """Zero a layer's parameters, so that a fresh residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def fold_frames(x: Tensor) -> Tensor:
    """(B, C, F, H, W) -> (B·F, C, H, W)."""
    return rearrange(x, "b c f h w -> (b f) c h w")


def unfold_frames(x: Tensor, frames: int) -> Tensor:
    """(B·F, C, H, W) -> (B, C, F, H, W)."""
    return rearrange(x, "(b f) c h w -> b c f h w", f=frames)


class TemporalConv(nn.Module):
    """Four residual convolutions over time, kernel 3 × 1 × 1; their norms see the whole clip."""

    def __init__(self, channels: int, dropout: float, groups: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(groups, channels) for _ in range(4))
        self.convs = nn.ModuleList(nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)) for _ in range(4))
        self.dropout = nn.Dropout(dropout)
        zero_init(self.convs[-1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F, H, W) -> the same shape."""
        h = x
        for i, (norm, conv) in enumerate(zip(self.norms, self.convs)):
            h = F.silu(norm(h))
            # The first convolution of the published model has no dropout.
            h = conv(self.dropout(h) if i else h)
        return x + h


class ResBlock(nn.Module):
    """Spatial residual block with the time embedding, followed by the temporal convolutions."""

    def __init__(self, in_channels: int, out_channels: int, embed_dim: int, dropout: float, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embed = nn.Linear(embed_dim, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.temporal = TemporalConv(out_channels, dropout, groups)

    def forward(self, x: Tensor, emb: Tensor, frames: int) -> Tensor:
        """x (B·F, C, H, W), emb (B, E) -> (B·F, C', H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        shift = self.embed(F.silu(emb)).repeat_interleave(frames, dim=0)  # (B·F, C')
        h = h + shift[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        h = self.skip(x) + h
        return fold_frames(self.temporal(unfold_frames(h, frames)))


class Downsample(nn.Module):
    """Halves height and width (rounding up)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to a given size, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The size is that of the skip connection to come, so odd sizes work too."""
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
