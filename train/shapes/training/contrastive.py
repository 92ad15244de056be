"""Clips and captions that a reward model learns to match, and the two losses: CLIP's and a preference model's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....core.networks.vae import VideoVAE
from ....core.rewards import Reward
from ....core.rewards.long_captions import SENTENCE_END
from ....core.video import from_uint8
from ..world.captions import dense_caption, short_caption
from ..world.dataset import Clip
from ..world.rendering import render
from ..world.scene import COLORS, MOVES, SHAPES, SPEEDS, Scene, sample_scene
from .corruptions import noised, resampled
from .text_tower import MAX_LOGIT_SCALE

# Share of captions that are short; the others are a few sentences of a dense one, as rewards see long captions.
SHORT_CAPTIONS = 0.5
# Frames of a batch that are seen through the autoencoder, as those of a sampler are.
DECODED_FRAMES = 8
START_SCALE = math.log(1 / 0.07)  # CLIP's
MOTIONS = (("still", None), *product(MOVES, SPEEDS))


def draw_clip(seed: int, index: int, color: str | None = None, clean: bool = False) -> Clip:
    """Clip ``index`` of the rewards' data set, of either style; its colour may be given, its quality made clean."""
    rng = np.random.default_rng((seed, index, 88))  # shares no clips with the data sets of `render_clip`
    scene = sample_scene(rng, ("short", "dense")[index % 2])
    scene = replace(scene, color=color or scene.color)
    scene = scene.clean() if clean else scene
    return Clip(scene, render(scene, rng=rng), short_caption(scene, rng), dense_caption(scene, rng))


def some_caption(clip: Clip, rng: np.random.Generator) -> str:
    """The short caption, or two or three neighbouring sentences of the dense one."""
    if rng.random() < SHORT_CAPTIONS:
        return clip.short_caption
    sentences = SENTENCE_END.split(clip.dense_caption)
    start = rng.integers(len(sentences) - 1)
    return " ".join(sentences[start : start + rng.integers(2, 4)])


def alternatives(scenes: Sequence[Scene], motion: bool, rng: np.random.Generator) -> tuple[list[str], Tensor]:
    """One short caption for every combination of attributes, alike in all else, and which is the right one.

    Args:
        scenes: their colours and all shapes are combined.
        motion: whether all motions are combined too; otherwise every caption tells the first scene's.

    Returns:
        C captions; the index of each scene's own (B,).
    """
    motions = MOTIONS if motion else (motion_of(scenes[0]),)
    colors = sorted({scene.color for scene in scenes})
    number = {combination: i for i, combination in enumerate(product(colors, SHAPES, motions))}
    seed = rng.integers(2**32)

    def caption(color: str, shape: str, direction: str, speed: str | None) -> str:
        scene = replace(scenes[0], color=color, shape=shape, direction=direction, speed=SPEEDS.get(speed, 0.0))
        return short_caption(scene, np.random.default_rng(seed))

    captions = [caption(color, shape, *how) for color, shape, how in number]
    right = [number[scene.color, scene.shape, motion_of(scene) if motion else motions[0]] for scene in scenes]
    return captions, torch.tensor(right)


def motion_of(scene: Scene) -> tuple[str, str | None]:
    return scene.direction, scene.speed_name


def draw_batch(
    size: int, clips: int, seed: int, one_color: bool, rng: np.random.Generator, clean: bool = False
) -> list[Clip]:
    """Random clips out of the first ``clips`` of the data set ``seed``, of one colour or any."""
    color = COLORS[rng.integers(len(COLORS))] if one_color else None
    return [draw_clip(seed, int(index), color, clean) for index in rng.integers(clips, size=size)]


def views(
    clips: Sequence[Clip], single: bool, vae: VideoVAE, generator: torch.Generator, latent_noise: float = 0.0
) -> Tensor:
    """Frames (B, F, 3, H, W) in 0..1, some through the autoencoder.

    Args:
        single: one random frame of each clip.
        latent_noise: highest deviation of the noise in the latents, below 1.
    """
    frames = torch.stack([from_uint8(clip.frames) for clip in clips])  # (B, F, 3, H, W)
    if single:
        rows = torch.arange(len(frames))
        frames = frames[rows, torch.randint(frames.shape[1], rows.shape, generator=generator)][:, None]
    decoded = frames[: DECODED_FRAMES // frames.shape[1]]
    change = partial(noised, low=0.0, high=latent_noise)
    decoded.copy_(resampled(vae, change, decoded.flatten(0, 1), generator).unflatten(0, decoded.shape[:2]))
    return frames


class MatchLoss(nn.Module):
    """CLIP's symmetric cross-entropy within a batch, plus the choice among captions that differ by attributes.

    In a batch of random clips the colour and a few words of scenery already tell nearly all captions apart, so that
    CLIP's loss alone leaves shape and motion unheard for long; the choice asks for them.
    """

    def __init__(self, reward: Reward):
        super().__init__()
        self.reward = reward
        own = getattr(reward, "logit_scale", None)
        self.logit_scale = nn.Parameter(torch.tensor(START_SCALE)) if own is None else own

    def scale(self) -> Tensor:
        return self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()

    def choose(self, features: Tensor, choices: Tensor, right: Tensor) -> dict[str, Tensor]:
        """Features of clips (B, E) and of captions (C, E), the right caption of each clip (B,)."""
        logits = self.scale() * features @ choices.T
        return {"choice": F.cross_entropy(logits, right), "accuracy": (logits.argmax(-1) == right).float().mean()}

    def forward(self, frames: Tensor, captions: list[str], choices: list[str], right: Tensor) -> dict[str, Tensor]:
        """frames (B, F, 3, H, W) in 0..1, B captions, C alternatives, right (B,)."""
        features = self.reward.encode_frames(frames).mean(1)
        texts = self.reward.encode_text([*captions, *choices])
        logits = self.scale() * features @ texts[: len(captions)].T
        rows = torch.arange(len(logits), device=logits.device)
        contrast = (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
        choice = self.choose(features, texts[len(captions) :], right)
        return {"loss": contrast + choice["choice"], "contrast": contrast} | choice


class PreferenceLoss(MatchLoss):
    """HPS: of two pictures for one prompt the preferred one has the higher score; plus the choice of captions."""

    def forward(
        self, good: Tensor, bad: Tensor, captions: list[str], choices: list[str], right: Tensor
    ) -> dict[str, Tensor]:
        """good and bad (B, F, 3, H, W) in 0..1, their captions, C alternatives, right (B,)."""
        better, worse = self.reward.encode_frames(torch.cat([good, bad])).mean(1).chunk(2)
        texts = self.reward.encode_text([*captions, *choices])
        scores = [(features * texts[: len(captions)]).sum(-1) for features in (better, worse)]
        pairs = self.scale() * torch.stack(scores, dim=-1)
        preference = F.cross_entropy(pairs, torch.zeros_like(right))
        preferred = (pairs[:, 0] > pairs[:, 1]).float().mean()
        choice = self.choose(better, texts[len(captions) :], right)
        return {"loss": preference + choice["choice"], "preference": preference, "preferred": preferred} | choice
