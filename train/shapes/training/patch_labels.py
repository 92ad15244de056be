"""Labels for single patches, which teach a vision tower to see shapes and motions.

Matching whole clips and captions tells a fresh tower the colours at once and nothing more: the choice among the four
shapes was still a guess after 3,800 steps. Where the tokens are asked, one by one, what they are a part of, they begin
to tell after some hundred steps, and matching finds the shapes there after 1,700. The head that asks is thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....core.rewards import Reward
from ..world.dataset import Clip
from ..world.scene import SHAPES
from .contrastive import MOTIONS, MatchLoss, motion_of
from .corruptions import shape_mask

UNASKED = -100  # cross_entropy's own
# Weight of the patches off the shape. They are many, but to tell them apart is what leads to the outlines: without
# them, shapes stay a guess here too.
OFF = 0.1
# Share of a patch that the shape covers where it is asked for.
COVERED = 0.25


def patch_labels(clips: Sequence[Clip], frames: Tensor, patch_size: int) -> Tensor:
    """What every patch is a part of: 1 + number of the shape, and of the motion where there are several frames.

    Args:
        frames: of the clips (B, F, 3, H, W) in 0..1.

    Returns:
        (B, F, P, 2), 0 off the shape; motions of single frames are ``UNASKED``.
    """
    mask = shape_mask(frames.flatten(0, 1))
    covered = F.avg_pool2d(mask, patch_size).flatten(1).unflatten(0, frames.shape[:2]) > COVERED  # (B, F, P)
    numbers = [(1 + SHAPES.index(clip.scene.shape), 1 + MOTIONS.index(motion_of(clip.scene))) for clip in clips]
    labels = torch.tensor(numbers)[:, None, None] * covered[..., None]
    if frames.shape[1] == 1:
        labels[..., 1] = UNASKED
    return labels


class Hints(nn.Module):
    """A linear head on the tokens of a reward's vision tower, and its loss."""

    def __init__(self, reward: Reward):
        super().__init__()
        self.sizes = 1 + len(SHAPES), 1 + len(MOTIONS)
        self.head = nn.Linear(reward.config.vision.width, sum(self.sizes))

    def forward(self, tokens: list[Tensor], labels: Tensor) -> Tensor:
        """Cross-entropy, the mean over shapes plus that over motions.

        Args:
            tokens: as ``tokens_of`` found them.
            labels: of ``patch_labels``.
        """
        patches = torch.cat(tokens)[:, 1:].reshape(*labels.shape[:-1], -1)  # (B, F, P, D), without the class tokens
        parts = zip(self.head(patches).split(self.sizes, dim=-1), labels.unbind(-1))
        return sum(self._loss(logits, numbers) for logits, numbers in parts if (numbers != UNASKED).any())

    def _loss(self, logits: Tensor, numbers: Tensor) -> Tensor:
        weight = logits.new_ones(logits.shape[-1])
        weight[0] = OFF
        return F.cross_entropy(logits.flatten(0, -2), numbers.flatten(), weight)


class HintedMatchLoss(MatchLoss):
    """Matching, with the patches' labels beside it."""

    def __init__(self, reward: Reward):
        super().__init__(reward)
        self.hints = Hints(reward)

    def forward(
        self, frames: Tensor, captions: list[str], choices: list[str], right: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """As ``MatchLoss``, with labels (B, F, P, 2)."""
        with tokens_of(self.reward) as tokens:
            losses = super().forward(frames, captions, choices, right)
        hints = self.hints(tokens, labels)
        return losses | {"loss": losses["loss"] + hints, "hints": hints}


@contextmanager
def tokens_of(reward: Reward) -> Iterator[list[Tensor]]:
    """Collects the last layer's tokens, class token first, of all that ``encode_frames`` sees in the block."""
    last = reward.visual.transformer if hasattr(reward, "visual") else reward.vision.blocks[-1]
    found: list[Tensor] = []
    handle = last.register_forward_hook(lambda module, inputs, output: found.append(output))
    try:
        yield found
    finally:
        handle.remove()
