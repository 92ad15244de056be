"""The empty video latents that sampling starts from."""

from __future__ import annotations

from ..core.families import SHAPES
from .base import Node
from .host import host

# Pixels per latent cell of every model family.
CELL = 8


class T2VTurboEmptyLatentVideo(Node):
    DISPLAY_NAME = "T2V-Turbo Empty Latent Video"
    DESCRIPTION = (
        "Empty latents of a clip. Its frames are the batch, so image nodes and previews work on them too. "
        "Several clips are a list: what follows runs once for each."
    )
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_IS_LIST = (True,)
    OUTPUT_TOOLTIPS = ("Empty latents, one per frame; once for each clip.",)

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
            },
            "optional": {
                "clips": (
                    "INT",
                    {
                        "default": 1,
                        "min": 1,
                        "max": 64,
                        "tooltip": "How many clips to make, each of other noise. They are sampled one after the other, "
                        "so more clips take more time but no more memory. T2V-Turbo Best Of chooses one of them.",
                    },
                ),
            },
        }

    def execute(self, width, height, frames, clips=1):
        import torch

        for name, side in (("width", width), ("height", height)):
            if side < CELL or side % CELL:
                raise ValueError(f"{name}={side} is not a multiple of {CELL}: use {max(1, round(side / CELL)) * CELL}")
        samples = torch.zeros(frames, 4, height // CELL, width // CELL, device=host().output_device())
        # Which frames of the whole a clip has: where ComfyUI's samplers look for the place of its noise.
        places = ({"batch_index": [*range(i * frames, (i + 1) * frames)]} if i else {} for i in range(clips))
        return ([{"samples": samples, **place} for place in places],)
