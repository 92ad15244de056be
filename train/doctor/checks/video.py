"""Video files: a clip is written as mp4 and gif, read back and compared."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import av
import numpy as np

from ....core.video import read_video, write_video
from ..findings import Finding, Options, attempt

# Mean difference of a colour value, of 255, that compression may make; measured: 1.6 and 0.9.
LIMITS = {".mp4": 4.0, ".gif": 4.0}
ENCODER = "libx264"
AV_AGAIN = "install PyAV's own wheel, which has H.264: `python -m pip install --force-reinstall --only-binary av av`"
REMEDIES = {".mp4": AV_AGAIN, ".gif": "install Pillow again: `python -m pip install --force-reinstall pillow`"}


def examine(options: Options) -> Iterator[Finding]:
    yield encoder()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for suffix, limit in LIMITS.items():
            path = Path(folder) / f"doctor{suffix}"
            yield attempt(suffix[1:], partial(written, path, limit), REMEDIES[suffix])


def encoder() -> Finding:
    there = ENCODER in av.codecs_available
    value = f"PyAV {av.__version__}, {ENCODER}" + ("" if there else " is not in it: mp4 cannot be written")
    return Finding("H.264", "ok" if there else "fail", value, "" if there else AV_AGAIN, {"version": av.__version__})


def written(path: Path, limit: float) -> Finding:
    """Write a clip, read it, compare."""
    clip = moving_square()
    write_video(path, clip, 8)
    found = read_video(path)
    name, data = path.suffix[1:], {"limit": limit}
    if found.shape != clip.shape:
        return Finding(name, "fail", f"{clip.shape} were written, {found.shape} read", REMEDIES[path.suffix], data)
    difference = float(np.abs(found.astype(np.float32) - clip).mean())
    value = f"written and read; values differ by {difference:.1f} of 255 (limit {limit:g})"
    data["difference"] = round(difference, 3)
    if difference > limit:
        return Finding(name, "fail", value, REMEDIES[path.suffix], data)
    return Finding(name, "ok", value, data=data)


def moving_square(frames: int = 8, side: int = 64) -> np.ndarray:
    """uint8 (F, H, W, 3): a red square moves over a gradient."""
    ramp = np.linspace(40, 200, side)
    picture = np.stack(np.broadcast_arrays(ramp[:, None] / 2, ramp[None, :] / 2, ramp[:, None] / 3 + 60), axis=-1)
    clip = np.repeat(picture[None], frames, axis=0)
    for i in range(frames):
        clip[i, 20:44, 4 + 4 * i : 28 + 4 * i] = 220, 40, 40
    return clip.astype(np.uint8)
