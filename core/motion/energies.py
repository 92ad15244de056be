"""Energies of motion guidance: how far a clip's temporal attention is from a reference's (Eq. 5 to 7).

An energy is a callable with an attribute ``keep``; a new one is a class here, or anywhere, and a line in ``ENERGIES``.
Where the name of an energy is asked for, the object itself may be given too.

Shapes: attention of one layer (B, R, F, F) with R = H·W·heads rows of queries per frame; its rows sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TopEntries:
    """The largest entries of every row of a reference's attention, largest first; constants, without a graph."""

    index: Tensor  # frame attended to (B, R, F, k), integers
    value: Tensor  # probability (B, R, F, k)

    @classmethod
    def of(cls, attention: Tensor, keep: int | None = 1) -> TopEntries:
        """The ``keep`` largest entries of every row of (B, R, F, F), None = all.

        Of equal entries the later frame comes first, on every device, as the authors' sort has it.

        Raises:
            ValueError: if ``keep`` is outside 1..F.
        """
        frames = attention.shape[-1]
        keep = frames if keep is None else keep
        if not 1 <= keep <= frames:
            raise ValueError(f"keep={keep} entries of a row of attention over {frames} frames: use 1 to {frames}")
        ordered = attention.detach().flip(-1).sort(dim=-1, descending=True, stable=True)
        index = frames - 1 - ordered.indices[..., :keep]
        return cls(index.to(torch.uint8 if frames <= 256 else torch.int32), ordered.values[..., :keep].contiguous())

    @property
    def kept(self) -> int:
        """Number of entries kept per row, k."""
        return self.index.shape[-1]

    def top(self, keep: int | None) -> TopEntries:
        """The first ``keep`` of the kept entries; None = all of a row, which then must have been kept.

        Raises:
            ValueError: if fewer were kept.
        """
        frames = self.index.shape[-2]
        wanted = frames if keep is None else keep
        if wanted > self.kept:
            raise ValueError(
                f"the energy compares {wanted} of {frames} entries per row of attention, the reference keeps "
                f"{self.kept}: make the reference with keep={wanted}, or choose another energy"
            )
        return TopEntries(self.index[..., :wanted], self.value[..., :wanted])

    def rows(self, start: int, stop: int) -> TopEntries:
        """Samples ``start`` to ``stop`` of the batch; a reference of one sample serves all."""
        if len(self.index) == 1:
            return self
        return TopEntries(self.index[start:stop], self.value[start:stop])

    def to(self, device: str | torch.device, dtype: torch.dtype) -> TopEntries:
        """Elsewhere, with the probabilities in another precision."""
        return TopEntries(self.index.to(device), self.value.to(device, dtype))

    def indexes(self, frames: int) -> bool:
        """Whether this is what a clip of so many frames has: entries out of a file may be anything."""
        index, value = self.index, self.value
        return (
            index.ndim == 4
            and index.shape == value.shape
            and index.shape[0] == 1
            and index.shape[2] == frames
            and 1 <= index.shape[3] <= frames
            and index.numel() > 0
            and not index.is_floating_point()
            and value.is_floating_point()
            and bool((index.long() >= 0).all() and (index.long() < frames).all() and value.isfinite().all())
        )

    def differences(self, attention: Tensor) -> Tensor:
        """M ∘ (A − A_ref) without its zeros: (B, R, F, F) -> (B, R, F, k), at least fp32, for the squares are small."""
        index = self.index.long().expand(len(attention), -1, -1, -1)
        dtype = torch.promote_types(attention.dtype, torch.float32)
        return attention.to(dtype).gather(-1, index) - self.value.to(dtype)


# By name of the layer.
Attention = dict[str, Tensor]
Reference = dict[str, TopEntries]


class Energy(Protocol):
    """What an energy must offer; low = the motion of the reference."""

    keep: int | None  # entries of a row of the reference that it compares, None = all

    def __call__(self, attention: Attention, reference: Reference) -> Tensor:
        """Energy per sample (B,), differentiable with respect to the attention; samples must not mix."""
        ...


def squares(attention: Attention, reference: Reference, keep: int | None) -> list[Tensor]:
    """Squared differences of the ``keep`` largest entries, per layer (B, R·F·keep)."""
    return [reference[name].top(keep).differences(found).square().flatten(1) for name, found in attention.items()]


@dataclass(frozen=True)
class MeanSquares:
    """The released model's energy: squared differences, their mean over a layer and then over the layers.

    The paper's lambda of 500 belongs to this one, at 16 frames of 320x512: being a mean, its gradient at one latent
    shrinks as clips grow, and a clip of fewer latents wants a smaller lambda in proportion.
    """

    keep: int | None = 1

    def __call__(self, attention: Attention, reference: Reference) -> Tensor:
        layers = squares(attention, reference, self.keep)
        return torch.stack([layer.mean(dim=1) for layer in layers]).mean(dim=0)


@dataclass(frozen=True)
class SquaredNorm:
    """The paper's energy, ‖M ∘ (A_ref − A)‖² (Eq. 6): a sum over all rows and layers.

    Its gradient at one latent hardly depends on the size of a clip; it is far larger than the mean's, so lambda is far
    smaller (below 1).
    """

    keep: int | None = 1

    def __call__(self, attention: Attention, reference: Reference) -> Tensor:
        layers = squares(attention, reference, self.keep)
        return torch.stack([layer.sum(dim=1) for layer in layers]).sum(dim=0)


ENERGIES: dict[str, Energy] = {
    "mean": MeanSquares(),
    "squared-norm": SquaredNorm(),
    # Without the mask of Eq. 7: every entry counts.
    "mean-unmasked": MeanSquares(keep=None),
}


def find_energy(energy: str | Energy) -> Energy:
    """An energy by name.

    Raises:
        ValueError: if there is none of that name.
    """
    if not isinstance(energy, str):
        return energy
    if energy not in ENERGIES:
        raise ValueError(f"unknown energy '{energy}'; known are {', '.join(ENERGIES)}")
    return ENERGIES[energy]
