"""LoRA: low-rank factors out of the files that trainers write, matched to our UNet's weights and merged into them.

A merged weight is W + strength · (alpha / r) · up · down, computed in fp32 before it is rounded to the precision of the
work: most of a LoRA's change is smaller than bf16 can tell beside W.

Four ways of naming are read: T2V-Turbo v1's bare list, peft's ``lora_A`` and ``lora_B``, ``lora_down`` and ``lora_up``
with whole keys, and kohya's with underscores; over VideoCrafter2's keys and over ours.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint_files import CheckpointError, read_file, read_json
from .config import UNetConfig
from .foreign import describe
from .keymaps import StateDict, published_walk, unet_key_map
from .unet import UNet3D
from .wrappers import unwrap

log = logging.getLogger(__name__)

# The weight of the guidance input, which makes a student.
GUIDANCE = "guidance_proj.weight"
ADAPTER_CONFIG = "adapter_config.json"
# What trainers write before a layer's key.
_PEFT = "base_model.model."
_PREFIXES = (_PEFT, "model.", "diffusion_model.", "unet.", "lora_unet_", "transformer.")
_FACTOR = re.compile(r"^(?P<layer>.+)\.(?P<role>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)"
                     r"(\.(?!weight$)(?P<adapter>[^.]+))?\.weight$")  # fmt: skip
_ALPHA = re.compile(r"^(?P<layer>.+)\.alpha$")
_DOWN = ("lora_A", "lora_down", "lora.down")
# Kinds of adapters that are no plain LoRA, by what their keys contain.
_OTHER_KINDS = {
    r"\.(dora_scale|lora_magnitude_vector)": "a DoRA",
    r"\.lora_mid\.": "a LoCon with a Tucker core (lora_mid)",
    r"\.hada_": "a LoHa",
    r"\.lokr_": "a LoKr",
    r"\.b?oft_": "an OFT",
    r"\.vera_": "a VeRA",
    r"\.lora_embedding_": "a LoRA of embeddings",
    r"lora_(B|up)\.(.+\.)?bias$": "a LoRA with biases",
    r"\.diff(_b)?$": "a file of whole differences",
}
_ADAPTER_KEY = re.compile(r"(^|[._])lora([._]|$)|" + "|".join(_OTHER_KINDS))


@dataclass(frozen=True)
class Factors:
    """The change of one weight: up (O, r) or (O, r, 1, …) times down (r, I, …), times scale, which is alpha / r."""

    up: Tensor
    down: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def delta(self) -> Tensor:
        """The product (O, I · kernel), fp32."""
        return self.scale * (self.up.detach().float().flatten(1) @ self.down.detach().float().flatten(1))

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the product is of a weight's shape (O, I, …); kernels of 1 may be left out or added."""
        inner = tuple(self.down.shape[1:])
        axes = len(shape) - 1
        return (
            self.up.shape[:2] == (shape[0], self.rank)
            and self.up.numel() == shape[0] * self.rank
            and inner[:axes] + (1,) * (axes - len(inner)) == tuple(shape[1:])
            and set(inner[axes:]) <= {1}
        )


@dataclass(frozen=True)
class Lora:
    """What a LoRA file holds, not yet matched to a UNet.

    Attributes:
        layers: factors by the file's names of layers.
        walk: factors without names, in the order of the published UNet's layers; one of the two is empty.
    """

    path: Path
    layers: dict[str, Factors] = field(default_factory=dict)
    walk: tuple[Factors, ...] = ()

    def __str__(self) -> str:
        factors = self.walk or self.layers.values()
        ranks = sorted({factor.rank for factor in factors})
        return f"a LoRA of {len(factors)} layers, rank {'..'.join(map(str, sorted({ranks[0], ranks[-1]})))}"


# --- reading ----------


def load_lora(path: str | Path) -> Lora:
    """Read a LoRA, memory-mapped where the format allows; ``merge_lora`` matches it to a UNet.

    An ``adapter_config.json`` beside a file of peft's tells alpha.

    Raises:
        CheckpointError: if the file cannot be read, holds no LoRA, or one of a kind that is not supported.
    """
    found = find_lora(path)
    if found is None:
        state = unwrap(read_file(path)[0], path)
        raise CheckpointError(f"{path}: is no LoRA but {describe(state)}; a LoRA was expected")
    return found


def find_lora(path: str | Path) -> Lora | None:
    """The LoRA in a file as ``load_lora`` reads it; None if the file holds whole weights.

    Raises:
        CheckpointError: if the file cannot be read, or holds a LoRA of a kind that is not supported.
    """
    path = Path(path)
    content, metadata = read_file(path)
    if is_walk(content):
        return Lora(path, walk=_pairs(content, path))
    state = unwrap(content, path)
    if not is_adapter(state):
        return None
    return Lora(path, _scaled(*_sorted_by_layer(state, path), _adapter_config(path, metadata), path))


def is_walk(content: Any) -> bool:
    """Whether a file holds a bare list of tensors, as T2V-Turbo v1 saved its factors, up and down in turn."""
    return isinstance(content, list) and bool(content) and all(isinstance(value, Tensor) for value in content)


def is_adapter(keys: Iterable[str]) -> bool:
    """Whether a file's keys are those of a LoRA, of whatever kind, rather than of whole weights."""
    return any(_ADAPTER_KEY.search(key) for key in keys)


def _pairs(tensors: list[Tensor], path: Path) -> tuple[Factors, ...]:
    if len(tensors) % 2 or any(tensor.ndim < 2 for tensor in tensors):
        raise CheckpointError(
            f"{path}: is a bare list of {len(tensors)} tensors that are no pairs of factors, as T2V-Turbo v1's "
            "unet_lora.pt is; fetch it again"
        )
    return tuple(Factors(up, down) for up, down in zip(tensors[::2], tensors[1::2]))


def _sorted_by_layer(state: StateDict, path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """The two factors of every layer, as "up" and "down", and the alphas that stand beside them."""
    for pattern, kind in _OTHER_KINDS.items():
        key = next((key for key in state if re.search(pattern, key)), None)
        if key:
            raise CheckpointError(f"{path}: is {kind} ('{key}'), which is not supported; save it as a plain LoRA")
    layers: dict[str, dict[str, Tensor]] = {}
    alphas, unknown = {}, []
    for key, value in state.items():
        if match := _FACTOR.match(key):
            role = "down" if match["role"] in _DOWN else "up"
            if layers.setdefault(match["layer"], {}).setdefault(role, value) is not value:
                raise CheckpointError(f"{path}: holds several LoRAs for '{match['layer']}'; save each as its own file")
        elif (match := _ALPHA.match(key)) and value.numel() == 1:
            alphas[match["layer"]] = float(value)
        else:
            unknown.append(key)
    halves = [layer for layer, pair in layers.items() if len(pair) < 2] + [a for a in alphas if a not in layers]
    if unknown or halves:
        what = f"{len(unknown)} keys that are no factors" if unknown else f"{len(halves)} layers with half a pair"
        raise CheckpointError(f"{path}: holds {what} (first: '{(unknown or halves)[0]}'); it is incomplete or no LoRA")
    return layers, alphas


def _scaled(layers: dict[str, dict[str, Tensor]], alphas: dict[str, float], config: dict, path: Path) -> dict:
    """Factors with alpha / r: alpha stands beside them, or in the adapter's configuration, or is r."""
    configured = {layer: config["lora_alpha"] for layer in layers if config.get("lora_alpha") is not None}
    for name, alpha in config["alpha_pattern"].items():
        excepted = [layer for layer in layers if layer == name or layer.endswith(f".{name}")]
        if not excepted:
            raise CheckpointError(f"{path}: no layer ends with '{name}', for which {ADAPTER_CONFIG} gives an alpha")
        configured |= dict.fromkeys(excepted, alpha)
    if not (configured or alphas) and any(layer.startswith(_PEFT) for layer in layers):
        log.warning("%s: tells no alpha, and no %s lies beside it; alpha is taken to be the rank", path, ADAPTER_CONFIG)
    factors = {}
    for layer, pair in layers.items():
        rank = pair["down"].shape[0] if min(pair["up"].ndim, pair["down"].ndim) >= 2 else 0
        alpha = (configured | alphas).get(layer, rank)
        root = math.sqrt(rank) if config.get("use_rslora") and layer not in alphas else rank
        if not rank or not 0 < alpha < math.inf:
            raise CheckpointError(f"{path}: alpha {alpha:g} and rank {rank} of '{layer}' make no LoRA; fetch it again")
        factors[layer] = Factors(pair["up"], pair["down"], alpha / root)
    return factors


def _adapter_config(path: Path, metadata: dict[str, str]) -> dict:
    """peft's configuration, which lies beside the file or, by diffusers, in its metadata; {} where there is none.

    Raises:
        CheckpointError: if it asks for what is not supported, or makes no sense.
    """
    beside = (path if path.is_dir() else path.parent) / ADAPTER_CONFIG
    if beside.is_file():
        config = read_json(beside)
    else:
        try:
            told = json.loads(metadata.get("lora_adapter_metadata", "{}"))
            config = {key.removeprefix("unet."): value for key, value in told.items()}
        except (ValueError, AttributeError, RecursionError):
            config = {}
    patterns = config.get("alpha_pattern") or {}
    alphas = [config.get("lora_alpha"), *(patterns.values() if isinstance(patterns, dict) else ["?"])]
    if not all(alpha is None or type(alpha) in (int, float) for alpha in alphas):
        raise CheckpointError(f"{path}: the lora_alpha of {beside.name} is no number; fetch the file again")
    wrong = [name for name in ("use_dora", "fan_in_fan_out") if config.get(name)]
    if config.get("peft_type", "LORA") != "LORA":
        wrong.append(f"peft_type {config['peft_type']}")
    if wrong:
        raise CheckpointError(f"{path}: {beside.name} says {', '.join(wrong)}, which is not supported; use a plain one")
    return config | {"alpha_pattern": patterns}


# --- matching to a UNet ----------


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
