"""LoRA: factors matched to our UNet's weights, by VideoCrafter2's names of layers or ours, and merged into them.

A merged weight is W + strength · (alpha / r) · up · down, computed in fp32 before it is rounded to the precision of the
work: most of a LoRA's change is smaller than bf16 can tell beside W.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..networks.config import UNetConfig
from ..networks.unet import UNet3D
from .files import CheckpointError
from .key_maps import StateDict, published_walk, unet_key_map
from .lora_files import PEFT, Factors, Lora

# The weight of the guidance input, which makes a student.
GUIDANCE = "guidance_proj.weight"
# What trainers write before a layer's key.
_PREFIXES = (PEFT, "model.", "diffusion_model.", "unet.", "lora_unet_", "transformer.")


@cache
def _weights(config: UNetConfig) -> dict[str, torch.Size]:
    """Shapes of the UNet's linear and convolutional weights by our key, in the order of the published UNet's walk."""
    with torch.device("meta"):
        state = UNet3D(config).state_dict()
    names = unet_key_map(config, list(state)).names
    return {key: state[key].shape for key in published_walk(names) if state[key].ndim > 1}


def _walked(config: UNetConfig) -> list[str]:
    """The keys that v1's injection comes to: its linear layers and convolutions over two or three axes."""
    key_map = unet_key_map(config, list(_weights(config)))
    # The published entry projects by convolutions over one axis, which the injection passes by.
    return [key for key in _weights(config) if key_map.pointwise.get(key) != 1]


@cache
def _layer_names(config: UNetConfig) -> dict[str, str]:
    """Names that a file may give a layer, by our keys and the published ones, with dots or underscores -> our key.

    Ours with underscores may mean two layers (``mid.res`` and ``mid_res``); such a name stands for none.
    """
    keys = list(_weights(config))
    names = unet_key_map(config, keys).names
    table, doubtful = {}, set()
    for key in keys:
        for name in (key.removesuffix(".weight"), names[key].removesuffix(".weight")):
            for spelling in (name, name.replace(".", "_")):
                if table.setdefault(spelling, key) != key:
                    doubtful.add(spelling)
    return {name: key for name, key in table.items() if name not in doubtful}


def _key_of(layer: str, config: UNetConfig) -> str | None:
    """Our key of a file's ``layer``, whatever a trainer put before it."""
    table = _layer_names(config)
    while layer not in table:
        prefix = next((prefix for prefix in _PREFIXES if layer.startswith(prefix)), None)
        if prefix is None:
            return None
        layer = layer[len(prefix) :]
    return table[layer]


def guidance_dim(lora: Lora, teacher: UNetConfig) -> int | None:
    """Width of the guidance input that a LoRA brings for a teacher of this architecture; None if it brings none."""
    student = teacher.as_student()
    if lora.walk:
        keys = _walked(student)
        found = lora.walk[keys.index(GUIDANCE)] if len(keys) == len(lora.walk) else None
    else:
        found = next((factors for layer, factors in lora.layers.items() if _key_of(layer, student) == GUIDANCE), None)
    return found.down.shape[1] if found else None


def fit(lora: Lora, config: UNetConfig) -> dict[str, Factors]:
    """A LoRA's factors by our keys.

    Raises:
        CheckpointError: if any layer of the file has no place in this UNet, or another shape.
    """
    factors = _fit_walk(lora, config) if lora.walk else _fit_names(lora, config)
    shapes = _weights(config)
    wrong = [key for key, pair in factors.items() if not pair.fits(shapes[key])]
    if wrong:
        up, down = factors[wrong[0]].up, factors[wrong[0]].down
        raise CheckpointError(
            f"{lora.path}: {len(wrong)} of {len(factors)} layers have another shape, for example '{wrong[0]}': up "
            f"{list(up.shape)} and down {list(down.shape)} for a weight {list(shapes[wrong[0]])}; the LoRA is of "
            "another model"
        )
    return factors


def _fit_walk(lora: Lora, config: UNetConfig) -> dict[str, Factors]:
    keys = _walked(config)
    if len(keys) != len(lora.walk):
        raise CheckpointError(
            f"{lora.path}: is a bare list of factors for {len(lora.walk)} layers, but this UNet has {len(keys)}; "
            "T2V-Turbo v1's for VideoCrafter2 has 575. It is of another UNet, such as ModelScope's"
        )
    return dict(zip(keys, lora.walk))


def _fit_names(lora: Lora, config: UNetConfig) -> dict[str, Factors]:
    keys = {layer: _key_of(layer, config) for layer in lora.layers}
    shapes = _weights(config)
    unmatched = [layer for layer, key in keys.items() if key not in shapes]
    if unmatched:
        text = "; text encoders take no LoRA here" if any(re.match("lora_te|text_enc", n) for n in unmatched) else ""
        raise CheckpointError(
            f"{lora.path}: {len(unmatched)} of its {len(keys)} layers are unknown to this UNet (first: "
            f"{unmatched[:2]}); the LoRA is of another model{text}"
        )
    if len(set(keys.values())) < len(keys):
        raise CheckpointError(f"{lora.path}: names a layer twice, in two ways; save each LoRA as its own file")
    return {keys[layer]: factors for layer, factors in lora.layers.items()}


# --- merging ----------


def merging(loras: Iterable[tuple[Lora, float]], config: UNetConfig) -> Callable[[str, Tensor], Tensor] | None:
    """A function (our key, weight) -> the weight with every LoRA at its strength, fp32 where changed; None without any.

    Raises:
        CheckpointError: if a LoRA does not fit the UNet.
    """
    changes: dict[str, list[tuple[Lora, Factors, float]]] = {}
    for lora, strength in loras:
        for key, factors in fit(lora, config).items():
            changes.setdefault(key, []).append((lora, factors, strength))

    def merge(key: str, weight: Tensor) -> Tensor:
        for lora, factors, strength in changes.get(key, ()):
            delta = (strength * factors.delta()).reshape(weight.shape).to(weight.device)
            if not delta.isfinite().all():
                raise CheckpointError(f"{lora.path}: the factors of '{key}' hold NaN or infinity; fetch the file again")
            weight = weight.detach().float() + delta
        return weight

    return merge if changes else None


@torch.no_grad()
def merge_lora(unet: UNet3D, lora: Lora, strength: float = 1.0) -> None:
    """Merge a LoRA into a UNet, in place, one weight at a time; -strength takes it out again.

    Raises:
        CheckpointError: if it does not fit the UNet, which then stays as it is.
    """
    merge = merging([(lora, strength)], unet.config)
    for key, parameter in unet.named_parameters():
        parameter.data = merge(key, parameter.data).to(parameter.dtype)


def add_guidance(
    state: StateDict, config: UNetConfig, loras: Iterable[tuple[Lora, float]]
) -> tuple[StateDict, UNetConfig]:
    """A teacher's weights with the guidance input that a LoRA brings, and the configuration of that student.

    v1's authors saved only the factors of that input: the weight beneath them was drawn anew at every start, of their
    training and of their inference. Zero is its mean, and nearer to the trained one than another draw is.
    """
    dims = [dim for lora, _ in loras if (dim := guidance_dim(lora, config.as_teacher()))]
    if config.guidance_dim or not dims:
        return state, config
    return state | {GUIDANCE: torch.zeros(config.model_channels, dims[0])}, config.as_student(dim=dims[0])


def split_strength(text: str | Path) -> tuple[Path, float]:
    """``FILE[:STRENGTH]`` -> file and strength, 1.0 where none is given.

    Raises:
        ValueError: for a strength that is no finite number.
    """
    file, colon, strength = str(text).rpartition(":")
    try:
        value = float(strength)
    except ValueError:
        value = None
    if not colon or value is None or Path(text).exists():
        return Path(text), 1.0  # the colon, if any, belongs to the file's name
    if not math.isfinite(value):
        raise ValueError(f"strength {strength} of {file} is no finite number: 1 is usual, 0 is none")
    return Path(file), value
