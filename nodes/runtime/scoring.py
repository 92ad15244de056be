"""Score clips frame by frame.

Images are (F, H, W, 3) in 0..1; the core's frames are (B, F, 3, H, W).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.rewards import Reward
from ...core.rewards.base import checked_frames
from ...core.rewards.scoring import check_finite
from ..host import host
from .reward_loading import Rewards

# Frames that image rewards are given at once; Cancel is heard in between.
CHUNK = 16
# A clip's scores by the reward's name, one for each of its frames (F,); a video reward's are all the same.
FrameScores = dict[str, Tensor]


@torch.no_grad()
def score_clips(rewards: Rewards, clips: list[Tensor], prompts: list[str]) -> list[FrameScores]:
    """Score clips, each with its own prompt; every reward is brought to its device once.

    Args:
        clips: images (F, H, W, 3), of any number and size each. A decoder's overshoot is clamped, alpha is ignored.
        prompts: one per clip, of any length.

    Raises:
        ValueError: if a prompt is blank, images are missing, NaN, infinite or not in 0..1, or a score is no number.
    """
    refuse_blank(prompts)
    several = len(clips) > 1
    frames = [clip_frames(images, f"images of clip {i}" if several else "images") for i, images in enumerate(clips)]
    work = [
        (name, i, part)
        for name, reward in rewards.items()
        for i, clip in enumerate(frames)
        for part in views(reward.network, clip)
    ]
    parts: dict[tuple[str, int], list[Tensor]] = {}
    progress = host().progress(None, len(work), "scoring")
    for step, (name, i, part) in enumerate(work):
        # Frames as they are, and as they are scaled.
        host().load(rewards[name].patcher, 4 * part.nbytes)
        parts.setdefault((name, i), []).append(checked_scores(rewards[name].network, part, prompts[i]))
        progress({"i": step})
    return [{name: torch.cat(parts[name, i]).expand(len(clip)) for name in rewards} for i, clip in enumerate(frames)]


def refuse_blank(prompts: list[str]) -> None:
    """Raises: ValueError: for a blank prompt, with its clip's number where clips have prompts of their own."""
    own = len(set(prompts)) > 1
    for i, prompt in enumerate(prompts):
        if not prompt.strip():
            raise ValueError(f"prompt{f' of clip {i}' if own else ''}: is empty; write what the clip shall show")


def clip_frames(images: Tensor, what: str) -> Tensor:
    """Images (F, H, W, 3) -> frames (F, 3, H, W) within 0..1.

    Raises:
        ValueError: naming ``what``, for images that no reward can score.
    """
    try:
        return checked_frames(images[None, ..., :3].movedim(-1, 2))[0]
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def views(reward: Reward, frames: Tensor) -> list[Tensor]:
    """What a reward is given of a clip (F, 3, H, W), as clips of its own (B, K, 3, H, W).

    An image reward sees single frames, so that each has its score, and their mean is the clip's; a video reward sees
    the frames that it looks at.
    """
    if reward.info.kind == "image":
        return list(frames[:, None].split(CHUNK))
    return [frames[reward.chosen_frames(len(frames))][None]]


def checked_scores(reward: Reward, frames: Tensor, prompt: str) -> Tensor:
    """Scores (B,), fp32, of frames (B, K, 3, H, W), all with one prompt.

    Raises:
        ValueError: if one is NaN or infinite.
    """
    scores = reward.score(frames, [prompt] * len(frames)).float().cpu()
    told = f"reward: {reward.info.name} gives scores that are no numbers"
    return check_finite(scores, told, "choose the precision fp32 in T2V-Turbo Reward Loader")


def total_score(rewards: Rewards, scores: FrameScores) -> float:
    """The weighted sum of a clip's scores (Eq. 11)."""
    return sum(rewards[name].weight * float(values.mean()) for name, values in scores.items())


# --- several clips ----------


def separate_clips(batches: list[Tensor], frames: int) -> list[Tensor]:
    """Clips (F, H, W, 3) out of batches that hold one each, or several of ``frames`` frames, one after the other.

    Args:
        frames: 0 = every batch is one clip.

    Raises:
        ValueError: if a batch is no whole number of clips.
    """
    for images in batches:
        if frames and len(images) % frames:
            raise ValueError(
                f"frames={frames}: a batch of {len(images)} images is no whole number of such clips; set the clips' "
                "length, or 0 where every batch is one clip"
            )
    return [clip for images in batches for clip in (images.split(frames) if frames else [images])]


def prompts_for(clips: list[Tensor], prompts: list[str]) -> list[str]:
    """One prompt per clip, out of as many or one for all.

    Raises:
        ValueError: for another number.
    """
    if len(prompts) not in (1, len(clips)):
        raise ValueError(f"prompt: {len(prompts)} prompts for {len(clips)} clips; give one for all, or one for each")
    return prompts if len(prompts) == len(clips) else prompts * len(clips)
