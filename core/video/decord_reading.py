"""Decord as another reader of clips, used only where its frames are those of PyAV.

What it makes of a clip is checked against the packets, which PyAV reads without decoding: number and times of the
frames, and the end of the file. What fails goes to PyAV: other containers than mp4, mov, mkv and webm, more than 8
bits, transparency, pixels that are not square, halved chroma of an odd size, open groups of pictures. Where it is used
its pixels equal those of PyAV.

One thing no check sees: damage inside a frame. PyAV refuses such a clip; decord paints over it with other frames and
says nothing. And it is not faster, for the decoders are the same. So it is off unless it is asked for.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from .reading import FrameTimes, frame_times

log = logging.getLogger(__name__)

READERS = ("pyav", "decord", "auto")
# Seconds that decord's time stamps may differ by.
TOLERANCE = 1e-3
INSTALL = 'install it with pip install "t2v-turbo[fast]", or use reader=pyav'


def resolve_reader(reader: str) -> str:
    """Which of "pyav" and "decord" a setting means here.

    Raises:
        ValueError: for decord where it cannot be used.
    """
    if reader == "pyav":
        return reader
    try:
        decord_version()
    except ImportError as error:
        if reader == "decord":
            raise ValueError(f"reader=decord: {error}; {INSTALL}") from error
        return "pyav"
    return "decord"


def decord_version() -> str:
    """Raises: ImportError: if decord cannot be used here."""
    version = _decord().__version__
    if not version.startswith("0."):
        # Of decord2 3.4 frames have four channels, and several at once fail.
        raise ImportError(f"the package decord here is another one, of version {version}")
    return version


def _decord():
    try:
        import decord
    except (ImportError, OSError, RuntimeError) as error:  # its library may not fit the system
        raise ImportError(f"decord cannot be loaded here ({error}); it is the extra t2v-turbo[fast]") from error
    return decord


def decord_frames(path: Path, frames: int, fps: float, start: float = 0.0) -> list[np.ndarray] | None:
    """The frames of ``iterate_video``, uint8 (H, W, 3), by decord; None where they might be others, or too few.

    Raises:
        VideoError: if the file is missing or holds no video.
    """
    times = frame_times(path)
    if times is None:
        return None
    decord = _decord()
    try:
        # By an open file: decord gives names to FFmpeg as they are.
        with path.open("rb") as file:
            reader = decord.VideoReader(file, num_threads=1)
            numbers = times.sampled(frames, fps, start)
            if len(numbers) < frames or not _agrees(reader, times):
                return None
            return list(reader.get_batch(numbers).asnumpy())
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        log.debug("%s: decord cannot read it (%s)", path, error)
        return None


def _agrees(reader, times: FrameTimes) -> bool:
    """Whether decord finds the frames that the packets tell of."""
    if len(reader) != len(times.begins):
        return False
    found = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    return bool(np.abs(found - found[0] - times.begins).max() <= TOLERANCE)
