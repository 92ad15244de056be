"""Checkpoint files in and out: our own safetensors and the published ones, recognised by what they hold.

Files come from strangers: nothing is unpickled beyond tensors, and every failure names the file, what was expected
and what to do.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .config import TextConfig, UNetConfig, VAEConfig, unet_config_from_dict
from .keymaps import KeyMap, StateDict, text_key_map, unet_key_map, vae_key_map
from .mapped import MappedFiles, bring
from .text import TextEncoder
from .unet import UNet3D
from .vae import VideoVAE

FORMAT = "t2v-turbo"
# Prefixes of the three networks in VideoCrafter2's model.ckpt.
PUBLISHED_PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text": "cond_stage_model."}
# A key by which a bare published state dict of each kind is known.
PUBLISHED_SIGNS = {
    "unet": "time_embed.0.weight",
    "vae": "encoder.conv_in.weight",
    "text": "model.token_embedding.weight",
}
LORA = (
    "this is a LoRA, as T2V-Turbo v1 is published (unet_lora.pt), which is not supported yet; "
    "use T2V-Turbo-v2's unet_mg.pt or unet_no_mg.pt"
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, what was expected and what to do."""


# --- reading ----------


def read_state(path: str | Path) -> tuple[StateDict, dict[str, str]]:
    """Read a state dict and its metadata from .safetensors, .pt, .pth or .ckpt, on the CPU, memory-mapped.

    Published wrappers (``state_dict``, ``module``) are taken off.

    Raises:
        CheckpointError: if the file is missing, empty, truncated, or not a file of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file; check the path, or fetch it with `t2v-turbo download`")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty (0 bytes); delete it and fetch it again")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pt", ".pth", ".ckpt"):
        return _read_torch(path), {}
    raise CheckpointError(f"{path}: unknown kind of file '{path.suffix}'; use .safetensors, .pt, .pth or .ckpt")


def _read_safetensors(path: Path) -> tuple[StateDict, dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: not a complete safetensors file ({error}); it is truncated or of another kind: fetch it again"
        ) from error


def _read_torch(path: Path) -> StateDict:
    try:
        # Files of before torch 1.6 are not zip archives and cannot be mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds objects other than tensors, or is no checkpoint; it was not loaded, because such a file "
            "can run code. Convert it to .safetensors where you trust it"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: damaged or truncated ({_first_line(error)}); fetch it again") from error
    for wrapper in ("state_dict", "module"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if isinstance(state, list) and state and all(isinstance(value, Tensor) for value in state):
        raise CheckpointError(f"{path}: {LORA}")  # v1's trainer saved its factors as a bare list, up and down in turn
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: holds no state dict of tensors; a model checkpoint was expected")
    return state


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def select(state: StateDict, kind: str, path: str | Path) -> StateDict:
    """The part of a published state dict that belongs to network ``kind`` ("unet", "vae" or "text").

    Raises:
        CheckpointError: if there is no such network in the file.
    """
    prefix, sign = PUBLISHED_PREFIXES[kind], PUBLISHED_SIGNS[kind]
    if prefix + sign in state:
        return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    if sign in state:
        return state
    if any("lora" in key.lower() for key in state):
        raise CheckpointError(f"{path}: {LORA}")
    raise CheckpointError(
        f"{path}: holds no {kind} of VideoCrafter2's architecture (no key '{sign}' among its {len(state)} keys, "
        f"which begin with {sorted(state)[:3]}); use model.ckpt, unet_mg.pt, unet_no_mg.pt or our own safetensors"
    )


def conditions(state: StateDict, config: UNetConfig) -> UNetConfig:
    """``config`` with the guidance and motion inputs that a published UNet state dict has."""
    widths = {
        field: state[key].shape[1] if key in state else None
        for field, key in (("guidance_dim", "time_cond_proj.weight"), ("motion_dim", "motion_cond_proj.weight"))
    }
    return replace(config, **widths)


# --- the three networks ----------


def load_unet(
    path: str | Path,
    config: UNetConfig,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> UNet3D:
    """Load a teacher or student UNet straight to a device; its conditions are found out from the file.

    Args:
        path: VideoCrafter2's model.ckpt, T2V-Turbo-v2's unet_mg.pt or unet_no_mg.pt, or our own safetensors.
        config: sizes expected of a published file; our own files carry theirs.
    """
    state, metadata = read_state(path)
    to = Destination(device, dtype, MappedFiles(Path(path).parent))
    if metadata.get("format") == FORMAT:
        config = unet_config_from_dict(own_config(metadata, "unet", path))
        return fill(lambda: UNet3D(config), state, None, path, to)
    state = select(state, "unet", path)
    config = conditions(state, config)
    return fill(lambda: UNet3D(config), state, lambda keys: unet_key_map(config, keys), path, to)


def load_vae(
    path: str | Path,
    config: VAEConfig,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> VideoVAE:
    """Load the autoencoder from VideoCrafter2's model.ckpt, a bare LDM state dict, or our own safetensors."""
    state, metadata = read_state(path)
    to = Destination(device, dtype, MappedFiles(Path(path).parent))
    if metadata.get("format") == FORMAT:
        values = own_config(metadata, "vae", path)
        config = VAEConfig(**{**values, "channels": tuple(values["channels"])})
        return fill(lambda: VideoVAE(config), {f"model.{k}": v for k, v in state.items()}, None, path, to)
    state = select(state, "vae", path)
    return fill(lambda: VideoVAE(config), state, lambda keys: vae_key_map(config, keys), path, to, part="model")


def load_text(
    path: str | Path,
    config: TextConfig,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TextEncoder:
    """Load the text tower from VideoCrafter2's model.ckpt, a bare state dict, or our own safetensors."""
    state, metadata = read_state(path)
    to = Destination(device, dtype, MappedFiles(Path(path).parent))
    if metadata.get("format") == FORMAT:
        config = TextConfig(**own_config(metadata, "text", path))
        merges = Path(path).parent / Path(config.merges).name if config.merges else None
        return fill(lambda: TextEncoder(config, merges), {f"tower.{k}": v for k, v in state.items()}, None, path, to)
    return fill(lambda: TextEncoder(config), select(state, "text", path), text_key_map, path, to, part="tower")


def own_config(metadata: dict[str, str], kind: str, path: str | Path) -> dict:
    if metadata.get("kind") != kind:
        raise CheckpointError(
            f"{path}: holds a {metadata.get('kind')}, but a {kind} was expected; name or put there the right file"
        )
    return json.loads(metadata["config"])


class Destination(NamedTuple):
    """Where the weights of a file go, and from where they are mapped."""

    device: str | torch.device = "cpu"
    dtype: torch.dtype = torch.float32
    source: MappedFiles | None = None


ON_CPU = Destination()


def fill(
    build: Callable[[], nn.Module],
    state: StateDict,
    key_map: Callable[[list[str]], KeyMap] | None,
    path: str | Path,
    to: Destination = ON_CPU,
    part: str | None = None,
) -> nn.Module:
    """Build a network without memory and put the file's tensors in place; strict about names and shapes.

    Every weight is read once and changes its format on the way, so that no second copy of the network ever exists.
    Weights that are not changed stay mapped from the file, and are read when they are used.
    """
    with torch.device("meta"), WithoutInitialisation():
        model = build()
    target = getattr(model, part) if part else model
    expected = target.state_dict()
    if key_map is not None:
        state = key_map(list(expected)).from_published(state)
    _check_keys(state, expected, path)
    target.load_state_dict(bring(state, *to), strict=True, assign=True)
    return model.eval()


class WithoutInitialisation(TorchFunctionMode):
    """Layers are built without drawing their first weights, which takes time and is for nothing before loading."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def _check_keys(state: StateDict, expected: StateDict, path: str | Path) -> None:
    missing, foreign = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    wrong = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    if missing or foreign:
        raise CheckpointError(
            f"{path}: does not fit this architecture: {len(missing)} weights are missing (first: {missing[:2]}), "
            f"{len(foreign)} are unknown (first: {foreign[:2]}); the file is of another model or incomplete"
        )
    if wrong:
        key = wrong[0]
        raise CheckpointError(
            f"{path}: {len(wrong)} weights have another shape, for example '{key}': {list(state[key].shape)} in the "
            f"file, {list(expected[key].shape)} expected; the file is of another size of model"
        )


# --- writing ----------


def save_unet(unet: UNet3D, path: str | Path, dtype: torch.dtype = torch.float32, **about: str) -> None:
    """Write a UNet as our own safetensors; ``about`` (name=text) goes to the metadata."""
    save_network(unet.state_dict(), path, "unet", asdict(unet.config), dtype, about)


def save_vae(vae: VideoVAE, path: str | Path, dtype: torch.dtype = torch.float32, **about: str) -> None:
    save_network(vae.model.state_dict(), path, "vae", asdict(vae.config), dtype, about)


def save_text(text: TextEncoder, path: str | Path, dtype: torch.dtype = torch.float32, **about: str) -> None:
    """The merges list, if any, must lie beside the file."""
    save_network(text.tower.state_dict(), path, "text", asdict(text.config), dtype, about)


def save_network(state: StateDict, path: str | Path, kind: str, config: dict, dtype: torch.dtype, about: dict) -> None:
    metadata = {"format": FORMAT, "kind": kind, "config": json.dumps(config)} | about
    save_tensors({key: value.to(dtype) for key, value in state.items()}, path, metadata)


def save_tensors(tensors: StateDict, path: str | Path, metadata: dict[str, str]) -> None:
    """Write safetensors under a temporary name, then rename: a file under its own name is always whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, partial, metadata)
        # The library creates files that only their owner may read; the folder tells who may.
        partial.chmod(path.parent.stat().st_mode & 0o666)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
