"""How well reward models tell right from wrong on held-out clips."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, islice, product

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...core.networks.vae import VideoVAE
from ...core.rewards import Reward
from ...core.tables import markdown
from ...core.video import from_uint8
from .evaluation import WORDS
from .training.contrastive import draw_clip
from .training.corruptions import damages
from .world.dataset import Clip
from .world.scene import SPEEDS

# Captions that compete in retrieval.
CANDIDATES = 64
BATCH = 16


@torch.no_grad()
def evaluate_reward(reward: Reward, vae: VideoVAE, clips: int = 256, seed: int = 999) -> dict[str, float]:
    """Rates in 0..1, by measure. Chance is 1/64 for retrieval and 1/2 elsewhere.

    - "caption of clip", "clip of caption": the own dense caption or clip scores highest among 64.
    - "color", "shape", "direction", "speed": "a COLOR SHAPE moves DIRECTION SPEED" outscores the same sentence with a
      wrong word in that place.
    - "prefers … ": with its short caption the clean clip outscores itself with every frame damaged.

    Args:
        vae: decodes the damages of latents.
        clips: clips of moving shapes, half of either style; the preferences use the same scenes without noise.
        seed: of a data set that no reward was trained on.
    """
    seen = list(islice(filter(moves, (draw_clip(seed, i) for i in count())), clips))
    features = clip_features(reward, frames_of(seen), "clips")
    candidates = seen[:CANDIDATES]
    found = features[: len(candidates)] @ _text_features(reward, [clip.dense_caption for clip in candidates]).T
    own = torch.arange(len(candidates))
    return {
        "caption of clip": (found.argmax(1) == own).double().mean().item(),
        "clip of caption": (found.argmax(0) == own).double().mean().item(),
        **attribute_accuracy(reward, features, seen),
        **preference_accuracy(reward, vae, clips, seed),
    }


def attribute_accuracy(reward: Reward, features: Tensor, clips: Sequence[Clip]) -> dict[str, float]:
    """Share of wrong words, by attribute, with which a sentence scores lower than with the right one.

    Args:
        features: of the clips (N, E).
        clips: of moving shapes.
    """
    phrases = [f"a {color} {shape} moves {way} {pace}" for color, shape, way, pace in product(*WORDS.values())]
    scores = (features @ _text_features(reward, phrases).T).unflatten(1, [len(words) for words in WORDS.values()])
    rates = {}
    for axis, name in enumerate(WORDS):
        won = []
        for clip, score in zip(clips, scores):
            true = _place(clip)
            row = score[(*true[:axis], slice(None), *true[axis + 1 :])]  # all words in this place
            won.append((row < score[true]).double().sum() / (len(row) - 1))
        rates[name] = torch.stack(won).mean().item()
    return rates


def preference_accuracy(reward: Reward, vae: VideoVAE, clips: int, seed: int) -> dict[str, float]:
    """Share of clips, by damage, whose clean frames score higher than the same frames damaged."""
    clean = [draw_clip(seed, i, clean=True) for i in range(clips)]
    frames, text = frames_of(clean), _text_features(reward, [clip.short_caption for clip in clean])
    before = (clip_features(reward, frames, "clean") * text).sum(-1)
    rates = {}
    for name, damage in damages(vae).items():
        generator = torch.Generator().manual_seed(seed)
        bad = torch.cat([damage(part, generator) for part in frames.flatten(0, 1).split(BATCH)])
        after = (clip_features(reward, bad.unflatten(0, frames.shape[:2]), name) * text).sum(-1)
        rates[f"prefers clean to {name}"] = (before > after).double().mean().item()
    return rates


def moves(clip: Clip) -> bool:
    return clip.scene.direction != "still"


def _place(clip: Clip) -> tuple[int, ...]:
    """Where the clip's own words are in ``WORDS``."""
    paces = dict(zip(SPEEDS, WORDS["speed"]))
    words = clip.scene.expected() | {"speed": paces[clip.scene.speed_name]}
    return tuple(options.index(words[name]) for name, options in WORDS.items())


def frames_of(clips: Sequence[Clip]) -> Tensor:
    return torch.stack([from_uint8(clip.frames) for clip in clips])  # (N, F, 3, H, W)


def clip_features(reward: Reward, frames: Tensor, title: str) -> Tensor:
    """Frames (N, F, 3, H, W) -> (N, E), such that the product with a caption's features is the score."""
    parts = tqdm(frames.split(BATCH), desc=f"{reward.info.name}: {title}", unit="batch", leave=False)
    return torch.cat([reward.encode_frames(part).mean(1) for part in parts])


def _text_features(reward: Reward, captions: Sequence[str]) -> Tensor:
    """Captions -> (N, E), the mean over the segments of each."""
    return torch.stack([reward.encode_text(reward.segments(caption)).mean(0) for caption in captions])


def accuracy_table(rates: dict[str, dict[str, float]]) -> str:
    """Rates by reward and measure as a Markdown table, in per cent."""
    table = [["measure", *rates]]
    for measure in next(iter(rates.values())):
        table.append([measure, *(f"{100 * row[measure]:.1f}" for row in rates.values())])
    return markdown(table)
