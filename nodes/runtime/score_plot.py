"""A picture of scores over the frames of a clip: one panel per reward, each on its own scale."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# Pixels of a panel and of its margins (left, top, right, bottom).
WIDTH, HEIGHT = 640, 170
LEFT, TOP, RIGHT, BOTTOM = 64, 30, 16, 26
TEXT = 12
# Clips of more frames get smaller dots.
MANY_FRAMES = 64
# Drawn larger and brought down, which smooths lines and letters.
SCALE = 2
BACKGROUND, INK, GRID, LINE = (20, 22, 26), (225, 228, 232), (62, 66, 74), (104, 176, 255)
# Scores that differ by less are drawn as nearly level: an axis of their own range would make noise look like a trend.
LEAST_RANGE = 0.01


def plot_scores(scores: dict[str, Tensor]) -> Tensor:
    """Draw scores (F,) by their titles, from the first to the last frame.

    Returns:
        Image (H, W, 3) in 0..1, float32.
    """
    panels = [panel(title, values.tolist()) for title, values in scores.items()]
    return torch.from_numpy(np.concatenate(panels)).float() / 255


def panel(title: str, values: list[float]) -> np.ndarray:
    """One curve with its title, which gains the mean, and its axes: (H, W, 3), uint8."""
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), BACKGROUND)
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = (SCALE * side for side in (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM))
    low, high = axis_range(values)
    points = [
        (left + (right - left) * across, bottom - (bottom - top) * (value - low) / (high - low))
        for across, value in zip(np.linspace(0, 1, len(values)) if len(values) > 1 else [0.5], values)
    ]
    for y in (top, bottom):
        draw.line([(left, y), (right, y)], GRID, SCALE)
    draw.line(points, LINE, 2 * SCALE, joint="curve")
    radius = SCALE * (1 if len(values) > MANY_FRAMES else 3)
    for x, y in points:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), LINE)
    write(draw, (left, SCALE * 6), f"{title}, mean {np.mean(values):.4f}", "la")
    for y, value in ((top, high), (bottom, low)):
        write(draw, (left - SCALE * 6, y), f"{value:.3f}", "rm")
    for x, name, anchor in ((left, "frame 1", "la"), (right, f"frame {len(values)}", "ra")):
        write(draw, (x, bottom + SCALE * 6), name, anchor)
    return np.array(image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))


def axis_range(values: list[float]) -> tuple[float, float]:
    """Lowest and highest value of the axis, with a little room around the curve."""
    low, high = min(values), max(values)
    room = max(0.1 * (high - low), (LEAST_RANGE - (high - low)) / 2)
    return low - room, high + room


def write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, anchor: str) -> None:
    draw.text(place, text, INK, ImageFont.load_default(TEXT * SCALE), anchor)
