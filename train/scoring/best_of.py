"""What is best of several seeds: the rewards that decide, and what the clip's file says of the choice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ...core.device import WIDE_PRECISIONS, pick_dtype
from ...core.families import resolve_family
from ...core.rewards import RewardMixture, load_mixture
from ...core.rewards.best_of import Candidate
from ...core.rewards.registry import reward_kind
from ..config import named_values, reward_weight

# Of clips whose scores are not finite.
REMEDY = "they need more precision, such as --dtype fp32"


def best_of_tags(clip: Candidate, weights: dict[str, float], seeds: Sequence[int]) -> dict[str, str]:
    """What a clip's file says of the choice; its seed alone makes it again."""
    about = {"seeds": [seeds[0], seeds[-1]], "weights": weights, "scores": clip.scores, "total": clip.total}
    return {"best_of": json.dumps(about)}


def load_mixture_of(
    rewards: str | None, model: str, checkpoints: Path | None, device: torch.device, dtype: str
) -> RewardMixture:
    """The rewards NAME[:WEIGHT],… of a model's family.

    Args:
        rewards: None = HPS alone.
        dtype: as ``pick_dtype`` takes it; "auto" is never fp16.

    Raises:
        ValueError: for a reward that is unknown, or whose file is missing or damaged.
    """
    weights = read_weights("hps" if rewards is None else rewards)
    options = {"device": device, "dtype": pick_dtype(dtype, device, WIDE_PRECISIONS), "folder": checkpoints}
    return load_mixture(weights, resolve_family(model).name, **options)


def read_weights(text: str) -> dict[str, float]:
    """Weights by reward out of ``NAME[:WEIGHT],…``: 1 for a single reward, else the paper's where none is given.

    Raises:
        ValueError: for an unknown reward, no number, or one of several rewards without a weight.
    """
    given = named_values(text, "--reward ")
    if not given:
        raise ValueError("--reward names no reward; try --reward hps")
    weights = {name: _weight(name, value, len(given) == 1) for name, value in given.items()}
    if not any(weights.values()):
        raise ValueError(f"--reward {text}: all weights are 0, so no clip is best; give one reward a weight")
    return weights


def _weight(name: str, value: str | None, alone: bool) -> float:
    reward_kind(name)  # refuses unknown names
    return 1.0 if alone and value is None else reward_weight(name, value, "--reward ")
