"""Best of several seeds: the clip with the highest reward, and a table that says why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .mixture import RewardMixture
from .scoring import check_finite


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


def best_of(
    mixture: RewardMixture,
    sample: Callable[[int], Tensor],
    prompt: str,
    seeds: Iterable[int],
    loser: Callable[[Candidate], None] | None = None,
    remedy: str = "they need more precision, such as fp32",
) -> tuple[Candidate, list[list]]:
    """Sample seeds one after another and keep the best clip (of equals the first).

    Memory does not grow with their number: two clips are held at once.

    Args:
        sample: seed -> frames (1, F, 3, H, W) in 0..1.
        loser: told of every other clip once it is out, such as to write it; None = dropped.
        remedy: see ``check_finite``.

    Returns:
        The best, and the table of all: a header, then seed, scores, total, and a mark at the best.

    Raises:
        ValueError: if a clip cannot be scored: it holds NaN, say.
    """
    best, rows = None, []
    for seed in seeds:
        candidate = judge(mixture, sample(seed), prompt, seed, remedy)
        rows.append([seed, *(f"{score:.4f}" for score in (*candidate.scores.values(), candidate.total))])
        best, out = (candidate, best) if best is None or candidate.total > best.total else (best, candidate)
        if out and loser:
            loser(out)
    header = ["seed", *mixture.rewards, "total", ""]
    return best, [header, *([*row, "best" if row[0] == best.seed else ""] for row in rows)]


@torch.no_grad()
def judge(mixture: RewardMixture, frames: Tensor, prompt: str, seed: int, remedy: str) -> Candidate:
    """Score the clip of a seed.

    Raises:
        ValueError: naming the seed, if that cannot be done.
    """
    try:
        score = mixture.score(frames, [prompt])
        total = score.total.item()
        check_finite(score.total, f"the rewards give {total}", remedy)
    except ValueError as error:
        raise ValueError(f"seed {seed}: {error}") from error
    return Candidate(seed, frames, {name: one.item() for name, one in score.raw.items()}, total)
