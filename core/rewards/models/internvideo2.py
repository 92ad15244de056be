"""The video reward: InternVideo2 stage 2, the cosine of its video and text features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from ...checkpoints.key_maps import StateDict
from ..base import Reward, RewardInfo, widen
from .bert import BERTText
from .config import InternVideo2Config
from .preprocessing import IMAGENET_PIXELS, crop, normalise
from .video_tower import VideoTower, interpolate_frames


class InternVideo2Reward(Reward):
    """InternVideo2's vision tower and the first layers of BERT.

    The published code crops at random, at evaluation too; here it is the middle, so that a score can be repeated.

    Args:
        config: sizes and frame count.
        info: what the model says of itself.
        folder: where ``config.text.vocabulary`` lies.
    """

    def __init__(self, config: InternVideo2Config, info: RewardInfo, folder: Path | None = None):
        super().__init__(replace(info, text_limit=config.text.context_length))
        self.config = config
        self.vision = VideoTower(config.vision)
        self.text = BERTText(config.text, folder)
        self.vision_proj = nn.Linear(config.vision.pool_dim, config.embed_dim)
        self.text_proj = nn.Linear(config.text.width, config.embed_dim)

    def count_tokens(self, caption: str) -> int:
        return self.text.words.count(caption)

    def encode_text(self, captions: list[str]) -> Tensor:
        return nn.functional.normalize(widen(self.text_proj(self.text.encode(captions))), dim=-1)

    def chosen_frames(self, total: int) -> list[int]:
        """Evenly spaced from the first on, repeated in a clip that is too short; of one frame, that one."""
        wanted = self.config.vision.frames
        return [0] if total == 1 else [i * total // wanted for i in range(wanted)]

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Frames (B, F, 3, H, W) in 0..1 -> L2-normalised features (B, 1, E)."""
        return self.encode_clips(self.prepare(frames[:, self.chosen_frames(frames.shape[1])]))[:, None]

    def prepare(self, frames: Tensor, top: int | None = None, left: int | None = None) -> Tensor:
        """Frames (B, F, 3, H, W) in 0..1 -> (B, F, 3, S, S), normalised; cropped at (top, left), None = the middle."""
        pixels = crop(frames.flatten(0, 1), self.config.vision.image_size, top, left)
        return normalise(pixels, IMAGENET_PIXELS).to(self.dtype).unflatten(0, frames.shape[:2])

    def encode_clips(self, clips: Tensor) -> Tensor:
        """Prepared clips (B, F, 3, S, S), F as configured or 1 -> L2-normalised features (B, E)."""
        return nn.functional.normalize(widen(self.vision_proj(self.vision(clips))), dim=-1)

    def enable_checkpointing(self) -> None:
        self.vision.checkpointing = True


def fit_frames(state: StateDict, config: InternVideo2Config) -> StateDict:
    """A published state dict with its position embedding interpolated to the configured number of frames."""
    key = "vision_encoder.pos_embed"
    patches = (config.vision.image_size // config.vision.patch_size) ** 2
    value = state.get(key)
    # Anything else is left to the check of the shapes, which names it.
    if value is None or value.ndim != 3 or (value.shape[1] - 1) % patches or value.shape[1] <= patches:
        return state
    if value.shape[1] == 1 + config.vision.frames * patches:
        return state
    return state | {key: interpolate_frames(value, config.vision.frames, patches)}
