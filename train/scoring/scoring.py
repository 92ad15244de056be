"""Clips to scores: the files are read, scored by every reward, and what was scored is kept until the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ...core.rewards import Reward
from ...core.rewards.scoring import check_finite, score_clip
from ...core.text_files import is_unicode
from ...core.video import VideoError, iterate_video, video_duration
from ..data.sources import ClipError
from ..results import KeptLines
from .requests import ScoreRequest, own_prompt
from .results import ScoreResult, Scores
from .rewards import ScoreSettings, stamp
from .tables import write_csv

# Frames of a clip that are held at once; a longer clip is seen at so many instants, evenly spaced.
MOST_FRAMES = 32


def score(requests: Sequence[ScoreRequest], settings: ScoreSettings, out: Path | None = None) -> Scores:
    """Score every clip with each of its prompts.

    Args:
        out: a .csv for the scores. What was scored is kept beside it until it is written, so that a call that was
            stopped goes on where it was.

    Raises:
        ValueError: for rewards that cannot be loaded, or if no clip can be scored.
    """
    rewards = settings.load()
    kept = KeptLines(kept_beside(out), settings.provenance(rewards)) if out else None
    results = []
    for request in tqdm(requests, desc="score", unit="clip", disable=len(requests) < 2):
        results += score_request(request, rewards, settings.frames, kept)
    scores = Scores(results, {name: reward.info for name, reward in rewards.items()})
    if not scores.scored:
        first = scores.broken[0].complaint
        raise ValueError(first if len(results) == 1 else f"none of {len(results)} clips can be scored: {first}; …")
    if kept:
        write_csv(out, results, list(scores.infos))
        kept.path.unlink(missing_ok=True)
    return scores


def kept_beside(table: Path) -> Path:
    """Where the scores for a table are until it is written."""
    return table.with_name(f".{table.name}.kept")


def score_request(
    request: ScoreRequest,
    rewards: Mapping[str, Reward],
    image_frames: int | None = None,
    kept: KeptLines | None = None,
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
    path: Path, prompts: tuple[str, ...], rewards: Mapping[str, Reward], image_frames: int | None = None
) -> dict[str, list[float]]:
    """Scores by reward, one per prompt, of a clip's file.

    Raises:
        VideoError: if the file is broken.
    """
    videos = any(reward.info.kind == "video" for reward in rewards.values())
    frames = read_evenly(path, max(image_frames or MOST_FRAMES, MOST_FRAMES if videos else 1))
    return {name: finite_scores(reward, frames, prompts, image_frames) for name, reward in rewards.items()}


def finite_scores(
    reward: Reward, frames: Sequence[np.ndarray], prompts: Sequence[str], image_frames: int | None = None
) -> list[float]:
    """One reward's scores of frames uint8 (H, W, 3), one per prompt.

    Raises:
        ValueError: if one is NaN or infinite.
    """
    scores = score_clip(reward, frames, prompts, image_frames)
    told = f"{reward.info.name} gives {scores.tolist()}"
    return check_finite(scores, told, "it needs more precision, such as --dtype fp32").tolist()


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
