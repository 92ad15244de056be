"""Reward models from their published files or our own safetensors, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.locations import PACKAGED_WEIGHTS, models_folder
from ..checkpoints.networks import FORMAT, CheckpointError, Destination, fill, own_config, read_state, save_network
from .base import LONG_CAPTIONS, Reward, RewardInfo
from .mixture import RewardMixture
from .models.config import config_from_dict
from .registry import PAPER_WEIGHTS, REWARDS, build_reward, reward_kind

EMBEDDED = "shapes"


def reward_path(name: str, family: str = "videocrafter2", folder: str | Path | None = None) -> Path:
    """Where the weights of reward ``name`` lie: in the package for the embedded family, else in the models folder.

    Args:
        folder: in place of that folder.

    Raises:
        ValueError: for an unknown name.
    """
    file = reward_kind(name).files[0][1]
    if family == EMBEDDED:
        return (Path(folder) if folder else PACKAGED_WEIGHTS / EMBEDDED) / f"reward_{name}.safetensors"
    return (Path(folder) if folder else models_folder()) / "rewards" / name / file


def present_rewards(family: str = "videocrafter2", folder: str | Path | None = None) -> list[str]:
    """Names of the rewards whose weights are there; see ``reward_path``."""
    return [name for name in REWARDS if reward_path(name, family, folder).is_file()]


def load_reward(
    name: str,
    path: str | Path | None = None,
    family: str = "videocrafter2",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    long_captions: str = "segments",
    config: Any = None,
    folder: str | Path | None = None,
) -> Reward:
    """Load a reward model, frozen.

    Models of one architecture (HPSv2.1, CLIP, PickScore) cannot be told apart by their published files: the name says
    how frames are prepared.

    Args:
        name: a key of ``REWARDS``.
        path: the published file or our own safetensors; None = ``reward_path(name, family, folder)``. A vocabulary or
            merges list lies beside it.
        long_captions: "segments" or "truncate", see ``Reward``.
        config: sizes expected of a published file, None = the published ones; our own files carry theirs.

    Raises:
        ValueError: for an unknown name or ``long_captions``.
        CheckpointError: for a file that is missing, damaged or of another model.
    """
    kind = reward_kind(name)
    if long_captions not in LONG_CAPTIONS:
        raise ValueError(f"long_captions='{long_captions}' is unknown; use {' or '.join(LONG_CAPTIONS)}")
    path = Path(path) if path else _present_path(name, family, folder)
    state, metadata = read_state(path)
    to = Destination(device, dtype)
    if metadata.get("format") == FORMAT:
        config, info = _own_description(name, metadata, path)
        reward = fill(lambda: build_reward(name, config, path.parent, info), state, None, path, to)
    else:
        config = config or kind.config
        state = kind.prepare(state, config)
        reward = fill(
            lambda: build_reward(name, config, path.parent), state, lambda keys: kind.key_map(keys, config), path, to
        )
    reward.long_captions = long_captions
    return reward.requires_grad_(False).to(device, dtype)


def _present_path(name: str, family: str, folder: str | Path | None) -> Path:
    path = reward_path(name, family, folder)
    if path.is_file():
        return path
    remedy = f"fetch it with `t2v-turbo download {name}`"
    if family == EMBEDDED:
        there = ", ".join(present_rewards(family, folder)) or "no rewards"
        remedy = (
            f"the folder holds {there}; the published one is fetched with `t2v-turbo download {name}` and belongs to "
            "the model videocrafter2"
        )
    raise CheckpointError(f"{path}: no such checkpoint file for the reward '{name}'; {remedy}")


def _own_description(name: str, metadata: dict[str, str], path: Path) -> tuple[Any, RewardInfo]:
    values = own_config(metadata, "reward", path)
    if metadata.get("name") != name:
        raise CheckpointError(
            f"{path}: holds the reward '{metadata.get('name')}', but '{name}' was expected; ask for that reward, or "
            "put the right file there"
        )
    try:
        info = json.loads(metadata["info"])
        config = config_from_dict(type(REWARDS[name].config), values)
        return config, RewardInfo(**{**info, "range": tuple(info["range"])})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its description cannot be read ({error}); save the model again") from error


def save_reward(
    reward: Reward, name: str, path: str | Path, dtype: torch.dtype = torch.float32, **about: str
) -> None:
    """Write a reward model as our own safetensors, with its sizes and what it says of itself.

    Args:
        name: the key of ``REWARDS`` under which it loads. Its vocabulary or merges list must lie beside the file.
        about: further name=text for the metadata.
    """
    reward_kind(name)
    about = about | {"name": name, "info": json.dumps(asdict(reward.info))}
    save_network(reward.state_dict(), path, "reward", asdict(reward.config), dtype, about)


def load_mixture(
    weights: Mapping[str, float] = PAPER_WEIGHTS,
    family: str = "videocrafter2",
    paths: Mapping[str, str | Path] | None = None,
    image_frames: int = 2,
    **options: Any,
) -> RewardMixture:
    """Load the reward models named by ``weights``, each once.

    Args:
        weights: weight of each reward, by name.
        family: "videocrafter2", or "shapes" for the embedded models.
        paths: files of single rewards that lie elsewhere.
        image_frames: random frames that image rewards see in training.
        options: device, dtype, long_captions, folder of ``load_reward``.
    """
    paths = paths or {}
    rewards = {name: load_reward(name, paths.get(name), family, **options) for name in weights}
    return RewardMixture(rewards, weights, image_frames)
