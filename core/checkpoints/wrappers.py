"""What people wrap weights in, taken off: entries of training scripts, prefixes of DDP and torch.compile, averages.

An entry of a nested file counts as a prefix of the keys in it: ``{"ema": {"a": …}}`` and ``{"ema.a": …}`` are the same.
No tensor is copied.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from .files import CheckpointError
from .key_maps import StateDict

log = logging.getLogger(__name__)

# Entries whose name says no more than "weights"; whatever else lies beside them is bookkeeping of a training.
PLAIN_ENTRIES = ("state_dict", "model_state_dict", "model", "module", "network", "net", "weights", "params")
# Parts of keys that DDP, torch.compile, FSDP and activation checkpointing add.
_ADDED = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# torch's AveragedModel counts among the weights.
_COUNTER = "n_averaged"
# A moving average of the weights, by the name of its entry or prefix.
_EMA = re.compile(r"(^|_)(ema|averaged_model)(_|$)")
# The average that latent diffusion keeps: its keys are the model's without any dot.
_LDM_EMA, _LDM_MODEL = "model_ema.", "model."
_DEEPEST = 8


def unwrap(content: Any, path: str | Path) -> StateDict:
    """The tensors of a file's ``content`` by flat keys, without wrappers that carry no meaning.

    Where a training saved its weights under one of ``PLAIN_ENTRIES``, that entry counts and averages of it, under their
    name as a prefix; optimisers, callbacks and loops are left out.

    Raises:
        CheckpointError: if there are no named tensors, or two entries could be meant.
    """
    state = _restore_dots(_flatten(content, path, 0, set()))
    if not state:
        raise CheckpointError(f"{path}: holds no state dict of tensors but {_what(content)}; a checkpoint was expected")
    weights = {key: value for key, value in state.items() if key.rpartition(".")[2] != _COUNTER}
    bare = {_without_added(key): value for key, value in weights.items()}
    if len(bare) < len(weights):
        raise CheckpointError(
            f"{path}: holds {len(weights) - len(bare)} weights twice, with and without 'module.'; save one of the two"
        )
    return bare


def is_ema(prefix: str) -> bool:
    """Whether weights under this prefix are a moving average."""
    return any(_EMA.search(part) for part in prefix.split("."))


def choose(state: StateDict, signs: tuple[str, ...], what: str, path: str | Path) -> StateDict | None:
    """The network ``what`` out of a flat state dict, without its prefix; None if there is none.

    A moving average is preferred to the raw weights, and this is logged once; weights that it lacks are the raw ones.

    Args:
        signs: keys, one of which every such network has.

    Raises:
        CheckpointError: if there are several, and no rule says which.
    """
    prefixes = {key.removesuffix(sign) for key in state for sign in signs if key == sign or key.endswith(f".{sign}")}
    raw = sorted(prefix for prefix in prefixes if not is_ema(prefix))
    averages = sorted(prefixes - set(raw))
    if len(averages) > 1 or (len(raw) > 1 and not averages):
        raise CheckpointError(
            f"{path}: holds {len(averages or raw)} networks of the kind {what}, under "
            f"{', '.join(repr(prefix) for prefix in averages or raw)}; save the one to use as a file of its own"
        )
    if not averages:
        return _under(state, raw[0]) if raw else None
    _tell(f"{path}: uses the moving average of the {what}'s weights ('{averages[0]}'), not the raw weights")
    kept = _under(state, raw[0]) if len(raw) == 1 else {}
    return kept | _under(state, averages[0])


@cache
def _tell(message: str) -> None:
    log.warning(message)


def _under(state: StateDict, prefix: str) -> StateDict:
    """The weights under ``prefix``; the empty one leaves the averages out."""
    found = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    return found if prefix else {key: value for key, value in found.items() if not is_ema(key.rpartition(".")[0])}


def _flatten(content: Any, path: str | Path, depth: int, seen: set[int]) -> StateDict:
    """Nested dictionaries of tensors as one, the names of entries joined with dots; each dictionary counts once."""
    if not isinstance(content, dict) or depth > _DEEPEST or id(content) in seen:
        return {}
    seen.add(id(content))
    own = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    entries = {key: state for key, value in _entries(content) if (state := _flatten(value, path, depth + 1, seen))}
    plain = [key for key in PLAIN_ENTRIES if key in entries]
    if len(plain) > 1:
        raise CheckpointError(
            f"{path}: holds weights in the entries {', '.join(plain)}, and no rule says which count; save one alone"
        )
    if plain:
        own = entries.pop(plain[0])
    elif entries and all(value.ndim == 0 for value in own.values()):
        own = {}  # counters of a training beside its networks
    if own:
        entries = {key: state for key, state in entries.items() if is_ema(key)}
    return own | {f"{name}.{key}": value for name, state in entries.items() for key, value in state.items()}


def _entries(content: dict) -> Iterator[tuple[str, dict]]:
    """The dictionaries in a dictionary that may hold weights: not an optimiser's."""
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, dict) and "param_groups" not in value:
            yield key, value


def _without_added(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _ADDED)


def _restore_dots(state: StateDict) -> StateDict:
    """Latent diffusion's averages under keys with dots again, as ``model_ema.`` and the key."""
    if not any(key.startswith(_LDM_EMA) and key.count(".") == 1 for key in state):
        return state
    names = {
        _LDM_EMA + key.removeprefix(_LDM_MODEL).replace(".", ""): _LDM_EMA + key.removeprefix(_LDM_MODEL)
        for key in state
        if key.startswith(_LDM_MODEL)
    }
    return {names.get(key, key): value for key, value in state.items()}


def _what(content: Any) -> str:
    """What was saved in place of weights, in words."""
    if isinstance(content, Tensor):
        return f"one tensor of shape {list(content.shape)}"
    if isinstance(content, list):
        return f"a list of {len(content)}"
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    if _depth(content) > _DEEPEST:
        return f"dictionaries nested more than {_DEEPEST} deep"
    if "param_groups" in content or any(str(key).startswith("optimizer") for key in content):
        return "an optimiser's state"
    names = ", ".join(map(str, list(content)[:5]))
    return f"the entries {names}" if names else "nothing"


def _depth(content: Any) -> int:
    """How deep dictionaries are nested, along their first entries."""
    depth = 0
    while isinstance(content, dict) and content and depth <= _DEEPEST:
        content, depth = next(iter(content.values())), depth + 1
    return depth
