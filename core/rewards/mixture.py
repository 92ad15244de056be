"""Several rewards, weighted and summed (Eq. 11), on frames or on the latents of a network in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .base import Reward
from .registry import PAPER_WEIGHTS

Decode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class MixtureScore:
    """Scores of a batch.

    Attributes:
        raw: each reward's score (B,), in its own unit.
        weighted: the same times its weight.
    """

    raw: dict[str, Tensor]
    weighted: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """(B,): the sum of the weighted scores, J. The training loss subtracts its mean."""
        return torch.stack(list(self.weighted.values())).sum(0)

    def log(self) -> dict[str, Tensor]:
        """Batch means, scalars without graph: ``reward/<name>``, ``weighted_reward/<name>`` and ``…/total``."""
        weighted = self.weighted | {"total": self.total}
        means = {f"reward/{name}": score.detach().mean() for name, score in self.raw.items()}
        return means | {f"weighted_reward/{name}": score.detach().mean() for name, score in weighted.items()}


class RewardMixture:
    """A weighted sum of rewards.

    Args:
        rewards: the models, by name.
        weights: their weights, by the same names; 0 = scored for the log alone, without gradient.
        image_frames: how many random frames the image rewards see in ``score_latents``.

    Raises:
        ValueError: if there is no reward, the names differ, a weight is not finite, or ``image_frames`` < 1.
    """

    def __init__(
        self, rewards: Mapping[str, Reward], weights: Mapping[str, float] = PAPER_WEIGHTS, image_frames: int = 2
    ):
        if not rewards or set(rewards) != set(weights):
            raise ValueError(f"weights for {sorted(weights)}, rewards {sorted(rewards)}: the same names are needed")
        wrong = {name: weight for name, weight in weights.items() if not math.isfinite(weight)}
        if wrong:
            raise ValueError(f"weights {wrong} are not finite numbers")
        if image_frames < 1:
            raise ValueError(f"image_frames={image_frames}: at least 1 is needed")
        self.rewards, self.weights, self.image_frames = dict(rewards), dict(weights), image_frames

    def score(self, frames: Tensor, prompts: list[str]) -> MixtureScore:
        """Score clips (B, F, 3, H, W) in 0..1: image rewards on all frames. See ``Reward.score``."""
        return self._score(lambda _: frames, prompts)

    def score_latents(
        self,
        latents: Tensor,
        prompts: list[str],
        decode: Decode,
        generator: torch.Generator | None = None,
        chunk: int = 1,
    ) -> MixtureScore:
        """Score latents, decoding only the frames that some reward looks at, each once.

        Args:
            latents: (B, 4, F, h, w), in the graph of the network in training.
            prompts: B captions.
            decode: latents (B, 4, K, h, w) -> frames (B, K, 3, H, W) in 0..1, such as ``VideoVAE.decode``.
            generator: draws the image rewards' frames, on the CPU; the same for the whole batch.
            chunk: frames decoded at once. Their activations are computed again in the backward pass, so that the
                memory is that of one chunk.
        """
        total = latents.shape[2]
        image = torch.randperm(total, generator=generator)[: self.image_frames].sort().values.tolist()
        chosen = {
            name: image if reward.info.kind == "image" else reward.chosen_frames(total)
            for name, reward in self.rewards.items()
        }
        needed = sorted({index for indices in chosen.values() for index in indices})
        frames = decode_frames(decode, latents, needed, chunk)
        position = {index: i for i, index in enumerate(needed)}
        return self._score(lambda name: frames[:, [position[index] for index in chosen[name]]], prompts)

    def _score(self, frames_of: Callable[[str], Tensor], prompts: list[str]) -> MixtureScore:
        raw = {}
        for name, reward in self.rewards.items():
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.weights[name] != 0):
                raw[name] = reward.score(frames_of(name), prompts)
        return MixtureScore(raw, {name: self.weights[name] * score for name, score in raw.items()})

    def offload(self) -> None:
        """Move all models to the CPU until they are next used. Call it after the backward pass."""
        for reward in self.rewards.values():
            reward.offload()

    def enable_checkpointing(self) -> None:
        """Save memory in the backward pass through the models, at the cost of time."""
        for reward in self.rewards.values():
            reward.enable_checkpointing()


def decode_frames(decode: Decode, latents: Tensor, indices: list[int], chunk: int) -> Tensor:
    """Decode frames ``indices`` of latents (B, 4, F, h, w) -> (B, K, 3, H, W), ``chunk`` at a time, checkpointed."""
    run = partial(checkpoint, decode, use_reentrant=False) if latents.requires_grad else decode
    return torch.cat([run(part) for part in latents[:, :, indices].split(chunk, dim=2)], dim=1)
