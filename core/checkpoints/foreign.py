"""What a state dict of another model is, told by its keys, so that a refusal can say what was found."""

from __future__ import annotations

import re
from collections.abc import Iterable

# The first pattern that any key has decides.
_MODELS = (
    (r"(^|\.)motion_modules\.", "an AnimateDiff motion module"),
    (r"(^|\.)(input_hint_block|controlnet_cond_embedding)\.|^control_model\.", "a ControlNet"),
    (r"^conditioner\.embedders\.|(^|\.)label_emb\.", "an SDXL checkpoint, which makes single images"),
    (r"(^|\.)temp_convs\.", "a diffusers UNet3DConditionModel, such as ModelScope's"),
    (r"(^|\.)time_embedding\.linear_1\.", "a diffusers UNet2DConditionModel, which makes single images"),
    (r"(^|\.)(double_blocks|single_blocks|joint_blocks|single_transformer_blocks)\.", "a diffusion transformer"),
    (r"(^|\.)blocks\.\d+\.(self_attn|cross_attn)\.", "a video transformer such as Wan's"),
    (r"^transformer_blocks\.\d+\.", "a diffusion transformer"),
    (r"(^|\.)text_model\.encoder\.layers\.", "a CLIP with the names of transformers"),
    (r"(^|\.)visual\.(conv1|class_embedding)", "an OpenCLIP model of two towers, perhaps a reward model"),
    (r"(^|\.)encoder\.block\.\d+\.layer\.", "a T5 text encoder"),
    (r"(^|\.)vision_encoder\.", "an InternVideo2, a reward model"),
    (r"(^|\.)(encoder|decoder)\.(down|up)(_blocks)?\.\d", "an autoencoder"),
    (r"(^|\.)(transformer\.)?resblocks\.\d+\.", "an OpenCLIP text tower"),
    (r"(^|\.)(input|output)_blocks\.\d", "a UNet of latent diffusion"),
)
# A key that only UNets with convolutions over time have, by VideoCrafter's names and by ours.
_OVER_TIME = re.compile(r"(^|\.)(temopral_conv|temporal\.convs)\.")


def describe(keys: Iterable[str]) -> str:
    """What the keys belong to, in words; their beginnings where they are unknown."""
    keys = sorted(keys)
    for pattern, model in _MODELS:
        if any(re.search(pattern, key) for key in keys):
            return f"{model} (among its {len(keys)} keys '{next(k for k in keys if re.search(pattern, k))}')"
    return f"an unknown model (its {len(keys)} keys begin with {keys[:3]})"


def is_for_images(keys: Iterable[str]) -> bool:
    """Whether a UNet of latent diffusion has no layers over time."""
    return not any(_OVER_TIME.search(key) for key in keys)
