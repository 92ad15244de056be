"""Image rewards of CLIP's kind: CLIP ViT-H-14, HPSv2.1 and PickScore differ in weights, framing and scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ...networks.text import TextEncoder
from ..base import Reward, RewardInfo, widen
from .config import CLIPConfig
from .preprocessing import CLIP_PIXELS, SQUARES, normalise


class CLIPReward(Reward):
    """OpenCLIP's image and text towers; the score is the cosine of their features.

    Args:
        config: sizes, framing and scale.
        info: what the model says of itself.
        folder: where ``config.text.merges`` lies, if there is one.
    """

    def __init__(self, config: CLIPConfig, info: RewardInfo, folder: Path | None = None):
        # Here, for it takes seconds, and most commands have no reward. On the CPU, for importing it makes tensors
        # that must not land on the device that the network is built for.
        with torch.device("cpu"):
            from open_clip.transformer import VisionTransformer

        super().__init__(replace(info, text_limit=config.text.context_length))
        if config.square not in SQUARES:
            raise ValueError(f"square='{config.square}' is unknown; use {', '.join(SQUARES)}")
        self.config = config
        vision, text = config.vision, config.text
        self.visual = VisionTransformer(
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            width=vision.width,
            layers=vision.layers,
            heads=vision.heads,
            mlp_ratio=vision.mlp_ratio,
            output_dim=text.embed_dim,
        )
        self.text = TextEncoder(text, (folder or Path()) / Path(text.merges).name if text.merges else None)

    @property
    def logit_scale(self) -> Tensor:
        """Log of the learnt scale of the logits."""
        return self.text.tower.logit_scale

    def count_tokens(self, caption: str) -> int:
        return self.text.count_tokens(caption)

    def encode_text(self, captions: list[str]) -> Tensor:
        return nn.functional.normalize(widen(self.text.pooled(self.text.tokenize(captions))), dim=-1)

    def encode_frames(self, frames: Tensor, chunk: int = 16) -> Tensor:
        """Frames (B, F, 3, H, W) in 0..1 -> L2-normalised features (B, F, E), ``chunk`` frames at once."""
        features = torch.cat([self.visual(self.prepare(part)) for part in frames.flatten(0, 1).split(chunk)])
        return nn.functional.normalize(widen(features), dim=-1).unflatten(0, frames.shape[:2])

    def prepare(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) in 0..1 -> (N, 3, S, S), normalised, in the model's precision."""
        square = SQUARES[self.config.square](pixels, self.config.vision.image_size)
        return normalise(square, CLIP_PIXELS).to(self.dtype)

    def compare(self, features: Tensor, captions: list[str]) -> Tensor:
        cosine = super().compare(features, captions)
        return cosine * widen(self.logit_scale).exp() if self.config.scaled else cosine

    def enable_checkpointing(self) -> None:
        self.visual.set_grad_checkpointing(True)
