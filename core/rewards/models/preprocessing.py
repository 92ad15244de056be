"""Frames as the reward models see them: square, of their size, normalised. Differentiable; nothing is clamped."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Mean and deviation per channel.
CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET_PIXELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialiasing, (N, 3, H, W) -> (N, 3, height, width); overshoots stay."""
    if pixels.shape[-2:] == (height, width):
        return pixels
    # Releases of torch lack this operator or its gradient on mps, and the few frames of a score are quick on the CPU.
    place = "cpu" if pixels.device.type == "mps" else pixels.device
    scaled = F.interpolate(pixels.to(place), (height, width), mode="bicubic", antialias=True, align_corners=False)
    return scaled.to(pixels.device)


def pad(pixels: Tensor, size: int) -> Tensor:
    """HPS: the longest side to ``size``, black bars around it.

    The published code leaves a frame whose longest side is ``size`` already without bars, which its own network then
    refuses; here it gets them.
    """
    scale = size / max(pixels.shape[-2:])
    height, width = (round(side * scale) for side in pixels.shape[-2:])
    top, left = (size - height) // 2, (size - width) // 2
    bars = (left, size - width - left, top, size - height - top)
    return F.pad(resize(pixels, height, width), bars)


def squash(pixels: Tensor, size: int) -> Tensor:
    """The authors' CLIP: both sides to ``size``, whatever the aspect ratio."""
    return resize(pixels, size, size)


def crop(pixels: Tensor, size: int, top: int | None = None, left: int | None = None) -> Tensor:
    """The shortest side to ``size``, then a square of it: at (``top``, ``left``), None = the middle."""
    scale = size / min(pixels.shape[-2:])
    height, width = (round(side * scale) for side in pixels.shape[-2:])
    top = (height - size) // 2 if top is None else top
    left = (width - size) // 2 if left is None else left
    return resize(pixels, height, width)[..., top : top + size, left : left + size]


SQUARES = {"pad": pad, "squash": squash, "crop": crop}


def normalise(pixels: Tensor, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """(N, 3, H, W) in 0..1 -> mean 0, deviation 1 per channel."""
    mean, std = (torch.tensor(values, dtype=pixels.dtype, device=pixels.device) for values in statistics)
    return (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
