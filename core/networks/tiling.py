"""A function over pictures applied tile by tile, for pictures larger than the memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def tiled(function: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int) -> Tensor:
    """``function`` on overlapping tiles of x (N, C, H, W), which are blended linearly where they overlap.

    Args:
        function: (N, C, h, w) -> (N, C', k·h, k·w) or (N, C', h / k, w / k), for a whole number k.
        tile: side of a tile.
        overlap: of neighbouring tiles, in the same unit; at most half a tile is used.

    Raises:
        ValueError: if ``tile`` < 1 or ``overlap`` < 0.
    """
    if tile < 1 or overlap < 0:
        raise ValueError(f"tile={tile}, overlap={overlap}: a tile needs 1 or more, an overlap 0 or more")
    height, width = x.shape[-2:]
    overlap = min(overlap, tile // 2)
    total = weights = None
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            part = x[..., top : top + tile, left : left + tile]
            found = function(part)
            scaled = [_scale(i, found.shape[-2], part.shape[-2]) for i in (top, left, height, width, overlap)]
            y, x0, full_height, full_width, ramp = scaled
            if total is None:
                total = found.new_zeros(*found.shape[:2], full_height, full_width)
                weights = found.new_zeros(full_height, full_width)
            weight = _ramps(found.shape[-2], ramp, found)[:, None] * _ramps(found.shape[-1], ramp, found)
            area = (..., slice(y, y + found.shape[-2]), slice(x0, x0 + found.shape[-1]))
            total[area] += found * weight
            weights[area] += weight
    return total / weights


def tile_count(height: int, width: int, tile: int, overlap: int) -> int:
    """How many tiles ``tiled`` makes of a picture."""
    overlap = min(overlap, tile // 2)
    return len(_starts(height, tile, overlap)) * len(_starts(width, tile, overlap))


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin; the last one ends with the picture."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def _scale(value: int, out: int, side: int) -> int:
    """A length before ``function`` as one behind it, which made ``out`` of ``side``."""
    return value * out // side


def _ramps(length: int, ramp: int, like: Tensor) -> Tensor:
    """Weights (length,) that rise over the first ``ramp`` places and fall over the last ones, never to 0."""
    place = torch.arange(1, length + 1, dtype=torch.float32, device=like.device)
    return (torch.minimum(place, place.flip(0)) / (ramp + 1)).clamp(max=1).to(like.dtype)
