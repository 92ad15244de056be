"""What the reward nodes do: load reward models, score clips frame by frame, and tell of it.

Images are (F, H, W, 3) in 0..1; the core's frames are (B, F, 3, H, W).
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core.families import SHAPES
from ...core.rewards import REWARDS, Reward, load_reward, reward_path
from ...core.rewards.base import checked_frames
from ...core.rewards.scoring import check_finite
from ...core.tables import markdown
from ..host import host
from ..inputs import EMBEDDED_REWARDS, PUBLISHED_MIXTURE

# Frames that image rewards are given at once; Cancel is heard in between.
CHUNK = 16


class LoadedReward(NamedTuple):
    """A reward model, what moves it between devices, and its weight in the sum."""

    network: Reward
    patcher: Any
    weight: float


# What flows between the nodes: one reward, or several by name.
Rewards = dict[str, LoadedReward]
# A clip's scores by the reward's name, one for each of its frames (F,); a video reward's are all the same.
FrameScores = dict[str, Tensor]


# --- loading ----------


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


# --- scoring ----------


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


# --- choosing ----------


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


# --- telling ----------


def titles(rewards: Rewards) -> dict[str, str]:
    return {name: reward.network.info.name for name, reward in rewards.items()}


def score_table(rewards: Rewards, scores: FrameScores, prompt: str) -> str:
    """A clip's scores as Markdown, with a note for each reward that could not read the prompt at once."""
    rows = [["reward", "score", "weight", "unit"]]
    for name, reward in rewards.items():
        info = reward.network.info
        rows.append([info.name, f"{scores[name].mean():.4f}", f"{reward.weight:g}", info.unit])
    rows.append(["**weighted sum**", f"**{total_score(rewards, scores):.4f}**", "", ""])
    notes = [note for reward in rewards.values() if (note := long_prompt_note(reward.network, prompt))]
    return "\n".join([markdown(rows), *([""] if notes else []), *notes])


def long_prompt_note(reward: Reward, prompt: str) -> str:
    """How a prompt beyond the reward's limit was read; "" for one within it."""
    needed, info = reward.count_tokens(prompt), reward.info
    if needed <= info.text_limit:
        return ""
    parts = len(reward.segments(prompt))
    how = "cut off there" if parts == 1 else f"scored in {parts} parts, whose mean counts"
    return f"- {info.name} reads {info.text_limit} tokens: the prompt of {needed} was {how}."


def best_table(rewards: Rewards, scores: list[FrameScores], best: int) -> str:
    """The clips' scores as Markdown, the best one in bold."""
    names = [f"{title} × {rewards[name].weight:g}" for name, title in titles(rewards).items()]
    rows = [["clip", "weighted sum", *names]]
    for i, clip in enumerate(scores):
        values = [total_score(rewards, clip), *(float(clip[name].mean()) for name in rewards)]
        cells = [str(i), *(f"{value:.4f}" for value in values)]
        rows.append([f"**{cell}**" for cell in cells] if i == best else cells)
    return markdown(rows)
