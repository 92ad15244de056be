"""The embedded family's vocabulary and text tower: a CLIP trained on rendered clips, of which the text half ships.

The vision half sees a film strip, four frames of a clip in one picture, so that the words for motion have a meaning.
"""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...core.config import TextConfig
from ...core.text import TextEncoder
from ..trainer import Trainer, TrainerConfig
from .captions import all_words
from .world import WORLD, render_clip

STRIP_FRAMES = (0, 2, 5, 7)
MAX_LOGIT_SCALE = 4.6052  # exp = 100, as in CLIP


def write_merges(path: Path) -> int:
    """Write the family's BPE merges: those of CLIP's list that spell the world's words, in CLIP's order.

    Every known word is then one token, as in CLIP, and any other text falls back to pieces and bytes.

    Returns:
        The vocabulary size: two ids per byte, one per merge, and the two special tokens.
    """
    tokenizer = SimpleTokenizer()
    used = {pair for word in all_words() for pair in _merges_of(word.lower(), tokenizer.bpe_ranks)}
    merges = sorted(used, key=tokenizer.bpe_ranks.__getitem__)
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


def film_strip(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 (F, 64, 64, 3) -> one picture of four half-size frames, uint8 (64, 64, 3)."""
    half = frames[list(STRIP_FRAMES), ::2, ::2]
    return np.concatenate([np.concatenate(half[:2], axis=1), np.concatenate(half[2:], axis=1)])


class ContrastiveLoss(nn.Module):
    """CLIP's symmetric cross-entropy between captions and film strips."""

    def __init__(self, text: TextEncoder, width: int = 128, layers: int = 3):
        super().__init__()
        self.text = text
        self.vision = VisionTransformer(
            image_size=WORLD, patch_size=8, width=width, layers=layers, heads=4, mlp_ratio=4.0,
            output_dim=text.config.embed_dim,
        )  # fmt: skip

    def forward(self, tokens: Tensor, pictures: Tensor) -> dict[str, Tensor]:
        """tokens (B, L), pictures (B, 3, H, W) in -1..1."""
        text = self.text.pooled(tokens).float()
        image = F.normalize(self.vision(pictures).float(), dim=-1)
        logits = self.text.tower.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp() * text @ image.T
        rows = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
        return {"loss": loss, "accuracy": (logits.argmax(-1) == rows).float().mean()}


def train(
    text_config: TextConfig, merges: Path, config: TrainerConfig, folder: Path, clips: int = 12_000
) -> TextEncoder:
    """Train from scratch (or resume) in ``folder`` and return the averaged text tower."""
    torch.manual_seed(config.seed)
    text = TextEncoder(text_config, merges)
    pictures = np.empty((clips, WORLD, WORLD, 3), np.uint8)
    captions: list[str] = []
    for i in tqdm(range(clips), desc="film strips", unit="clip"):
        clip = render_clip(config.seed + 1, i, ("short", "dense")[i % 2])
        pictures[i] = film_strip(clip.frames)
        captions += [clip.short_caption, clip.dense_caption]
    tokens = text.tokenize(captions).unflatten(0, (clips, 2))  # (clips, 2, L)

    def losses(prepared: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(clips, (config.batch_size,), generator=generator)
        which = torch.randint(2, (config.batch_size,), generator=generator)
        batch = torch.from_numpy(pictures[rows.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
        return prepared(tokens[rows, which].to(trainer.device), batch.to(trainer.device))

    trainer = Trainer(config, ContrastiveLoss(text), losses, folder, title="text tower")
    return trainer.run().text
