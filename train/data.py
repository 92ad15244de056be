"""Clips with captions, from a folder or a table, decoded to the frames that a model family was trained on."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..core.video import (
    VIDEO_SUFFIXES,
    VideoError,
    from_uint8,
    iterate_video,
    resize_and_crop,
    to_uint8,
    video_duration,
)
from ..core.video_decord import decord_frames
from .config import PreprocessConfig

# What a table may say in the column use_motion_guide.
TRUE = ("1", "1.0", "true", "yes", "on")
FALSE = ("", "0", "0.0", "false", "no", "off", "none")


class ClipError(VideoError):
    """A clip that cannot be used; the message says why. The clip is skipped, the work goes on."""


@dataclass(frozen=True)
class Clip:
    """A video and where its captions are."""

    name: str  # path relative to the data set: identifies the clip
    path: Path
    captions: dict[str, str] | None  # by kind, "short" and "dense"; None = in a file beside the video
    use_motion_guide: bool = True


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


def generator_for(*key: int | str) -> torch.Generator:
    """A CPU generator that depends on ``key`` alone; different keys give independent streams."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)


# --- listing ---------


def list_clips(config: PreprocessConfig) -> list[Clip]:
    """All clips of ``config.videos``, shuffled by the seed, so that any part of the list is a fair sample.

    Raises:
        ValueError: if there are none, a column is missing, a flag is unknown, or a path leaves its folder.
    """
    source = Path(config.videos)
    if source.is_dir():
        clips = [Clip(str(path.relative_to(source)), path, None) for path in _videos(source)]
    elif source.is_file():
        clips = _table_clips(source, config)
    else:
        raise ValueError(f"videos={source}: no such folder or table; give a folder of videos, a .csv or a .json")
    if not clips:
        raise ValueError(f"videos={source}: holds no videos ({', '.join(VIDEO_SUFFIXES)})")
    order = torch.randperm(len(clips), generator=generator_for("clips", config.seed)).tolist()
    return [clips[i] for i in order][: config.limit]


def _videos(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    return sorted(path for path in found if not path.name.startswith(".") and path.is_file())


def _table_clips(table: Path, config: PreprocessConfig) -> list[Clip]:
    root = Path(config.video_root) if config.video_root else table.parent
    rows = _read_rows(table)
    return [_row_clip(row, root, config, f"{table}, row {i}") for i, row in enumerate(rows, 1)]


def _read_rows(table: Path) -> list[dict]:
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = json.load(file) if table.suffix.lower() == ".json" else list(csv.DictReader(file))
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table}: cannot be read as a table ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{table}: is no table; a .json must be a list of objects")
    return rows


def _row_clip(row: dict, root: Path, config: PreprocessConfig, where: str) -> Clip:
    template = config.video_column if "{" in config.video_column else "{" + config.video_column + "}"
    text, short, has = row.get(config.text_column), row.get(config.short_column), ", ".join(map(str, row))
    try:
        name = template.format_map(row)
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{where}: nothing fits video_column={config.video_column} ({error}); it has {has}") from error
    if config.text_column not in row and config.short_column not in row:
        raise ValueError(f"{where}: has no column text_column={config.text_column}; it has {has}")
    inside = os.path.normpath(name)
    if os.path.isabs(inside) or inside.split(os.sep)[0] == os.pardir:
        raise ValueError(f"{where}: the path {name} leaves the folder {root}; set video_root to a folder above both")
    captions = {"dense": text, "short": short} if text and short else {config.lone_caption: text or short}
    flag = str(row.get("use_motion_guide", "1")).strip().lower()
    if flag not in TRUE + FALSE:
        raise ValueError(f"{where}: use_motion_guide={flag} is neither yes nor no: write true or false")
    return Clip(inside, root / inside, {kind: value for kind, value in captions.items() if value}, flag in TRUE)


def fingerprint(clips: list[Clip]) -> str:
    """Hash of what the list says (not of the files)."""
    rows = [(clip.name, clip.captions, clip.use_motion_guide) for clip in clips]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


# --- one clip ---------


def read_captions(clip: Clip, lone: str) -> dict[str, str]:
    """The captions of a clip by kind: the table's, or those of `stem.json` {"short", "dense"} or `stem.txt`.

    Args:
        lone: kind that the only caption of a .txt counts as.

    Raises:
        ClipError: if there is none.
    """
    found = clip.captions
    if found is None:
        found = _json_captions(clip.path.with_suffix(".json")) or _text_caption(clip.path.with_suffix(".txt"), lone)
    found = {kind: " ".join(text.split()) for kind, text in found.items() if text.split()}
    if not found:
        raise ClipError(f"no caption: neither {clip.path.stem}.txt nor {clip.path.stem}.json has one")
    return found


def _json_captions(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ClipError(f"{path.name} is not valid JSON ({error})") from error
    content = content if isinstance(content, dict) else {}
    return {kind: content[kind] for kind in ("short", "dense") if isinstance(content.get(kind), str)}


def _text_caption(path: Path, lone: str) -> dict[str, str]:
    try:
        return {lone: path.read_text(encoding="utf-8")} if path.is_file() else {}
    except UnicodeDecodeError as error:
        raise ClipError(f"{path.name} is not UTF-8 text") from error


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
        try:
            captions = read_captions(clip, config.lone_caption)
            generator = generator_for("caption", config.seed, position)
            kind, caption = choose_caption(captions, config.caption, generator)
            generator = generator_for("start", config.seed, position)
            start = choose_start(clip.path, frames / self.fps, config.start, generator)
            pixels = read_frames(clip.path, frames, self.fps, height, width, start, config.reader)
        except (VideoError, OSError) as error:
            return DecodedClip(position, clip, problem=str(error))
        return DecodedClip(position, clip, kind, caption, start, pixels)
