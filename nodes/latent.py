"""The empty video latents that sampling starts from."""

from __future__ import annotations

from ..core.config import SHAPES
from . import CATEGORY
from .comfy_host import host

# Pixels per latent cell of every model family.
CELL = 8


class T2VTurboEmptyLatentVideo:
    CATEGORY = CATEGORY
    DESCRIPTION = "Empty latents of a clip. Its frames are the batch, so image nodes and previews work on them too."
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("Empty latents, one per frame.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls):
        size = {"min": 16, "max": 4096, "step": CELL}
        trained = "The embedded model was trained at {}, VideoCrafter2 at {}."
        return {
            "required": {
                "width": (
                    "INT",
                    {"default": SHAPES.width, **size, "tooltip": f"Width in pixels. {trained.format(64, 512)}"},
                ),
                "height": (
                    "INT",
                    {"default": SHAPES.height, **size, "tooltip": f"Height in pixels. {trained.format(64, 320)}"},
                ),
                "frames": (
                    "INT",
                    {
                        "default": SHAPES.frames,
                        "min": 1,
                        "max": 256,
                        "tooltip": f"Length of the clip in frames. {trained.format(8, 16)}",
                    },
                ),
            }
        }

    def execute(self, width, height, frames):
        import torch

        for name, side in (("width", width), ("height", height)):
            if side < CELL or side % CELL:
                raise ValueError(f"{name}={side} is not a multiple of {CELL}: use {max(1, round(side / CELL)) * CELL}")
        return ({"samples": torch.zeros(frames, 4, height // CELL, width // CELL, device=host().output_device())},)
