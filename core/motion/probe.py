"""Reading temporal attention out of the UNet, and keeping a reference's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from ..networks.attention import Attention, TemporalTransformer
from ..networks.unet import UNet3D
from .energies import Reference, TopEntries


def motion_layers(unet: UNet3D) -> list[str]:
    """The layers that carry the motion: the first self-attention of every temporal transformer of the decoder.

    9 layers of VideoCrafter2, as in the released model.

    Raises:
        ValueError: if the decoder has no temporal attention.
    """
    found = unet.up.named_modules(prefix="up")
    layers = [f"{name}.blocks.0.attn1" for name, module in found if isinstance(module, TemporalTransformer)]
    if not layers:
        raise ValueError(
            f"this UNet has no temporal attention in its decoder (attention_resolutions="
            f"{unet.config.attention_resolutions}): motion guidance needs one, name other layers or take another model"
        )
    return layers


@contextmanager
def probe_attention(unet: UNet3D, layers: Sequence[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """Ask layers for their attention probabilities for the length of a ``with`` block.

    Yields a dictionary that the first forward of the block fills: layer -> (N, heads, L, M), with its graph where
    gradients are on; ``clear()`` it before another forward. The modules keep nothing. A backward pass with
    checkpointing must run inside the block, for it repeats the forward.

    Args:
        layers: names of ``Attention`` modules; None = ``motion_layers``.

    Raises:
        ValueError: if the UNet has no attention of such a name.
    """
    known = {name: module for name, module in unet.named_modules() if isinstance(module, Attention)}
    layers = motion_layers(unet) if layers is None else layers
    for name in layers:
        if name not in known:
            raise ValueError(f"this UNet has no attention layer '{name}'; it has {', '.join(known)}")
    probabilities: dict[str, Tensor] = {}
    before = {name: known[name].probe for name in layers}
    try:
        for name in layers:
            # The first forward counts: what checkpointing repeats in the backward pass must not be held on to.
            known[name].probe = partial(probabilities.setdefault, name)
        yield probabilities
    finally:
        for name in layers:
            known[name].probe = before[name]


def by_sample(probabilities: Tensor, batch: int) -> Tensor:
    """(B·H·W, heads, F, F) of a temporal layer -> (B, H·W·heads, F, F)."""
    return probabilities.unflatten(0, (batch, -1)).flatten(1, 2)


@torch.no_grad()
def read_reference(
    unet: UNet3D,
    x_ref: Tensor,
    t: Tensor,
    context: Tensor,
    keep: int | None = 1,
    fps: int | Tensor = 8,
    layers: Sequence[str] | None = None,
) -> Reference:
    """A(z_ref) and the mask of Eq. 7, layer by layer: one UNet evaluation per sample.

    Args:
        x_ref: the reference's latents (B, C, F, H, W) at timesteps ``t`` (B,).
        context: embedding (B, L, D) of the reference's own caption.
        keep: entries kept of every row of attention; None = all.
        layers: names of temporal attention layers; None = ``motion_layers``.
    """
    with probe_attention(unet, layers) as probabilities:
        unet(x_ref, t.to(x_ref.device), context, fps=fps)
    return {name: TopEntries.of(by_sample(found, len(x_ref)), keep) for name, found in probabilities.items()}
