"""A clip and its prompts to scores."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from ...core.rewards import Reward
from ...core.text_files import is_unicode
from ...core.video import VideoError, from_uint8, iterate_video, video_duration
from ..data.sources import ClipError
from ..results import KeptLines
from .requests import ScoreRequest, own_prompt
from .tables import ScoreResult

# Frames of a clip that are held at once; a longer clip is seen at so many instants, evenly spaced.
MOST_FRAMES = 32
# Frames that an image reward is given at once.
CHUNK = 8


def stamp(path: Path) -> list:
    """Path, bytes and time of change of a file: another file has another."""
    about = path.stat()
    return [str(path.resolve()), about.st_size, about.st_mtime_ns]


def score_request(
    request: ScoreRequest, rewards: dict[str, Reward], image_frames: int | None = None, kept: KeptLines | None = None
) -> list[ScoreResult]:
    """Score a clip with each of its prompts.

    Args:
        image_frames: how many evenly spaced frames image rewards see; None = all, ``MOST_FRAMES`` at most.
        kept: where scores are found and kept; None = nowhere.
    """
    if request.problem:
        return [ScoreResult(request.name, problem=request.problem)]
    try:
        if not request.path.is_file():
            raise VideoError(f"{request.path}: no such video file")
        prompts = request.prompts or (own_prompt(request.path, request.encoding),)
        if not all(map(str.strip, prompts)):
            raise ClipError("its prompt is empty")
        if not all(map(is_unicode, prompts)):
            raise ClipError("its prompt holds half a character (an unpaired surrogate), which is no text")
        made_from = {"clip": stamp(request.path), "prompts": prompts}
        found = kept and kept.find(made_from)
        columns = found or score_file(request.path, prompts, rewards, image_frames)
    except (VideoError, OSError) as error:
        return [ScoreResult(request.name, problem=str(error))]
    if kept and not found:
        kept.add(made_from, columns)
    rows = (dict(zip(columns, scores)) for scores in zip(*columns.values()))
    return [ScoreResult(request.name, prompt, scores) for prompt, scores in zip(prompts, rows)]


def score_file(
    path: Path, prompts: tuple[str, ...], rewards: dict[str, Reward], image_frames: int | None = None
) -> dict[str, list[float]]:
    """Scores by reward, one per prompt, of a clip's file.

    Raises:
        VideoError: if the file is broken.
    """
    videos = any(reward.info.kind == "video" for reward in rewards.values())
    frames = read_evenly(path, max(image_frames or MOST_FRAMES, MOST_FRAMES if videos else 1))
    return {name: score_clip(reward, frames, prompts, image_frames) for name, reward in rewards.items()}


def read_evenly(path: Path, most: int) -> list[np.ndarray]:
    """Frames uint8 (H, W, 3) of a clip: all where there are up to ``most``, else so many, evenly spaced in time.

    Raises:
        VideoError: if the file is broken.
    """
    frames = list(iterate_video(path, most + 1))
    if len(frames) <= most:
        return frames
    frames.clear()  # memory need not hold two sets
    duration = video_duration(path)
    if not duration > 0:
        raise VideoError(f"{path}: does not tell how long it is; convert it to mp4")
    return list(iterate_video(path, most, most / duration))


@torch.no_grad()
def score_clip(
    reward: Reward, frames: list[np.ndarray], prompts: tuple[str, ...], image_frames: int | None = None
) -> list[float]:
    """``reward.score`` of one clip with each prompt; the clip is encoded once, a few frames at a time.

    Args:
        frames: uint8 (H, W, 3).

    Raises:
        ValueError: if a score is not finite.
    """
    total = len(frames)
    if reward.info.kind == "video":
        parts = [reward.chosen_frames(total)]
    else:
        count = min(image_frames or total, total)
        chosen = [i * total // count for i in range(count)]
        parts = [chosen[i : i + CHUNK] for i in range(0, count, CHUNK)]
    pixels = (from_uint8(np.stack([frames[i] for i in part]))[None].to(reward.device) for part in parts)
    features = torch.cat([reward.encode_frames(some) for some in pixels], dim=1)  # (1, K, …)
    scores = reward.rate(features.expand(len(prompts), *features.shape[1:]), list(prompts)).tolist()
    if not all(map(math.isfinite, scores)):
        raise ValueError(f"{reward.info.name} gives {scores}; it needs more precision, such as --dtype fp32")
    return scores
