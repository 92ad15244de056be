"""One clip that shows many: what a model of the embedded family makes of the first fixed prompts."""

from __future__ import annotations

import numpy as np

from ...core.pipeline import Pipeline
from .evaluation import sample_clips
from .world.captions import evaluation_prompts

BORDER = 2  # white pixels around every clip


def gallery(model: Pipeline, rows: int, columns: int, steps: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Frames uint8 (F, H, W, 3) of a grid of clips, and their prompts row by row."""
    prompts = [prompt for prompt, _ in evaluation_prompts(rows * columns)]
    clips = np.stack(list(sample_clips(model, prompts, steps, seed=seed)))  # (N, F, h, w, 3)
    sides = (BORDER, BORDER)
    clips = np.pad(clips, ((0, 0), (0, 0), sides, sides, (0, 0)), constant_values=255)
    grid = clips.reshape(rows, columns, *clips.shape[1:]).transpose(2, 0, 3, 1, 4, 5)  # (F, rows, h, columns, w, 3)
    frames, _, height, _, width, _ = grid.shape
    return grid.reshape(frames, rows * height, columns * width, 3), prompts
