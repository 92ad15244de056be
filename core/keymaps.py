"""Our parameter names and the published ones, in both directions. The only place that knows foreign names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from torch import Tensor

from .config import UNetConfig, VAEConfig

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class KeyMap:
    """Renames the keys of a state dict.

    Attributes:
        names: our key -> the published one.
        pointwise: our weights that are Linear here and convolutions of kernel 1 in the published file, with the number
            of trailing axes that the published weight has in addition.
    """

    names: dict[str, str]
    pointwise: dict[str, int] = field(default_factory=dict)

    def to_published(self, state: StateDict) -> StateDict:
        """Our state dict -> the published layout (views, no copies). KeyError on a name that is not ours."""
        return {
            self.names[key]: value.reshape([*value.shape, *[1] * self.pointwise.get(key, 0)])
            for key, value in state.items()
        }

    def from_published(self, state: StateDict) -> StateDict:
        """The published layout -> ours. Keys that the map does not know are kept, so that strict loading names them."""
        ours = {published: key for key, published in self.names.items()}
        renamed = {ours.get(key, key): value for key, value in state.items()}
        for key, axes in self.pointwise.items():
            value = renamed.get(key)
            if value is not None and value.shape[value.ndim - axes :] == (1,) * axes:
                renamed[key] = value.reshape(value.shape[: value.ndim - axes])
        return renamed


def _rename(key: str, prefixes: dict[str, str], leaves: list[tuple[str, str]]) -> str:
    prefix = max((p for p in prefixes if key.startswith(p)), key=len)
    rest = key[len(prefix) :]
    for pattern, replacement in leaves:
        rest = re.sub(pattern, replacement, rest)
    return prefixes[prefix] + rest


# --- the 3D UNet: VideoCrafter's names ----------

_RES_LEAVES = [
    (r"^norm1\.", "in_layers.0."),
    (r"^conv1\.", "in_layers.2."),
    (r"^embed\.", "emb_layers.1."),
    (r"^norm2\.", "out_layers.0."),
    (r"^conv2\.", "out_layers.3."),
    (r"^skip\.", "skip_connection."),
    # The misspelling is the published one.
    (r"^temporal\.norms\.(\d)\.", lambda m: f"temopral_conv.conv{int(m[1]) + 1}.0."),
    (r"^temporal\.convs\.(\d)\.", lambda m: f"temopral_conv.conv{int(m[1]) + 1}.{2 if m[1] == '0' else 3}."),
]
_TRANSFORMER_LEAVES = [
    (r"^blocks\.(\d+)\.", r"transformer_blocks.\1."),
    (r"to_out\.", "to_out.0."),
    (r"ff\.proj_in\.", "ff.net.0.proj."),
    (r"ff\.proj_out\.", "ff.net.2."),
]


def _block_prefixes(ours: str, published: str, attention: bool) -> dict[str, str]:
    parts = {f"{ours}.res.": f"{published}.0."}
    if attention:
        parts |= {f"{ours}.spatial.": f"{published}.1.", f"{ours}.temporal.": f"{published}.2."}
    return parts


def _unet_prefixes(config: UNetConfig) -> dict[str, str]:
    prefixes = {
        "time_mlp.": "time_embed.",
        "fps_mlp.": "fps_embedding.",
        "guidance_proj.": "time_cond_proj.",
        "motion_proj.": "motion_cond_proj.",
        "combine_proj.": "combine_proj.",
        "conv_in.": "input_blocks.0.0.",
        "entry.": "init_attn.0.",
        "mid_res.": "middle_block.3.",
        "norm_out.": "out.0.",
        "conv_out.": "out.2.",
    } | _block_prefixes("mid", "middle_block", attention=True)
    index, last = 1, config.num_levels - 1
    for level in range(config.num_levels):
        for i in range(config.num_res_blocks):
            attention = config.has_attention(level)
            prefixes |= _block_prefixes(f"down.{level}.blocks.{i}", f"input_blocks.{index}", attention)
            index += 1
        if level < last:
            prefixes[f"down.{level}.resample.conv."] = f"input_blocks.{index}.0.op."
            index += 1
    index = 0
    for position, level in enumerate(reversed(range(config.num_levels))):
        attention = config.has_attention(level)
        for i in range(config.num_res_blocks + 1):
            prefixes |= _block_prefixes(f"up.{position}.blocks.{i}", f"output_blocks.{index}", attention)
            index += 1
        if level:
            prefixes[f"up.{position}.resample.conv."] = f"output_blocks.{index - 1}.{3 if attention else 1}.conv."
    return prefixes


def unet_key_map(config: UNetConfig, keys: list[str]) -> KeyMap:
    """Map for the UNet's own ``keys`` (those of its state dict) to VideoCrafter2's and T2V-Turbo's names."""
    prefixes = _unet_prefixes(config)
    names = {}
    for key in keys:
        is_transformer = ".blocks." in key.split("temporal.")[-1] or re.search(r"(spatial|temporal|entry)\.", key)
        is_res = re.search(r"(\.res|^mid_res)\.", key)
        leaves = _RES_LEAVES if is_res else _TRANSFORMER_LEAVES if is_transformer else []
        names[key] = _rename(key, prefixes, leaves)
    return KeyMap(names, {"entry.proj_in.weight": 1, "entry.proj_out.weight": 1})


# --- the autoencoder: diffusers' names on our side, LDM's in the published file ----------

_VAE_LEAVES = [
    (r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"attn_1\.group_norm\.", "attn_1.norm."),
    (r"attn_1\.to_([qkv])\.", r"attn_1.\1."),
    (r"attn_1\.to_out\.0\.", "attn_1.proj_out."),
    (r"down_blocks\.(\d)\.resnets\.(\d)\.", r"down.\1.block.\2."),
    (r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"conv_shortcut\.", "nin_shortcut."),
    (r"conv_norm_out\.", "norm_out."),
]


def vae_key_map(config: VAEConfig, keys: list[str]) -> KeyMap:
    """Map for the ``keys`` of diffusers' AutoencoderKL to the LDM names of VideoCrafter2's ``first_stage_model``."""
    last = len(config.channels) - 1
    # diffusers counts decoder blocks from the deepest, LDM from the full resolution.
    up = [
        (r"up_blocks\.(\d)\.resnets\.(\d)\.", lambda m: f"up.{last - int(m[1])}.block.{m[2]}."),
        (r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{last - int(m[1])}.upsample."),
    ]
    names = {key: _rename(key, {"": ""}, up + _VAE_LEAVES) for key in keys}
    attention = {k: 2 for k in keys if re.search(r"mid_block\.attentions\.0\.to_.*weight$", k)}
    return KeyMap(names, attention)


# --- the text tower: OpenCLIP's own names, under one more prefix ----------


def text_key_map(keys: list[str]) -> KeyMap:
    """Map for the text tower's ``keys`` to VideoCrafter2's ``cond_stage_model``."""
    return KeyMap({key: f"model.{key}" for key in keys})
