"""Scores of finished clips: a few frames at a time, and refused where they are no numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..video import from_uint8
from .base import Reward

# Frames that an image reward is given at once.
CHUNK = 8


@torch.no_grad()
def score_clip(
    reward: Reward, frames: Sequence[np.ndarray], prompts: Sequence[str], image_frames: int | None = None
) -> Tensor:
    """``reward.score`` of one clip with each of P prompts; the clip is encoded once, a few frames at a time.

    Args:
        frames: uint8 (H, W, 3) each.
        image_frames: see ``frame_chunks``.

    Returns:
        (P,), in the reward's unit, on its device.
    """
    chunks = frame_chunks(reward, len(frames), image_frames)
    pixels = (from_uint8(np.stack([frames[i] for i in chunk]))[None].to(reward.device) for chunk in chunks)
    features = torch.cat([reward.encode_frames(some) for some in pixels], dim=1)  # (1, K, …)
    return reward.rate(features.expand(len(prompts), *features.shape[1:]), list(prompts))


def frame_chunks(reward: Reward, total: int, image_frames: int | None = None) -> list[list[int]]:
    """Which of ``total`` frames a reward looks at, in the chunks that it is given at once.

    Args:
        image_frames: how many evenly spaced frames an image reward sees; None = all. A video reward sees its own.
    """
    if reward.info.kind == "video":
        return [reward.chosen_frames(total)]
    count = min(image_frames or total, total)
    chosen = [i * total // count for i in range(count)]
    return [chosen[i : i + CHUNK] for i in range(0, count, CHUNK)]


def check_finite(scores: Tensor, told: str, remedy: str) -> Tensor:
    """Scores as they are, of any shape.

    Args:
        told: what the error says of them.
        remedy: how this host is told to compute with more precision.

    Raises:
        ValueError: if one is NaN or infinite, as from a model in too narrow a precision.
    """
    if not scores.isfinite().all():
        raise ValueError(f"{told}; {remedy}")
    return scores
