"""Checkpoint files in and out: our own safetensors and the published ones, recognised by what they hold.

Files come from strangers: nothing is unpickled beyond tensors, and every failure names the file, what was expected
and what to do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..networks.config import TextConfig, UNetConfig, VAEConfig, unet_config_from_dict
from ..networks.text import TextEncoder
from ..networks.unet import UNet3D
from ..networks.vae import VideoVAE
from .files import CheckpointError, read_file
from .foreign import describe, is_for_images
from .key_maps import KeyMap, StateDict, text_key_map, unet_key_map, vae_key_map
from .lora import add_guidance, merging
from .lora_files import Lora, is_adapter, is_walk
from .mapped import bring
from .wrappers import choose, unwrap

FORMAT = "t2v-turbo"
# Prefixes of the three networks in VideoCrafter2's model.ckpt.
PUBLISHED_PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text": "cond_stage_model."}
# Keys by one of which each network is known, whatever stands before them: the published one and ours.
SIGNS = {
    "unet": ("time_embed.0.weight", "time_mlp.0.weight"),
    "vae": ("encoder.conv_in.weight",),
    "text": ("ln_final.weight",),
}
USABLE = "use model.ckpt, unet_mg.pt, unet_no_mg.pt or our own safetensors"
AS_LORA = (
    "give it with --lora, or, if it makes a student of the teacher as T2V-Turbo v1's unet_lora.pt does, with --student "
    "and the teacher's file (model.ckpt) in the models folder"
)


# --- reading ----------


def read_state(path: str | Path) -> tuple[StateDict, dict[str, str]]:
    """Read a state dict and its metadata from safetensors or torch's files, on the CPU, memory-mapped.

    What trainers and wrappers put around the weights is taken off (``wrappers.unwrap``).

    Args:
        path: a file, the index of one in shards, a shard beside its index, or a folder with one of these.

    Raises:
        CheckpointError: if the file is missing, empty, truncated, or not a file of tensors.
    """
    content, metadata = read_file(path)
    if metadata.get("format") == FORMAT:
        return content, metadata
    if is_walk(content):
        raise CheckpointError(f"{path}: is a LoRA, a bare list of {len(content)} factors; {AS_LORA}")
    return unwrap(content, path), metadata


def select(state: StateDict, kind: str, path: str | Path) -> StateDict:
    """The part of a state dict that belongs to network ``kind`` ("unet", "vae" or "text"), by published keys or ours.

    Raises:
        CheckpointError: if there is no such network in the file, or several are.
    """
    if is_adapter(state):
        raise CheckpointError(f"{path}: is a LoRA of {len(state)} tensors; {AS_LORA}")
    found = choose(state, SIGNS[kind], kind, path)
    if found is None or (kind == "unet" and is_for_images(found)):
        raise CheckpointError(
            f"{path}: holds no {kind} of VideoCrafter2's architecture but {describe(found or state)}; {USABLE}"
        )
    return found


def check_unet(path: str | Path) -> None:
    """Open a file far enough to say whether it holds a UNet, before anything else is looked for.

    Raises:
        CheckpointError: if it holds none.
    """
    state, metadata = read_state(path)
    if metadata.get("format") == FORMAT:
        own_config(metadata, "unet", path)
    else:
        select(state, "unet", path)


def conditions(state: StateDict, config: UNetConfig) -> UNetConfig:
    """``config`` with the guidance and motion inputs that a UNet's state dict has, under published keys or ours."""
    inputs = {
        "guidance_dim": ("time_cond_proj.weight", "guidance_proj.weight"),
        "motion_dim": ("motion_cond_proj.weight", "motion_proj.weight"),
    }
    found = {field: [state[key].shape for key in keys if key in state] for field, keys in inputs.items()}
    return replace(config, **{field: shapes[0][-1] if shapes else None for field, shapes in found.items()})


# --- the three networks ----------


def load_unet(
    path: str | Path,
    config: UNetConfig,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    loras: Sequence[tuple[Lora, float]] = (),
) -> UNet3D:
    """Load a teacher or student UNet straight to a device; its conditions are found out from the file.

    Args:
        path: VideoCrafter2's model.ckpt, T2V-Turbo-v2's unet_mg.pt or unet_no_mg.pt, or our own safetensors.
        config: sizes expected of a published file; our own files carry theirs.
        loras: to merge on the way, each with its strength; one that brings a guidance input makes a teacher a student.
    """
    state, metadata = read_state(path)
    own = metadata.get("format") == FORMAT
    if own:
        config = unet_config_from_dict(own_config(metadata, "unet", path))
    else:
        state = select(state, "unet", path)
        config = conditions(state, config)
    state, config = add_guidance(state, config, loras)
    to = Destination(device, dtype, merging(loras, config))
    key_map = None if own else lambda keys: unet_key_map(config, keys)
    return fill(lambda: UNet3D(config), state, key_map, path, to)


def load_vae(
    path: str | Path,
    config: VAEConfig,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> VideoVAE:
    """Load the autoencoder from VideoCrafter2's model.ckpt, a bare LDM state dict, or our own safetensors."""
    state, metadata = read_state(path)
    to = Destination(device, dtype)
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
    to = Destination(device, dtype)
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
    """Where the weights of a file go, in which number format, and what changes them on the way."""

    device: str | torch.device = "cpu"
    dtype: torch.dtype = torch.float32
    change: Callable[[str, Tensor], Tensor] | None = None


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
    """Write safetensors under a temporary name, then rename: a file under its own name is always whole.

    Raises:
        OSError: if the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, partial, metadata)
        # The library creates files that only their owner may read; the folder tells who may.
        partial.chmod(path.parent.stat().st_mode & 0o666)
        os.replace(partial, path)
    except SafetensorError as error:  # what the library makes of an OSError
        raise OSError(f"{path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
