"""OpenCLIP's text tower as the prompt encoder: penultimate layer, then the final norm.

Its parameters are named as in OpenCLIP. It stands here in full, because importing that library costs seconds at every
start; `tests/core/networks/test_text.py` holds both against each other.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from .config import TextConfig
from .tokenizer import CLIPTokenizer


class ResidualAttentionBlock(nn.Module):
    """Causal self-attention and a feed-forward layer, both residual: (B, L, D) -> the same shape."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        layers = {"c_fc": nn.Linear(width, 4 * width), "gelu": nn.GELU(), "c_proj": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class TextTower(nn.Module):
    """The weights of OpenCLIP's text tower; ``TextEncoder`` runs them."""

    def __init__(self, config: TextConfig):
        super().__init__()
        width = config.width
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, width))
        blocks = (ResidualAttentionBlock(width, config.heads) for _ in range(config.layers))
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, config.embed_dim))
        # Unused by the context; the published state dict has it and CLIP training needs it.
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self._initialise(width, config.layers)

    def _initialise(self, width: int, layers: int) -> None:
        """CLIP's deviations, for training from scratch."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        for block in self.transformer["resblocks"]:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=(2 * layers * width) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=(2 * layers * width) ** -0.5)


class TextEncoder(nn.Module):
    """Prompts -> context (B, L, D) for the UNet's cross-attention.

    Args:
        config: sizes of the tower.
        merges: path of a gzipped BPE merges list; None = CLIP's own vocabulary.
    """

    def __init__(self, config: TextConfig, merges: Path | None = None):
        super().__init__()
        self.config = config
        self.tower = TextTower(config)
        self.tokenizer = CLIPTokenizer(merges, config.context_length)

    @property
    def dtype(self) -> torch.dtype:
        return self.tower.ln_final.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.tower.ln_final.weight.device

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Token ids (B, L), int64: start, ids, end, zeros; too long prompts are cut, keeping the end token.

        Raises:
            ValueError: if the merges list is missing or damaged.
        """
        return self.tokenizer(prompts)

    def count_tokens(self, prompt: str) -> int:
        """Tokens that ``prompt`` needs, uncut, with the start and the end token."""
        return len(self.tokenizer.encode(prompt)) + 2

    def forward(self, tokens: Tensor, skip_last: int = 1) -> Tensor:
        """Token ids (B, L) -> context (B, L, D), without the last ``skip_last`` layers (1 = penultimate)."""
        tower = self.tower
        tokens = tokens.to(self.device)
        x = tower.token_embedding(tokens).to(self.dtype)  # (B, L, D)
        x = x + tower.positional_embedding[: x.shape[1]].to(self.dtype)
        mask = x.new_full((x.shape[1], x.shape[1]), float("-inf")).triu(1)  # causal
        for block in tower.transformer["resblocks"][: self.config.layers - skip_last]:
            x = block(x, mask)
        return tower.ln_final(x)

    def encode(self, prompts: list[str]) -> Tensor:
        """Prompts -> context (B, L, D)."""
        return self(self.tokenize(prompts))

    def pooled(self, tokens: Tensor) -> Tensor:
        """Token ids (B, L) -> CLIP's text feature (B, E), L2-normalised: what contrastive training compares."""
        x = self(tokens, skip_last=0)
        end = tokens.argmax(dim=-1).to(x.device)  # the end token has the largest id
        x = x[torch.arange(len(x), device=x.device), end] @ self.tower.text_projection
        return nn.functional.normalize(x, dim=-1)
