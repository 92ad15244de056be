"""Our parameter names and the published ones, in both directions. The only place that knows foreign names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..networks.config import UNetConfig, VAEConfig

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class KeyMap:
    """Renames the keys of a state dict.

    Attributes:
        names: our key -> the published one.
        pointwise: our weights that are Linear here and convolutions of kernel 1 in the published file, with the number
            of trailing axes that the published weight has in addition.
        unused: pattern of the published keys that our network has no use for.
    """

    names: dict[str, str]
    pointwise: dict[str, int] = field(default_factory=dict)
    unused: str | None = None

    def to_published(self, state: StateDict) -> StateDict:
        """Our state dict -> the published layout (views, no copies). KeyError on a name that is not ours."""
        return {
            self.names[key]: value.reshape([*value.shape, *[1] * self.pointwise.get(key, 0)])
            for key, value in state.items()
        }

    def from_published(self, state: StateDict) -> StateDict:
        """The published layout -> ours. Keys that the map does not know are kept, so that strict loading names them."""
        ours = {published: key for key, published in self.names.items()}
        renamed = {ours.get(key, key): value for key, value in state.items() if not self.is_unused(key)}
        for key, axes in self.pointwise.items():
            value = renamed.get(key)
            if value is not None and value.shape[value.ndim - axes :] == (1,) * axes:
                renamed[key] = value.reshape(value.shape[: value.ndim - axes])
        return renamed

    def is_unused(self, key: str) -> bool:
        """Whether the published ``key`` is dropped on purpose."""
        return self.unused is not None and re.match(self.unused, key) is not None


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


# The parts of published names in the order in which the published UNet registers its modules.
_WALK = (
    *("time_embed", "fps_embedding", "time_cond_proj", "motion_cond_proj", "combine_proj"),
    *("input_blocks", "init_attn", "middle_block", "output_blocks", "out"),
    *("in_layers", "emb_layers", "out_layers", "skip_connection", "temopral_conv", "conv1", "conv2", "conv3", "conv4"),
    *("norm", "proj_in", "transformer_blocks", "proj_out"),
    *("attn1", "ff", "attn2", "norm1", "norm2", "norm3", "to_q", "to_k", "to_v", "to_out", "net", "proj"),
    *("op", "conv", "weight", "bias"),
)


def published_walk(names: dict[str, str]) -> list[str]:
    """Our keys in the order in which the published UNet's own ``modules()`` comes to their layers.

    It differs from ours: the entry follows all of the encoder, and a transformer block's feed-forward layer stands
    between its two attentions.

    Args:
        names: our key -> the published one, of the UNet.
    """
    parts = {part: i for i, part in enumerate(_WALK)}

    def place(key: str) -> list[int]:
        return [int(part) if part.isdigit() else parts[part] for part in names[key].split(".")]

    return sorted(names, key=place)


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


# --- reward models ----------

# Buffers of position numbers, which older files carry.
_POSITION_IDS = r".*position_ids$"


def clip_key_map(keys: list[str]) -> KeyMap:
    """Map for the ``keys`` of a CLIP of two towers to OpenCLIP's names, in which HPSv2.1 is published too."""
    return KeyMap({key: key.removeprefix("text.tower.") for key in keys}, unused=_POSITION_IDS)


_TRANSFORMERS_CLIP = [
    (r"^visual_projection\.weight", "visual.proj"),
    (r"^text_projection\.weight", "text_projection"),
    (r"^vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),  # the misspelling is the published one
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.self_attn\.(q|k|v)_proj\.(weight|bias)", r".attn.in_proj_\2.\1"),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
]


def clip_from_transformers(state: StateDict) -> StateDict:
    """A CLIP with transformers' names (as PickScore is published) -> OpenCLIP's; any other state dict as it is."""
    if "vision_model.embeddings.class_embedding" not in state:
        return state
    renamed = {_rename(key, {"": ""}, _TRANSFORMERS_CLIP): value for key, value in state.items()}
    for key in ("visual.proj", "text_projection"):  # a Linear there, a matrix from the right here
        if key in renamed:
            renamed[key] = renamed[key].T
    for query in [key for key in renamed if re.search(r"in_proj_(weight|bias)\.q$", key)]:
        parts = [renamed.pop(query[:-1] + part, None) for part in "qkv"]
        if all(part is not None for part in parts):
            renamed[query[:-2]] = torch.cat(parts)
    return renamed


_INTERNVIDEO2_LEAVES = [
    (r"^patch_embed\.", "patch_embed.proj."),
    (r"^image_pos_embed$", "img_pos_embed"),
    (r"attn\.to_(qkv)\.", r"attn.\1."),
    (r"attn\.norm_([qk])\.", r"attn.\1_norm."),
    (r"attn\.to_out\.", "attn.proj."),
    (r"\.scale([12])$", r".ls\1.gamma"),
    (r"^pool\.norm_([qkv])\.", r"clip_projector.norm1_\1."),
    (r"^pool\.to_([qkv])\.weight$", r"clip_projector.cross_attn.\1.weight"),
    (r"^pool\.to_([qkv])\.bias$", r"clip_projector.cross_attn.\1_bias"),
    (r"^pool\.to_out\.", "clip_projector.cross_attn.proj."),
]
# The score needs no more than these four, and of the vision tower not the decoders of its pretraining.
_INTERNVIDEO2_UNUSED = (
    r"(?!(vision_encoder|text_encoder\.bert|vision_proj|text_proj)\.)|"
    r"vision_encoder\.((final_)?clip_decoder\.|clip_(img_)?pos_embed$)|" + _POSITION_IDS
)


def internvideo2_key_map(keys: list[str], text_layers: int) -> KeyMap:
    """Map for the ``keys`` of InternVideo2's two towers to those below ``module`` in the published stage 2 file.

    ``text_layers`` are kept of BERT; the file's further ones fuse text and video and are not used by the score.
    """
    prefixes = {
        "vision.": "vision_encoder.",
        "text.bert.": "text_encoder.bert.",
        "vision_proj.": "vision_proj.",
        "text_proj.": "text_proj.",
    }
    names = {
        key: _rename(key, prefixes, _INTERNVIDEO2_LEAVES if key.startswith("vision.") else []) for key in keys
    }
    kept = "|".join(map(str, range(text_layers)))
    fusion = rf"text_encoder\.bert\.encoder\.layer\.(?!({kept})\.)"
    return KeyMap(names, unused=f"{_INTERNVIDEO2_UNUSED}|{fusion}")


def imagereward_key_map(keys: list[str]) -> KeyMap:
    """Map for the ``keys`` of ImageReward's BLIP and head to its published file."""
    prefixes = {"vision.": "blip.visual_encoder.", "text.bert.": "blip.text_encoder.", "head.": "mlp.layers."}
    # The two projections serve BLIP's own pretraining.
    unused = rf"blip\.(vision|text)_proj\.|{_POSITION_IDS}"
    return KeyMap({key: _rename(key, prefixes, []) for key in keys}, unused=unused)
