"""From an entry of the reward loader's dropdown to loaded rewards."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch

from ...core.families import SHAPES
from ...core.rewards import REWARDS, Reward, load_reward, reward_path
from ..choices import EMBEDDED_REWARDS, PUBLISHED_MIXTURE
from ..host import host


class LoadedReward(NamedTuple):
    """A reward model, what moves it between devices, and its weight in the sum."""

    network: Reward
    patcher: Any
    weight: float


# What flows between the nodes: one reward, or several by name.
Rewards = dict[str, LoadedReward]


def load_rewards(choice: str, weights: dict[str, float], long_prompts: str, precision: str) -> Rewards:
    """Load what the dropdown calls ``choice``.

    Args:
        weights: of a mixture's rewards, 0 = left out; a single reward counts as it is.
        long_prompts: see ``Reward.long_captions``.

    Raises:
        ValueError: if a file lies in the wrong place, or nothing is left of a mixture; ``CheckpointError`` for a file
            that is missing, damaged or of another model.
    """
    rewards = {}
    for name, path in reward_files(choice, weights).items():
        network = load_reward(name, path, dtype=torch.float32, long_captions=long_prompts)
        weight = weights[name] if is_mixture(choice) else 1.0
        rewards[name] = LoadedReward(network, host().patcher(network.eval(), "reward", precision), weight)
    return rewards


def is_mixture(choice: str) -> bool:
    return choice == PUBLISHED_MIXTURE or EMBEDDED_REWARDS.get(choice, choice) is None


def reward_files(choice: str, weights: dict[str, float]) -> dict[str, Path]:
    """The files that an entry of the dropdown stands for, by the reward's name.

    Raises:
        ValueError: as ``load_rewards``, but for what is in the files.
    """
    mixed = [name for name, weight in weights.items() if weight]
    if is_mixture(choice) and not mixed:
        raise ValueError(f"{' and '.join(f'{name}_weight' for name in weights)} are all 0: give one reward a weight")
    if choice in EMBEDDED_REWARDS:
        names = [EMBEDDED_REWARDS[choice]] if EMBEDDED_REWARDS[choice] else mixed
        return {name: reward_path(name, SHAPES.name) for name in names}
    if choice == PUBLISHED_MIXTURE:
        return {name: published_file(name) for name in mixed}
    path, name = host().model_path(choice, "reward"), next(iter(PurePath(choice).parts[1:]), "")
    if name not in REWARDS:
        raise ValueError(
            f"reward: '{choice}' does not tell which reward it is; put it into one of the folders "
            f"{', '.join(f'rewards/{known}' for known in REWARDS)}"
        )
    return {name: path}


def published_file(name: str) -> Path:
    """The published file of a reward, out of the models folders.

    Raises:
        ValueError: if it is in none of them.
    """
    places = [reward_path(name, folder=folder) for folder in host().model_folders()]
    for path in places:
        if path.is_file():
            return path
    raise ValueError(f"reward: the mixture needs {places[0]}; put the file there, or set {name}_weight to 0")
