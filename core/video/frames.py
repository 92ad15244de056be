"""Frames between the bytes of a file and a network's numbers."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def to_uint8(frames: Tensor) -> np.ndarray:
    """Frames (F, 3, H, W) in 0..1 -> uint8 (F, H, W, 3)."""
    pixels = (frames.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def from_uint8(frames: np.ndarray) -> Tensor:
    """uint8 (F, H, W, 3) -> float32 (F, 3, H, W) in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255


def resize_and_crop(frames: Tensor, height: int, width: int) -> Tensor:
    """(F, 3, h, w) -> (F, 3, H, W): scaled, keeping its proportions, to cover the size, then cropped to its centre."""
    h, w = frames.shape[-2:]
    scale = max(height / h, width / w)
    size = (max(height, math.floor(h * scale + 0.5)), max(width, math.floor(w * scale + 0.5)))
    frames = F.interpolate(frames, size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return frames[..., top : top + height, left : left + width]
