"""Clips as tensors, pixels and files; written as mp4 (H.264) or gif, through PyAV and Pillow."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .video_reading import VIDEO_SUFFIXES, VideoError, iterate_video, read_metadata, read_video, video_duration

__all__ = [
    "VIDEO_SUFFIXES",
    "WRITABLE_SUFFIXES",
    "VideoError",
    "check_folder",
    "check_writable",
    "from_uint8",
    "iterate_video",
    "read_metadata",
    "read_video",
    "replacing",
    "resize_and_crop",
    "to_uint8",
    "video_duration",
    "write_video",
]

WRITABLE_SUFFIXES = (".mp4", ".gif")


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


def check_writable(path: str | Path) -> Path:
    """Fail early, before the work, where a clip could not be written later.

    Raises:
        VideoError: for a suffix other than .mp4 or .gif, a missing or unwritable folder, or a folder of that name.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        raise VideoError(f"{path}: cannot write '{path.suffix or 'no suffix'}'; use {' or '.join(WRITABLE_SUFFIXES)}")
    if path.is_dir():
        raise VideoError(f"{path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise VideoError(f"{path}: the folder {path.parent} does not exist; create it first")
    return check_folder(path)


def check_folder(path: Path) -> Path:
    """Fail early where the folder of ``path`` cannot be written to.

    Raises:
        VideoError: naming the path.
    """
    probe = path.with_name(f".{path.name}.probe")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise VideoError(f"{path}: cannot write here ({error.strerror}); choose another folder") from error
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that replaces it when the block ends well, and is removed when it does not."""
    partial = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_video(path: str | Path, frames: np.ndarray, fps: float = 8, metadata: dict[str, str] | None = None) -> None:
    """Write uint8 frames (F, H, W, 3) as .mp4 or .gif, by the suffix.

    Args:
        fps: frames per second; a gif rounds the duration of a frame to hundredths of a second.
        metadata: text tags of the mp4, or the comment of the gif (as ``name: text`` lines).

    Raises:
        VideoError: see ``check_writable``.
    """
    path = check_writable(path)
    write = _write_gif if path.suffix.lower() == ".gif" else _write_mp4
    with replacing(path) as partial:
        write(partial, frames, fps, metadata or {})


def _write_mp4(path: Path, frames: np.ndarray, fps: float, metadata: dict[str, str]) -> None:
    # H.264's 4:2:0 colour needs even sides; the last row or column is repeated where one is odd.
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(str(path), "w", format="mp4", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata.update(metadata)
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "12"}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def _write_gif(path: Path, frames: np.ndarray, fps: float, metadata: dict[str, str]) -> None:
    images = [Image.fromarray(frame) for frame in frames]
    comment = "\n".join(f"{name}: {text}" for name, text in metadata.items()).encode()
    images[0].save(path, save_all=True, append_images=images[1:], duration=1000 / fps, loop=0, comment=comment)
