"""Sizes of the reward models, as published by default; small ones are made by naming other sizes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from ...networks.config import TextConfig


@dataclass(frozen=True)
class ViTConfig:
    """A plain image transformer."""

    image_size: int = 224
    patch_size: int = 14
    width: int = 1280
    heads: int = 16
    layers: int = 32
    mlp_ratio: float = 4.0


@dataclass(frozen=True)
class CLIPConfig:
    """A CLIP of OpenCLIP's two towers; ViT-H-14 by default."""

    vision: ViTConfig = field(default_factory=ViTConfig)
    text: TextConfig = field(default_factory=TextConfig)
    # How frames become squares: a name out of `images.SQUARES`.
    square: str = "squash"
    # Whether the score is multiplied by the learnt scale of the logits.
    scaled: bool = False


@dataclass(frozen=True)
class BERTConfig:
    """The first ``layers`` of a BERT, large by default."""

    vocab_size: int = 30522
    width: int = 1024
    heads: int = 16
    layers: int = 19
    mlp_dim: int = 4096
    max_positions: int = 512
    # Tokens of a caption, with [CLS] and [SEP].
    context_length: int = 40
    # File name of the WordPiece vocabulary beside the weights.
    vocabulary: str = "vocab.txt"


@dataclass(frozen=True)
class VideoTowerConfig:
    """InternVideo2's vision tower, 1B by default."""

    image_size: int = 224
    patch_size: int = 14
    width: int = 1408
    heads: int = 16
    layers: int = 40
    mlp_dim: int = 6144
    # Frames that a clip is seen at; the published file has position embeddings for 4, the method uses 8.
    frames: int = 8
    pool_heads: int = 16
    pool_dim: int = 768
    # "tanh" is what the weights were trained with (a fused layer's default), "exact" what an unfused layer computes.
    gelu: str = "tanh"
    # Initial factor of the residual branches, for training from scratch.
    layer_scale: float = 1e-5


@dataclass(frozen=True)
class InternVideo2Config:
    vision: VideoTowerConfig = field(default_factory=VideoTowerConfig)
    text: BERTConfig = field(default_factory=BERTConfig)
    embed_dim: int = 512


@dataclass(frozen=True)
class ImageRewardConfig:
    """ImageReward: BLIP's image tower (ViT-L-16), BERT-base that looks at the image, and a small head."""

    vision: ViTConfig = field(default_factory=lambda: ViTConfig(patch_size=16, width=1024, layers=24))
    text: BERTConfig = field(
        default_factory=lambda: BERTConfig(
            vocab_size=30524, width=768, heads=12, layers=12, mlp_dim=3072, context_length=35
        )
    )
    head: tuple[int, ...] = (1024, 128, 64, 16)
    # The head's output over the authors' data, by which a score is brought to mean 0 and deviation 1.
    mean: float = 0.16717362830052426
    std: float = 1.0333394966054072


def config_from_dict(kind: type, values: dict[str, Any]) -> Any:
    """A configuration out of ``dataclasses.asdict`` and JSON, which turns tuples into lists.

    Raises:
        ValueError: if a field is unknown.
    """
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"unknown fields {unknown} of {kind.__name__}; known are {sorted(known)}")
    types = get_type_hints(kind)
    return kind(**{name: _field_value(types[name], value) for name, value in values.items()})


def _field_value(kind: Any, value: Any) -> Any:
    if is_dataclass(kind):
        return config_from_dict(kind, value)
    return tuple(value) if isinstance(value, list) else value
