"""OpenCLIP's text tower as the prompt encoder: penultimate layer, then the final norm."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import torch
from open_clip import SimpleTokenizer
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from .config import TextConfig


class TextEncoder(nn.Module):
    """Prompts -> context (B, L, D) for the UNet's cross-attention.

    Args:
        config: sizes of the tower.
        merges: path of a gzipped BPE merges list; None = CLIP's own vocabulary.
    """

    def __init__(self, config: TextConfig, merges: Path | None = None):
        super().__init__()
        self.config = config
        self.tower = TextTransformer(
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            output_dim=config.embed_dim,
        )
        # Unused by the context; kept because the published state dict has it and CLIP training needs it.
        self.tower.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        # The mask is made at use: as a buffer outside the state dict it would be lost when weights are put in place.
        self.tower.attn_mask = None
        self._merges = merges
        self._tokenizer: SimpleTokenizer | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.tower.ln_final.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.tower.ln_final.weight.device

    @property
    def tokenizer(self) -> SimpleTokenizer:
        """Raises: ValueError: if the merges list is missing or damaged."""
        if self._tokenizer is None:
            where = {"bpe_path": str(self._merges)} if self._merges else {}
            source = self._merges or "open_clip's vocabulary"
            try:
                self._tokenizer = SimpleTokenizer(context_length=self.config.context_length, **where)
            except (OSError, EOFError, ValueError, zlib.error) as error:
                raise ValueError(
                    f"{source}: cannot be read as the merges list of the text encoder ({error}); put the one "
                    "that came with the weights there"
                ) from error
        return self._tokenizer

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Token ids (B, 77), int64: start, ids, end, zeros; too long prompts are cut, keeping the end token."""
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
        for block in tower.transformer.resblocks[: self.config.layers - skip_last]:
            x = block(x, attn_mask=mask)
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
