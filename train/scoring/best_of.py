"""Best of several seeds: the clip with the highest reward is kept, and a table says why."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...core.rewards import RewardMixture
from ...core.rewards.registry import reward_kind
from ..config import named_values, reward_weight


@dataclass(frozen=True)
class Candidate:
    """One of the clips that compete.

    Attributes:
        frames: (1, F, 3, H, W) in 0..1.
        scores: of each reward, in its own unit.
        total: the weighted sum of the scores, by which the best is found.
    """

    seed: int
    frames: Tensor
    scores: dict[str, float]
    total: float


class Contest:
    """Samples seeds one after another and keeps the best clip: memory does not grow with their number.

    Args:
        mixture: weighted rewards that judge.
        sample: seed -> frames (1, F, 3, H, W) in 0..1.
        loser: told of every other clip once it is out, such as to write it; None = dropped.
    """

    def __init__(
        self,
        mixture: RewardMixture,
        sample: Callable[[int], Tensor],
        loser: Callable[[Candidate], None] | None = None,
    ):
        self.mixture, self.sample, self.loser = mixture, sample, loser

    def run(self, prompt: str, seeds: Sequence[int]) -> tuple[Candidate, list[list]]:
        """The best clip (of equals the first), and the table of all: seed, scores, total, and a mark at the best.

        Raises:
            ValueError: if a clip cannot be scored: it holds NaN, say.
        """
        best, rows = None, []
        for seed in tqdm(seeds, desc="seeds", unit="clip", leave=False):
            candidate = self.judge(prompt, seed)
            rows.append([seed, *(f"{score:.4f}" for score in (*candidate.scores.values(), candidate.total))])
            best, out = (candidate, best) if best is None or candidate.total > best.total else (best, candidate)
            if out and self.loser:
                self.loser(out)
        header = ["seed", *self.mixture.rewards, "total", ""]
        return best, [header, *([*row, "best" if row[0] == best.seed else ""] for row in rows)]

    def judge(self, prompt: str, seed: int) -> Candidate:
        """Sample and score one seed."""
        frames = self.sample(seed)
        try:
            with torch.no_grad():
                score = self.mixture.score(frames, [prompt])
        except ValueError as error:
            raise ValueError(f"seed {seed}: {error}") from error
        total = score.total.item()
        if not math.isfinite(total):
            raise ValueError(f"seed {seed}: the rewards give {total}; they need more precision, such as --dtype fp32")
        return Candidate(seed, frames, {name: one.item() for name, one in score.raw.items()}, total)


def tag(clip: Candidate, weights: dict[str, float], seeds: Sequence[int]) -> dict[str, str]:
    """What a clip's file says of the contest; its seed alone makes it again."""
    about = {"seeds": [seeds[0], seeds[-1]], "weights": weights, "scores": clip.scores, "total": clip.total}
    return {"best_of": json.dumps(about)}


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


def numbered(target: Path, seed: int) -> Path:
    """The name of a clip that was not the best."""
    return target.with_name(f"{target.stem}-seed{seed}{target.suffix}")
