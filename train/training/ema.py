"""The exponential moving average of a network's weights: what is exported, and the target of the distillation."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

# Of the warm-up: after n updates the average spans about the last n^0.75.
WARMUP_POWER = 0.75


class EMA(nn.Module):
    """A copy of a network that follows it as an exponential moving average.

    Args:
        network: where it starts; copied.
        decay: of the average, 0..1; 0 = an exact copy.
        warmup: begin with a lower decay, min(decay, 1 − (1 + updates)^(−3/4)), so that the first weights, which are
            bad, are soon forgotten; the first update copies.
    """

    def __init__(self, network: nn.Module, decay: float, warmup: bool = False):
        super().__init__()
        self.network = deepcopy(network).requires_grad_(False).eval()
        self.full_decay, self.warmup, self.updates = decay, warmup, 0
        self._trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]

    @property
    def decay(self) -> float:
        """Of the next update."""
        warm = 1 - (1 + self.updates) ** -WARMUP_POWER
        return min(self.full_decay, warm) if self.warmup else self.full_decay

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Move towards ``model``, which has the same parameters."""
        theirs = dict(model.named_parameters())
        own = list(self.tensors().values())
        torch._foreach_lerp_(own, [theirs[name] for name in self._trained], 1 - self.decay)
        self.updates += 1

    def tensors(self) -> dict[str, Tensor]:
        """What is averaged, by name: all that is trained."""
        own = dict(self.named_parameters())
        return {f"network.{name}": own[f"network.{name}"] for name in self._trained}

    @torch.no_grad()
    def load(self, saved: dict[str, Tensor], updates: int) -> None:
        """Go on from ``tensors`` of an average that had so many updates.

        Raises:
            KeyError, ValueError, RuntimeError: if they are of another network.
        """
        own = self.tensors()
        if "00000" in saved:  # older runs numbered them
            saved = dict(zip(own, (saved[number] for number in sorted(saved)), strict=True))
        for name, parameter in own.items():
            parameter.copy_(saved[name])
        self.updates = updates
