"""Attention over space (with the prompt) and over time (frames at one position)."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import UNetConfig
from .layers import unfold_frames, zero_init

# Largest score matrix that counts as short: frames over frames, or a small picture over a prompt.
SHORT_SCORES = 256 * 256


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v for (N, heads, L, d) queries and (N, heads, M, d) keys and values."""
    # On a CPU torch's fused kernel spends most of its time on overhead when sequences are short; plain matrix
    # products are several times faster there, while long sequences need the fused kernel's bounded memory.
    if q.device.type == "cpu" and q.shape[-2] * k.shape[-2] <= SHORT_SCORES:
        return attention_probabilities(q, k) @ v
    return F.scaled_dot_product_attention(q, k, v)


def attention_probabilities(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(d)): (N, heads, L, d) queries and (N, heads, M, d) keys -> (N, heads, L, M)."""
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)


class Attention(nn.Module):
    """Multi-head attention; keys and values come from ``context``, or from x itself without one.

    A context may serve several consecutive rows of x, as one prompt serves all frames of a clip.

    Attributes:
        probe: receives the probabilities (N, heads, L, M) of every forward, with their graph; None = nobody asks, and
            the fused kernel may do without them. Set for a while by ``motion.probe_attention``.
    """

    probe: Callable[[Tensor], object] | None = None

    def __init__(self, dim: int, heads: int, context_dim: int | None = None):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (N, L, D), context (N / k, M, D') -> (N, L, D)."""
        if context is None:
            return self._attend(x, x)
        shared = rearrange(x, "(n k) l d -> n (k l) d", n=len(context))
        return self._attend(shared, context).view_as(x)

    def _attend(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            rearrange(proj(source), "n l (heads d) -> n heads l d", heads=self.heads)
            for proj, source in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        if self.probe is None:
            out = attend(q, k, v)
        else:
            probabilities = attention_probabilities(q, k)
            self.probe(probabilities)
            out = probabilities @ v
        return self.to_out(rearrange(out, "n heads l d -> n l (heads d)"))


class FeedForward(nn.Module):
    """Gated feed-forward layer (GEGLU), hidden width 4 × dim."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj_in = nn.Linear(dim, 8 * dim)
        self.proj_out = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, a second attention (to the prompt, or to itself), feed-forward; all residual."""

    def __init__(self, dim: int, heads: int, context_dim: int | None = None):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, heads, context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """Norm and projections around a stack of transformer blocks; the subclasses choose the axis of the tokens."""

    def __init__(self, config: UNetConfig, channels: int, heads: int, context_dim: int | None = None):
        super().__init__()
        inner = heads * config.head_channels
        self.norm = nn.GroupNorm(config.norm_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner)
        blocks = (TransformerBlock(inner, heads, context_dim) for _ in range(config.transformer_depth))
        self.blocks = nn.ModuleList(blocks)
        self.proj_out = zero_init(nn.Linear(inner, channels))

    def transform(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """tokens (N, L, C) -> (N, L, C)."""
        tokens = self.proj_in(tokens)
        for block in self.blocks:
            tokens = block(tokens, context)
        return self.proj_out(tokens)


class SpatialTransformer(Transformer):
    """Attention over the positions of a frame, and from them to the prompt."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B·F, C, H, W), context (B, L, D) -> (B·F, C, H, W)."""
        tokens = self.transform(rearrange(self.norm(x), "n c h w -> n (h w) c"), context)
        return x + rearrange(tokens, "n (h w) c -> n c h w", h=x.shape[-2])


class TemporalTransformer(Transformer):
    """Attention over the frames at every spatial position; both attentions of a block are self-attention."""

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(B·F, C, H, W) -> the same shape."""
        height, width = x.shape[-2:]
        normed = self.norm(unfold_frames(x, frames))  # statistics over the whole clip
        tokens = self.transform(rearrange(normed, "b c f h w -> (b h w) f c"))
        return x + rearrange(tokens, "(b h w) f c -> (b f) c h w", h=height, w=width)
