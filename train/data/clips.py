"""Clips with captions, from a folder or a table, decoded to the frames that a model family was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...core.video import VideoError, from_uint8, iterate_video, resize_and_crop, to_uint8, video_duration
from ...core.video.decord_reading import decord_frames
from ..config import PreprocessConfig
from ..seeds import generator_for
from .sources import Clip, ClipError, read_captions


@dataclass
class DecodedClip:
    """What preprocessing needs of one clip, or why there is nothing."""

    position: int  # in the list of clips
    clip: Clip
    kind: str = ""  # of the caption, "short" or "dense"
    caption: str = ""
    start: float = 0.0  # seconds into the video
    frames: Tensor | None = None  # uint8 (F, 3, H, W)
    problem: str | None = None  # reason why the clip is skipped


# --- listing ---------


# --- one clip ---------


def choose_caption(captions: dict[str, str], wanted: str, generator: torch.Generator) -> tuple[str, str]:
    """(kind, caption): the wanted kind, or one of those that there are for "random".

    Raises:
        ClipError: if the clip has no caption of that kind.
    """
    if wanted == "random":
        kinds = sorted(captions)
        wanted = kinds[int(torch.randint(len(kinds), (1,), generator=generator))]
    if wanted not in captions:
        raise ClipError(f"no {wanted} caption, only {', '.join(captions)}: use caption=random or lone_caption={wanted}")
    return wanted, captions[wanted]


def choose_start(path: Path, length: float, where: str, generator: torch.Generator) -> float:
    """Seconds into a video at which ``length`` seconds of it begin.

    Args:
        where: "first" = at 0, "middle" = as much before as behind, "random" = uniform over all that fit.

    Raises:
        VideoError: if the file is broken.
    """
    if where == "first":
        return 0.0
    spare = max(0.0, video_duration(path) - length)
    return spare * (0.5 if where == "middle" else torch.rand((), generator=generator).item())


def read_frames(
    path: Path, frames: int, fps: float, height: int, width: int, start: float = 0.0, reader: str = "pyav"
) -> Tensor:
    """``frames`` frames at ``fps`` from ``start`` seconds on, uint8 (F, 3, H, W); one at a time is held in full size.

    Args:
        reader: "pyav", or "decord" (which holds all in full size) for clips that it reads alike.

    Raises:
        VideoError: if the file is broken or too short.
    """
    found = decord_frames(path, frames, fps, start) if reader == "decord" else None
    found = iterate_video(path, frames, fps, start) if found is None else found
    images = [_fitted(image, height, width) for image in found]
    if len(images) < frames:
        begin = f" from {start:.2f} s on" if start else ""
        found = f"{len(images)} of {frames} frames at {fps:g} fps{begin}"
        raise ClipError(f"{path}: too short: {found}; take a longer clip, or fewer frames")
    return torch.stack(images)


def _fitted(image: np.ndarray, height: int, width: int) -> Tensor:
    """uint8 (h, w, 3) -> (3, H, W)."""
    if image.shape[:2] == (height, width):
        return torch.from_numpy(image).permute(2, 0, 1)
    fitted = to_uint8(resize_and_crop(from_uint8(image[None]), height, width))[0]
    return torch.from_numpy(fitted).permute(2, 0, 1)


class ClipDataset(Dataset):
    """Decodes the clip at a position of the list; a broken clip comes with the reason instead of frames."""

    def __init__(self, clips: list[Clip], config: PreprocessConfig, fps: float, size: tuple[int, int, int]):
        self.clips, self.config, self.fps, self.size = clips, config, fps, size

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, position: int) -> DecodedClip:
        clip, config = self.clips[position], self.config
        frames, height, width = self.size
        if clip.problem:
            return DecodedClip(position, clip, problem=clip.problem)
        try:
            captions = read_captions(clip, config.lone_caption, config.encoding)
            generator = generator_for("caption", config.seed, position)
            kind, caption = choose_caption(captions, config.caption, generator)
            generator = generator_for("start", config.seed, position)
            start = choose_start(clip.path, frames / self.fps, config.start, generator)
            pixels = read_frames(clip.path, frames, self.fps, height, width, start, config.reader)
        except (VideoError, OSError) as error:
            return DecodedClip(position, clip, problem=str(error))
        return DecodedClip(position, clip, kind, caption, start, pixels)
