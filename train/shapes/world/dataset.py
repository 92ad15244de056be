"""The renderer of "Moving Shapes": one saturated shape that moves over a muted background.

Lengths are pixels of a 64x64 frame, whatever the size of the rendered picture, and time is counted in frames.
Everything is a pure function of its arguments: a clip of a data set depends on (seed, index, style) alone.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ....core.text_files import read_json, write_json, write_text
from ....core.video import write_video
from .captions import dense_caption, short_caption
from .rendering import render
from .scene import Scene, sample_scene

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """A rendered scene: frames are uint8 (F, H, W, 3)."""

    scene: Scene
    frames: np.ndarray
    short_caption: str
    dense_caption: str


def render_clip(seed: int, index: int, style: str = "dense", frames: int = 8, size: int = 64) -> Clip:
    """Clip `index` of the data set (seed, style), with both captions; its frames are uint8 (F, H, W, 3)."""
    rng = np.random.default_rng((seed, index, int(style == "dense")))  # the styles share no scenes
    scene = sample_scene(rng, style, frames)
    video = render(scene, frames, size, rng)
    # captions draw last, so that a new template does not change the pixels of existing data sets
    return Clip(scene, video, short_caption(scene, rng), dense_caption(scene, rng))


def write_dataset(
    folder: str | Path,
    count: int,
    seed: int = 0,
    style: str = "dense",
    frames: int = 8,
    size: int = 64,
    fps: int = 8,
) -> Path:
    """Write clips 0..count-1 as clip_000000.mp4 (h264), .txt (short caption), .json {scene, short, dense}.

    A clip whose mp4 exists is skipped, so that an interrupted call can be repeated; the mp4 comes last and
    appears under its name only when complete. Returns the folder. Raises ValueError for an odd `size` and for
    a folder that holds another data set.

    The video keeps full colour resolution (h264 High 4:4:4), as halved chroma would blur the edges of every shape at 64
    pixels: ffmpeg, PyAV, decord and VLC read it, some browsers do not.
    """
    if size % 2:
        raise ValueError(f"size {size} is odd, which h264 cannot store; use an even size")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(count) if not (folder / f"clip_{i:06d}.mp4").exists()]
    for index in sorted(set(range(count)).difference(missing))[:1]:
        _check_same(folder / f"clip_{index:06d}.json", render_clip(seed, index, style, frames, size))
    logger.info("%s: %d clips to write, %d there already", folder, len(missing), count - len(missing))
    for index in tqdm(missing, desc=f"{style} clips", unit="clip"):
        clip = render_clip(seed, index, style, frames, size)
        stem = folder / f"clip_{index:06d}"
        record = {"scene": asdict(clip.scene), "short": clip.short_caption, "dense": clip.dense_caption}
        write_text(stem.with_suffix(".txt"), clip.short_caption + "\n")
        write_json(stem.with_suffix(".json"), record)
        write_video(stem.with_suffix(".mp4"), clip.frames, fps, full_chroma=True)
    return folder


def _check_same(record: Path, clip: Clip) -> None:
    """An interrupted data set may only be continued with the arguments that began it."""
    if read_json(record)["scene"] != asdict(clip.scene):
        raise ValueError(f"{record} belongs to another seed, style or length; choose an empty folder")
