"""The embedded family's vocabulary and text tower: a CLIP trained on rendered clips, of which the text half ships.

The vision half sees four frames of a clip at once, so that the words for motion have a meaning.
"""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from ....core.networks.config import TextConfig
from ....core.networks.text import TextEncoder
from ....core.networks.tokenizer import packaged_vocabulary, read_merges
from ...training.trainer import Trainer, TrainerConfig, seeded
from ..world.captions import all_words
from ..world.dataset import render_clip
from ..world.scene import COLORS, WORLD

SEEN_FRAMES = (0, 2, 5, 7)
# Share of batches with clips of one colour: colour is learnt first and would do to tell most clips of a mixed batch
# apart, so that the words for shape and motion would never matter.
ONE_COLOR = 0.6
MAX_LOGIT_SCALE = 4.6052  # exp = 100, as in CLIP


def write_merges(path: Path) -> int:
    """Write the family's BPE merges: those of CLIP's list that spell the world's words, in CLIP's order.

    Every known word is then one token, as in CLIP, and any other text falls back to pieces and bytes.

    Returns:
        The vocabulary size: two ids per byte, one per merge, and the two special tokens.
    """
    ranks = {pair: rank for rank, pair in enumerate(read_merges(packaged_vocabulary()))}
    used = {pair for word in all_words() for pair in _merges_of(word.lower(), ranks)}
    merges = sorted(used, key=ranks.__getitem__)
    lines = ["#version: t2v-turbo shapes"] + [" ".join(pair) for pair in merges]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a time stamp, so that the same words give the same file.
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    return 512 + len(merges) + 2


def _merges_of(word: str, ranks: dict[tuple[str, str], int]) -> list[tuple[str, str]]:
    """The merges that byte-pair encoding applies to ``word``."""
    symbols, applied = [*word[:-1], word[-1] + "</w>"], []
    while True:
        pairs = [pair for pair in pairwise(symbols) if pair in ranks]
        if not pairs:
            return applied
        best = min(pairs, key=ranks.__getitem__)
        applied.append(best)
        i = 0
        while i < len(symbols) - 1:
            if (symbols[i], symbols[i + 1]) == best:
                symbols[i : i + 2] = ["".join(best)]
            i += 1


class ClipTower(nn.Sequential):
    """The vision half: a small convolutional network, four frames (B, 12, 64, 64) in -1..1 -> features (B, E)."""

    def __init__(self, embed_dim: int, widths: tuple[int, ...] = (32, 64, 128, 128)):
        layers, channels, size = [], 3 * len(SEEN_FRAMES), WORLD
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, 2, 1), nn.GroupNorm(8, width), nn.SiLU()]
            channels, size = width, size // 2
        # Flattened, not averaged: where a shape is in each frame tells how it moves.
        super().__init__(*layers, nn.Flatten(), nn.Linear(channels * size**2, embed_dim))


class ContrastiveLoss(nn.Module):
    """CLIP's symmetric cross-entropy between captions and clips."""

    def __init__(self, text: TextEncoder):
        super().__init__()
        self.text = text
        self.vision = ClipTower(text.config.embed_dim)

    def forward(self, tokens: Tensor, frames: Tensor) -> dict[str, Tensor]:
        """tokens (B, L), frames (B, 12, H, W) in -1..1."""
        text = self.text.pooled(tokens).float()
        image = F.normalize(self.vision(frames).float(), dim=-1)
        logits = self.text.tower.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp() * text @ image.T
        rows = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
        return {"loss": loss, "accuracy": (logits.argmax(-1) == rows).float().mean()}


def train(
    text_config: TextConfig, merges: Path, config: TrainerConfig, folder: Path, clips: int = 12_000
) -> TextEncoder:
    """Train from scratch (or resume) in ``folder`` and return the averaged text tower."""
    with seeded(config.seed):
        model = ContrastiveLoss(TextEncoder(text_config, merges))
    seen = np.empty((clips, len(SEEN_FRAMES), WORLD, WORLD, 3), np.uint8)
    captions: list[str] = []
    of_color: dict[str, list[int]] = {color: [] for color in COLORS}
    for i in tqdm(range(clips), desc="clips", unit="clip"):
        clip = render_clip(config.seed + 1, i, ("short", "dense")[i % 2])
        seen[i] = clip.frames[list(SEEN_FRAMES)]
        captions += [clip.short_caption, clip.dense_caption]
        of_color[clip.scene.color].append(i)
    tokens = model.text.tokenize(captions).unflatten(0, (clips, 2))  # (clips, 2, L)
    one_color = [torch.tensor(rows) for rows in of_color.values() if rows]

    def draw(generator: torch.Generator) -> Tensor:
        """The clips of a batch: of one colour, or any."""
        pool = torch.arange(clips)
        if torch.rand((), generator=generator) < ONE_COLOR:
            pool = one_color[int(torch.randint(len(one_color), (), generator=generator))]
        return pool[torch.randint(len(pool), (config.batch_size,), generator=generator)]

    def losses(prepared: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = draw(generator)
        which = torch.randint(2, (config.batch_size,), generator=generator)
        frames = torch.from_numpy(seen[rows.numpy()]).permute(0, 1, 4, 2, 3).flatten(1, 2).float() / 127.5 - 1
        return prepared(tokens[rows, which].to(trainer.device), frames.to(trainer.device))

    trainer = Trainer(config, model, losses, folder, title="text tower")
    return trainer.run().text
