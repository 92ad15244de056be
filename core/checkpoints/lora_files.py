"""LoRA files: low-rank factors by layer, out of what trainers write.

Four ways of naming are read: T2V-Turbo v1's bare list, peft's ``lora_A`` and ``lora_B``, ``lora_down`` and ``lora_up``
with whole keys, and kohya's with underscores.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .files import CheckpointError, read_file, read_json
from .foreign import describe
from .key_maps import StateDict
from .wrappers import unwrap

log = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
# What peft writes before a layer's key.
PEFT = "base_model.model."
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
    """Read a LoRA, memory-mapped where the format allows; ``lora.merge_lora`` matches it to a UNet.

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
    if not (configured or alphas) and any(layer.startswith(PEFT) for layer in layers):
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
