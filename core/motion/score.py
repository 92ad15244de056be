"""Temporal attention as motion: the probe that reads it, and the score that pulls latents towards a reference's.

| here | paper |
|---|---|
| x, x_ref | z, z_ref: latents and the reference's latents at the same timestep (B, C, F, H, W) |
| attention | A(z), Eq. 5: per layer (B, R, F, F), R = H·W·heads |
| energy | G(z, z_ref, t), Eq. 6 and 7 (``energies``) |
| score | its gradient with respect to z |
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..networks.unet import LAMBDA_UNIT, UNet3D
from .energies import Energy, Reference, TopEntries, find_energy
from .probe import by_sample, probe_attention

logger = logging.getLogger(__name__)


# --- the probe ----------


# --- the score ----------


class MotionScore(NamedTuple):
    """What one forward and one backward pass give, fp32 and without a graph.

    Attributes:
        energy: per sample (B,).
        score: LAMBDA_UNIT · dE/dx (B, C, F, H, W), so that its strength is lambda / LAMBDA_UNIT, as the released
            records have it; a step against it descends.
        noise: the network's prediction at x, same shape: a by-product that spares the teacher's forward.
    """

    energy: Tensor
    score: Tensor
    noise: Tensor


def motion_score(
    unet: UNet3D,
    x: Tensor,
    t: Tensor,
    context: Tensor,
    reference: Reference,
    energy: str | Energy = "mean",
    fps: int = 8,
    chunk: int = 1,
    checkpointing: bool = True,
) -> MotionScore:
    """The motion score: gradient of the energy with respect to the latents, and to nothing else.

    Works under ``no_grad``, ``inference_mode`` and autocast as well. Weights that were made under inference mode cannot
    take part in a gradient; they are replaced in ``unet`` by plain copies, once.

    Args:
        x: latents (B, C, F, H, W) at timesteps ``t`` (B,).
        context: prompt embedding (B, L, D).
        reference: of ``read_reference`` or ``MotionPrior.at`` at the same timesteps; of one sample, or of B.
        energy: name of an energy, or an energy.
        chunk: samples per pass; memory grows with it. 1 makes the result independent of the batch, bit by bit.
        checkpointing: recompute activations in the backward pass, for a third of the memory and 1.5 × the time.

    Raises:
        ValueError: if the reference does not fit the latents or the energy.
    """
    energy = find_energy(energy)
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: at least 1 sample per pass")
    parts = []
    with input_gradients(unet, checkpointing):
        x, t, context = (plain(value).to(x.device) for value in (x, t, context))
        reference = {
            name: TopEntries(plain(top.index).to(x.device), plain(top.value).to(x.device))
            for name, top in reference.items()
        }
        for start in range(0, len(x), chunk):
            stop = start + chunk
            rows = {name: top.rows(start, stop) for name, top in reference.items()}
            parts.append(_score(unet, x[start:stop], t[start:stop], context[start:stop], rows, energy, fps))
        return MotionScore(*map(torch.cat, zip(*parts)))


def _score(
    unet: UNet3D, x: Tensor, t: Tensor, context: Tensor, reference: Reference, energy: Energy, fps: int
) -> MotionScore:
    x = x.detach().requires_grad_()
    with probe_attention(unet, list(reference)) as probabilities:
        noise = unet(x, t, context, fps=fps)
        attention = {name: by_sample(found, len(x)) for name, found in probabilities.items()}
        _check_shapes(attention, reference)
        value = energy(attention, reference)
        # Scaled before the backward pass: a mean over many entries has gradients below the range of half precision.
        (score,) = torch.autograd.grad(LAMBDA_UNIT * value.sum(), x)
    return MotionScore(value.detach(), score.float(), noise.detach().float())


def _check_shapes(attention: dict[str, Tensor], reference: Reference) -> None:
    for name, found in attention.items():
        there, here = tuple(reference[name].index.shape[:-1]), tuple(found.shape[:-1])
        if there[1:] != here[1:] or there[0] not in (1, here[0]):
            raise ValueError(
                f"the reference's attention of layer '{name}' is {there} (samples, positions × heads, frames), the "
                f"clip's {here}: make the reference from as many frames of the same size"
            )


@contextmanager
def input_gradients(unet: UNet3D, checkpointing: bool) -> Iterator[None]:
    """Gradients to inputs alone, whatever mode the caller is in; the UNet's own flags are put back."""
    with torch.inference_mode(False), torch.enable_grad():
        _replace_inference_weights(unet)
        trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        before = unet.checkpointing
        try:
            # Frozen weights need no activations kept for gradients of their own.
            for parameter in trained:
                parameter.requires_grad_(False)
            unet.checkpointing = checkpointing
            yield
        finally:
            unet.checkpointing = before
            for parameter in trained:
                parameter.requires_grad_(True)


def plain(value: Tensor) -> Tensor:
    """The tensor, or outside inference mode a copy of one that was made inside it and could not join a graph."""
    return value.clone() if value.is_inference() else value


def _replace_inference_weights(unet: UNet3D) -> None:
    """One weight at a time, so that there is never a second copy of the network."""
    replaced = 0
    for module in unet.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.is_inference():
                setattr(module, name, nn.Parameter(weight.clone(), requires_grad=weight.requires_grad))
                replaced += 1
    if replaced:
        logger.info("copied %d weights that were loaded or moved under inference mode", replaced)
