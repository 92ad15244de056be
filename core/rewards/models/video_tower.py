"""InternVideo2's vision tower in plain torch: a transformer over all patches of all frames, and attention pooling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import VideoTowerConfig

GELUS = {"tanh": "tanh", "exact": "none"}


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, N, D) -> (B, heads, N, D / heads)


class Attention(nn.Module):
    """Self-attention (B, N, D) -> (B, N, D); queries and keys are normalised over the full width, before the split."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.norm_q = nn.RMSNorm(width, eps=1e-6)
        self.norm_k = nn.RMSNorm(width, eps=1e-6)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        q, k, v = (_split_heads(part, self.heads) for part in (self.norm_q(q), self.norm_k(k), v))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int, gelu: str):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.gelu = GELUS[gelu]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.gelu))


class Block(nn.Module):
    """Pre-norm transformer block; each branch is scaled per channel."""

    def __init__(self, config: VideoTowerConfig):
        super().__init__()
        width = config.width
        self.norm1 = nn.RMSNorm(width, eps=1e-6)
        self.attn = Attention(width, config.heads)
        self.scale1 = nn.Parameter(torch.full((width,), config.layer_scale))
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.mlp = MLP(width, config.mlp_dim, config.gelu)
        self.scale2 = nn.Parameter(torch.full((width,), config.layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1 * self.attn(self.norm1(x))
        return x + self.scale2 * self.mlp(self.norm2(x))


class AttentionPool(nn.Module):
    """Tokens (B, N, D) -> (B, E): one query, the tokens' mean, attends to all of them."""

    def __init__(self, width: int, heads: int, dim: int):
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(width) for _ in range(3))
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        q = self.to_q(self.norm_q(x.mean(1, keepdim=True)))
        q, k, v = (_split_heads(part, self.heads) for part in (q, self.to_k(self.norm_k(x)), self.to_v(self.norm_v(x))))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))[:, 0]


class VideoTower(nn.Module):
    """Clips (B, F, 3, S, S), normalised -> features (B, E).

    Raises:
        ValueError: for an unknown kind of GELU, or a number of frames other than the configured one and 1.
    """

    def __init__(self, config: VideoTowerConfig):
        super().__init__()
        if config.gelu not in GELUS:
            raise ValueError(f"gelu='{config.gelu}' is unknown; use {', '.join(GELUS)}")
        self.config = config
        self.checkpointing = False
        grid = config.image_size // config.patch_size
        patch = (1, config.patch_size, config.patch_size)
        self.patch_embed = nn.Conv3d(3, config.width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(sincos_positions(config.width, config.frames, grid))
        self.image_pos_embed = nn.Parameter(sincos_positions(config.width, 1, grid))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.pool = AttentionPool(config.width, config.pool_heads, config.pool_dim)

    def forward(self, clips: Tensor) -> Tensor:
        return self.pool(self.tokens(clips))

    def tokens(self, clips: Tensor) -> Tensor:
        """Clips (B, F, 3, S, S) -> tokens (B, 1 + F·P, D) after the last block, the class token first."""
        frames = clips.shape[1]
        if frames not in (1, self.config.frames):
            raise ValueError(f"{frames} frames: the tower takes {self.config.frames}, or 1 as an image")
        x = self.patch_embed(clips.transpose(1, 2)).flatten(2).transpose(1, 2)  # (B, F·P, D)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x + (self.image_pos_embed if frames == 1 else self.pos_embed)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x)
        return x


def _sincos(width: int, positions: Tensor) -> Tensor:
    """Positions (N,) -> (N, width): sines, then cosines, of falling frequencies."""
    frequencies = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_positions(width: int, frames: int, grid: int) -> Tensor:
    """Initial position embedding (1, 1 + frames·grid², width); the class token's is zero.

    A quarter of the channels tells the frame, the rest the column and the row, half each.
    """
    axes = torch.meshgrid(torch.arange(frames), torch.arange(grid), torch.arange(grid), indexing="ij")
    t, row, column = (axis.flatten() for axis in axes)
    space = width // 4 * 3
    parts = [_sincos(width // 4, t), _sincos(space // 2, column), _sincos(space // 2, row)]
    return torch.cat([torch.zeros(1, width), torch.cat(parts, dim=1).float()])[None]


def interpolate_frames(embedding: Tensor, frames: int, patches: int) -> Tensor:
    """Position embedding (1, 1 + T·P, D) of T frames of P patches -> of ``frames``, linear in time per patch."""
    first, rest = embedding[:, :1], embedding[:, 1:]
    rest = rest.unflatten(1, (-1, patches)).permute(0, 2, 3, 1).flatten(0, 1)  # (P, D, T)
    rest = F.interpolate(rest.float(), frames, mode="linear", align_corners=False)
    return torch.cat([first.float(), rest.permute(2, 0, 1).flatten(0, 1)[None]], dim=1)
