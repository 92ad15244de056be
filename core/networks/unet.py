"""VideoCrafter2's 3D UNet, which predicts the noise in video latents. Teacher and student are this one class.

Shapes: latents (B, C, F, H, W); frames folded into the batch (B·F, C, H, W); prompt context (B, L, D).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import SpatialTransformer, TemporalTransformer
from .config import UNetConfig
from .layers import (
    Downsample,
    EmbeddingMLP,
    ResBlock,
    Upsample,
    fold_frames,
    guidance_embedding,
    timestep_embedding,
    unfold_frames,
    zero_init,
)

# The network is conditioned on lambda divided by this: the released weights saw 0.05 for the paper's 500.
LAMBDA_UNIT = 10_000.0
# The temporal transformer after the first convolution always has this many heads.
ENTRY_HEADS = 8


def res_block(config: UNetConfig, in_channels: int, out_channels: int) -> ResBlock:
    return ResBlock(in_channels, out_channels, config.embed_dim, config.temporal_dropout, config.norm_groups)


class Block(nn.Module):
    """A residual block and, where the level has attention, a spatial and a temporal transformer."""

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int, attention: bool):
        super().__init__()
        self.res = res_block(config, in_channels, out_channels)
        self.spatial = self.temporal = None
        if attention:
            heads = out_channels // config.head_channels
            self.spatial = SpatialTransformer(config, out_channels, heads, config.context_dim)
            self.temporal = TemporalTransformer(config, out_channels, heads)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor, frames: int) -> Tensor:
        x = self.res(x, emb, frames)
        if self.spatial is not None:
            x = self.temporal(self.spatial(x, context), frames)
        return x


class Level(nn.Module):
    """The blocks of one resolution and the change of resolution that follows them, if any."""

    def __init__(self, blocks: list[Block], resample: nn.Module | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample


class UNet3D(nn.Module):
    """Noise prediction network.

    Args:
        config: sizes; ``guidance_dim`` and ``motion_dim`` decide which conditions the network takes.

    Attributes:
        checkpointing: recompute activations in the backward pass (more time, much less memory).
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.checkpointing = False
        base, embed = config.model_channels, config.embed_dim
        self.time_mlp = EmbeddingMLP(base, embed)
        self.fps_mlp = EmbeddingMLP(base, embed)
        self._build_conditions()
        self.conv_in = nn.Conv2d(config.in_channels, base, 3, padding=1)
        self.entry = TemporalTransformer(config, base, ENTRY_HEADS)
        self.down, skips = self._build_down()
        top = skips[-1]
        self.mid = Block(config, top, top, attention=True)
        self.mid_res = res_block(config, top, top)
        self.up = self._build_up(skips)
        first = config.channel_mult[0] * base
        self.norm_out = nn.GroupNorm(config.norm_groups, first)
        self.conv_out = zero_init(nn.Conv2d(first, config.out_channels, 3, padding=1))

    def _build_conditions(self) -> None:
        base, config = self.config.model_channels, self.config
        self.guidance_proj = self.motion_proj = self.combine_proj = None
        if config.guidance_dim:
            self.guidance_proj = nn.Linear(config.guidance_dim, base, bias=False)
        if config.motion_dim:
            self.motion_proj = nn.Linear(config.motion_dim, base, bias=False)
            self.combine_proj = nn.Linear(2 * base, base, bias=False)

    def _build_down(self) -> tuple[nn.ModuleList, list[int]]:
        """The encoder levels and the channel count of every skip connection, in order."""
        config, channels = self.config, self.config.model_channels
        levels, skips = nn.ModuleList(), [channels]
        for i, mult in enumerate(config.channel_mult):
            blocks = []
            for _ in range(config.num_res_blocks):
                blocks.append(Block(config, channels, mult * config.model_channels, config.has_attention(i)))
                channels = mult * config.model_channels
                skips.append(channels)
            last = i == config.num_levels - 1
            levels.append(Level(blocks, None if last else Downsample(channels)))
            if not last:
                skips.append(channels)
        return levels, skips

    def _build_up(self, skips: list[int]) -> nn.ModuleList:
        """The decoder levels, deepest first; every block takes one skip connection."""
        config, skips = self.config, list(skips)
        channels, levels = skips[-1], nn.ModuleList()
        for i, mult in reversed(list(enumerate(config.channel_mult))):
            blocks = []
            for _ in range(config.num_res_blocks + 1):
                width = mult * config.model_channels
                blocks.append(Block(config, channels + skips.pop(), width, config.has_attention(i)))
                channels = width
            levels.append(Level(blocks, Upsample(channels) if i else None))
        return levels

    @property
    def takes_guidance(self) -> bool:
        """Whether the network is a student, conditioned on the guidance scale omega."""
        return self.guidance_proj is not None

    @property
    def takes_motion(self) -> bool:
        """Whether the network is conditioned on the motion guidance strength lambda."""
        return self.motion_proj is not None

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.conv_in.weight.device

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        fps: int | Tensor = 8,
        omega: Tensor | None = None,
        motion: Tensor | None = None,
    ) -> Tensor:
        """Predict the noise in ``x``.

        Args:
            x: noisy latents (B, C, F, H, W).
            t: training timesteps (B,), 0..999.
            context: prompt embedding (B, L, D).
            fps: frame rate condition, one for all or (B,).
            omega: guidance scale (B,) in the paper's unit (CFG scale minus 1); students only, None = not conditioned.
            motion: motion guidance strength lambda (B,) in the paper's unit (500); None = not conditioned.

        Returns:
            The predicted noise (B, C, F, H, W).

        Raises:
            ValueError: if a condition is given that this network has no input for.
        """
        frames = x.shape[2]
        emb = self.embed(t, fps, omega, motion)  # (B, E)
        context = context.to(self.dtype)
        h = self.conv_in(fold_frames(x.to(self.dtype)))  # (B·F, C0, H, W)
        h = self._run(self.entry, h, frames)
        skips = [h]
        for level in self.down:
            for block in level.blocks:
                h = self._run(block, h, emb, context, frames)
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h)
                skips.append(h)
        h = self._run(self.mid, h, emb, context, frames)
        h = self._run(self.mid_res, h, emb, frames)
        for level in self.up:
            for block in level.blocks:
                h = self._run(block, torch.cat([h, skips.pop()], dim=1), emb, context, frames)
            if level.resample is not None:
                h = level.resample(h, skips[-1].shape[-2:])
        h = self.conv_out(F.silu(self.norm_out(h)))
        return unfold_frames(h, frames)

    def embed(self, t: Tensor, fps: int | Tensor, omega: Tensor | None, motion: Tensor | None) -> Tensor:
        """Embedding of time, frame rate and guidance strengths: (B, E)."""
        base = self.config.model_channels
        emb = timestep_embedding(t, base)
        conditions = self._embed_conditions(omega, motion)
        if conditions is not None:
            emb = emb + conditions
        fps = torch.as_tensor(fps, device=t.device).expand(t.shape[0])
        emb = self.time_mlp(emb.to(self.dtype))
        return emb + self.fps_mlp(timestep_embedding(fps, base).to(self.dtype))

    def _embed_conditions(self, omega: Tensor | None, motion: Tensor | None) -> Tensor | None:
        if omega is not None and not self.takes_guidance:
            raise ValueError("omega was given, but this UNet has no guidance input: it is a teacher, use CFG instead")
        if motion is not None and not self.takes_motion:
            raise ValueError("lambda was given, but this UNet has no motion input: use a student with motion guidance")
        if omega is None:
            return None
        guidance = self.guidance_proj(guidance_embedding(omega, self.config.guidance_dim).to(self.dtype))
        if motion is None:
            return guidance
        motion = guidance_embedding(motion / LAMBDA_UNIT, self.config.motion_dim).to(self.dtype)
        return self.combine_proj(torch.cat([guidance, self.motion_proj(motion)], dim=-1))

    def _run(self, module: nn.Module, *args) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(module, *args, use_reentrant=False)
        return module(*args)
