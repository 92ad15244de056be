"""The reward models that there are, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.key_maps import (
    KeyMap,
    StateDict,
    clip_from_transformers,
    clip_key_map,
    imagereward_key_map,
    internvideo2_key_map,
)
from .base import Reward, RewardInfo
from .models.clip import CLIPReward
from .models.config import CLIPConfig, ImageRewardConfig, InternVideo2Config
from .models.imagereward import BLIPReward
from .models.internvideo2 import InternVideo2Reward, fit_frames

# Weights of the paper: beta_img for each image reward, beta_v for the video reward (Eq. 11).
PAPER_WEIGHTS = {"hps": 0.2, "clip": 0.2, "internvideo2": 0.5}


@dataclass(frozen=True)
class RewardKind:
    """One reward model: its class, its published form and how to read it.

    Attributes:
        info: what it says of itself.
        network: its class, called with (config, info, folder).
        config: the published sizes.
        files: on the hub, (repository, file): the weights first, then what must lie beside them.
        key_map: (keys of our state dict, config) -> the map to the published names.
        prepare: (published state dict, config) -> the same in the one layout that ``key_map`` knows.
    """

    info: RewardInfo
    network: Callable[..., Reward]
    config: Any
    files: tuple[tuple[str, str], ...]
    key_map: Callable[[list[str], Any], KeyMap]
    prepare: Callable[[StateDict, Any], StateDict]


def _clip(info: RewardInfo, file: str, **config: Any) -> RewardKind:
    return RewardKind(
        info,
        CLIPReward,
        CLIPConfig(**config),
        ((info.source, file),),
        lambda keys, _: clip_key_map(keys),
        lambda state, _: clip_from_transformers(state),
    )


REWARDS: dict[str, RewardKind] = {
    "hps": _clip(
        RewardInfo("HPSv2.1", "image", "cosine", (-1, 1), 77, "Apache-2.0", "xswu/HPSv2"),
        "HPS_v2.1_compressed.pt",
        square="pad",
    ),
    "clip": _clip(
        RewardInfo("CLIP ViT-H-14", "image", "cosine", (-1, 1), 77, "MIT", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
        "open_clip_model.safetensors",
        square="squash",
    ),
    "internvideo2": RewardKind(
        RewardInfo(
            "InternVideo2 stage 2, 1B",
            "video",
            "cosine",
            (-1, 1),
            40,
            "Apache-2.0",
            "OpenGVLab/InternVideo2-Stage2_1B-224p-f4",
        ),
        InternVideo2Reward,
        InternVideo2Config(),
        (
            ("OpenGVLab/InternVideo2-Stage2_1B-224p-f4", "InternVideo2-stage2_1b-224p-f4.pt"),
            ("google-bert/bert-large-uncased", "vocab.txt"),
        ),
        lambda keys, config: internvideo2_key_map(keys, config.text.layers),
        fit_frames,
    ),
    "pickscore": _clip(
        # The learnt scale of the logits is at most 100.
        RewardInfo("PickScore", "image", "scaled cosine", (-100, 100), 77, "MIT", "yuvalkirstain/PickScore_v1"),
        "model.safetensors",
        square="crop",
        scaled=True,
    ),
    "imagereward": RewardKind(
        RewardInfo(
            "ImageReward",
            "image",
            "standard deviations of human preference",
            (-math.inf, math.inf),
            35,
            "Apache-2.0",
            "zai-org/ImageReward",
        ),
        BLIPReward,
        ImageRewardConfig(),
        (("zai-org/ImageReward", "ImageReward.pt"), ("google-bert/bert-base-uncased", "vocab.txt")),
        lambda keys, _: imagereward_key_map(keys),
        lambda state, _: state,
    ),
}


def reward_kind(name: str) -> RewardKind:
    """A reward model by name.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in REWARDS:
        raise ValueError(f"unknown reward '{name}'; known are {', '.join(REWARDS)}")
    return REWARDS[name]


def build_reward(name: str, config: Any = None, folder: Path | None = None, info: RewardInfo | None = None) -> Reward:
    """A reward model with fresh weights, to be trained.

    Args:
        name: a key of ``REWARDS``.
        config: its sizes; None = the published ones.
        folder: where its merges list or vocabulary lies.
        info: what it shall say of itself; None = as published.

    Raises:
        ValueError: for an unknown name.
    """
    kind = reward_kind(name)
    return kind.network(config or kind.config, info or kind.info, folder)
