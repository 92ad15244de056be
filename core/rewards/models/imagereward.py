"""ImageReward: BLIP reads the caption while it looks at the image, and a head turns that into a preference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..base import Reward, RewardInfo, widen
from .bert import BERTText
from .config import ImageRewardConfig
from .preprocessing import CLIP_PIXELS, crop, normalise


def preference_head(width: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """Linear layers without activations; the dropout between them keeps the published numbering."""
    sizes = [width, *hidden]
    layers: list[nn.Module] = []
    for i, (narrow, wide) in enumerate(zip(sizes[1:], sizes)):
        layers.append(nn.Linear(wide, narrow))
        if i < len(hidden) - 1:  # nothing between the last two
            layers.append(nn.Dropout(0.2 if i < 2 else 0.1))
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 1))


class BLIPReward(Reward):
    """BLIP's image tower, BERT with attention to the image in every layer, and a head.

    Args:
        config: sizes and the statistics of the score.
        info: what the model says of itself.
        folder: where ``config.text.vocabulary`` lies.
    """

    def __init__(self, config: ImageRewardConfig, info: RewardInfo, folder: Path | None = None):
        with torch.device("cpu"):  # as in ``CLIPReward``
            from timm.models.vision_transformer import VisionTransformer

        super().__init__(replace(info, text_limit=config.text.context_length))
        self.config = config
        vision = config.vision
        self.vision = VisionTransformer(
            img_size=vision.image_size,
            patch_size=vision.patch_size,
            embed_dim=vision.width,
            depth=vision.layers,
            num_heads=vision.heads,
            mlp_ratio=vision.mlp_ratio,
            num_classes=0,
            global_pool="",
        )
        self.text = BERTText(config.text, folder, image_width=vision.width)
        self.head = preference_head(config.text.width, config.head)

    def count_tokens(self, caption: str) -> int:
        return self.text.words.count(caption)

    def encode_frames(self, frames: Tensor, chunk: int = 16) -> Tensor:
        """Frames (B, F, 3, H, W) in 0..1 -> image tokens (B, F, N, D)."""
        parts = [self.vision.forward_features(self.prepare(part)) for part in frames.flatten(0, 1).split(chunk)]
        return torch.cat(parts).unflatten(0, frames.shape[:2])

    def prepare(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) in 0..1 -> (N, 3, S, S), normalised, in the model's precision."""
        return normalise(crop(pixels, self.config.vision.image_size), CLIP_PIXELS).to(self.dtype)

    def compare(self, features: Tensor, captions: list[str]) -> Tensor:
        """Image tokens (S, K, N, D) and one caption each -> scores (S,), averaged over the K frames."""
        views = features.shape[1]
        repeated = [caption for caption in captions for _ in range(views)]
        raw = widen(self.head(self.text.encode(repeated, features.flatten(0, 1)))[:, 0])
        return ((raw - self.config.mean) / self.config.std).unflatten(0, (-1, views)).mean(1)

    def enable_checkpointing(self) -> None:
        self.vision.set_grad_checkpointing(True)
