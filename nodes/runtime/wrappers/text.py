"""The text encoder as a CLIP."""

from __future__ import annotations

import torch
from torch import Tensor

from ....core.networks.text import TextEncoder
from ...host import host
from .part import NativePart


class ClipText(NativePart):
    """The text encoder as a CLIP: what CLIPTextEncode calls."""

    WORKS_WITH = "CLIP Text Encode"

    def __init__(self, text: TextEncoder, precision: str):
        self.text = text
        self.patcher = host().patcher(text, "text", precision)

    def tokenize(self, text: str, **_) -> Tensor:
        """Token ids (1, 77); a longer prompt is cut."""
        return self.text.tokenize([text])

    @torch.no_grad()
    def encode_from_tokens(self, tokens: Tensor) -> Tensor:
        """Context (1, L, D), fp32."""
        host().load(self.patcher)
        return self.text(tokens).float().to(host().output_device())

    def encode_from_tokens_scheduled(self, tokens: Tensor, **_) -> list:
        """CONDITIONING."""
        return [[self.encode_from_tokens(tokens), {"pooled_output": None}]]
