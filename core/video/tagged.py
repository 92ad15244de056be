"""Frames that know what made them."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .frames import to_uint8


class TaggedFrames(np.ndarray):
    """The frames of a clip, uint8 (F, H, W, 3), as any NumPy array, with the tags that its file carries.

    What is computed from them, also a slice, has no tags: the prompt and the seed made the whole clip.

    Attributes:
        tags: name -> text: the prompt, the seed and the settings (JSON).
    """

    tags: dict[str, str]

    def __array_finalize__(self, _) -> None:
        self.tags = {}

    @classmethod
    def of(cls, frames: Tensor, tags: dict[str, str]) -> TaggedFrames:
        """From frames (F, 3, H, W) in 0..1."""
        tagged = to_uint8(frames).view(cls)
        tagged.tags = tags
        return tagged
