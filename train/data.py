"""Clips with captions, from a folder or a table, decoded to the frames that a model family was trained on."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..core.text_files import TextError, is_unicode, read_json, read_text
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
from .table_rows import BadRow, RowError, path_inside, read_table

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
    problem: str | None = None  # reason why it cannot be used, as far as the list knows


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

    One that cannot be used, such as a row of a table whose path leaves its folder, is in the list with its problem.

    Raises:
        ValueError: if there are none, or no row of a table can be used: a column is missing, say.
    """
    source = Path(config.videos)
    if source.is_dir():
        clips = _folder_clips(source)
    elif source.is_file():
        clips = _table_clips(source, config)
    else:
        raise ValueError(f"videos={source}: no such folder or table; give a folder of videos, a .csv, .json or .jsonl")
    if not clips:
        raise ValueError(f"videos={source}: holds no videos ({', '.join(VIDEO_SUFFIXES)})")
    order = torch.randperm(len(clips), generator=generator_for("clips", config.seed)).tolist()
    return [clips[i] for i in order][: config.limit]


def _folder_clips(folder: Path) -> list[Clip]:
    """The videos below a folder; what is called like one but cannot be opened is there with its problem."""
    unreadable: list[OSError] = []
    found = sorted(path for path in _files_below(folder, unreadable) if path.suffix.lower() in VIDEO_SUFFIXES)
    clips = [Clip(str(path.relative_to(folder)), path, None, problem=_file_problem(path)) for path in found]
    for error in unreadable:
        path = Path(error.filename)
        clips.append(Clip(str(path.relative_to(folder)), path, None, problem=f"{path}: {error.strerror}"))
    return clips


def _files_below(folder: Path, unreadable: list[OSError]) -> Iterator[Path]:
    """Files that are not hidden, also in folders that links lead to; each folder once, under its own name if it can be.

    A link to a folder that holds this one is not followed. Folders that cannot be opened are added to ``unreadable``.
    """
    top, seen, places = Path(os.path.realpath(folder)), set(), deque([folder])
    while places:  # links come last
        for place, folders, files in os.walk(places.popleft(), onerror=unreadable.append):
            here = os.path.realpath(place)
            if here in seen or (top != Path(here) and top.is_relative_to(here)):
                folders.clear()
                continue
            seen.add(here)
            folders.sort()
            places += (link for link in (Path(place, name) for name in folders) if link.is_symlink())
            yield from (Path(place, name) for name in files if not name.startswith("."))


def _file_problem(path: Path) -> str | None:
    """What is wrong with a path that is neither a file nor a link to one."""
    try:
        return None if stat.S_ISREG(path.stat().st_mode) else f"{path}: is no file"
    except OSError as error:
        return f"{path}: {'a link that leads nowhere' if path.is_symlink() else error.strerror}"


def _table_clips(table: Path, config: PreprocessConfig) -> list[Clip]:
    root = Path(config.video_root) if config.video_root else table.parent
    template = config.video_column if "{" in config.video_column else "{" + config.video_column + "}"
    captions = [config.text_column, config.short_column]
    columns = {*_columns_of(template), *captions, "use_motion_guide"}
    rows = read_table(table, lambda row: _row_clip(row, template, root, config), columns, config.encoding)
    return [_bad_clip(row, root) if isinstance(row, BadRow) else row for row in rows]


def _columns_of(template: str) -> list[str]:
    """The columns that a template of paths names.

    Raises:
        ValueError: if it is none.
    """
    try:
        return [name for _, name, _, _ in Formatter().parse(template) if name]
    except ValueError as error:
        raise ValueError(f"video_column={template}: is no template ({error}); write {{column}}") from error


def _bad_clip(row: BadRow, root: Path) -> Clip:
    return Clip(f"row {row.number}", root, {}, problem=row.reason)


def _row_clip(row: dict, template: str, root: Path, config: PreprocessConfig) -> Clip:
    """Raises: RowError: if the row cannot be used."""
    name = _row_path(row, template, config)
    if config.text_column not in row and config.short_column not in row:
        raise RowError(f"has no column text_column={config.text_column}; it has {', '.join(row)}")
    dense, short = (_row_caption(row, column) for column in (config.text_column, config.short_column))
    captions = {"dense": dense, "short": short} if dense and short else {config.lone_caption: dense or short}
    flag = str(row.get("use_motion_guide", "1")).strip().lower()
    if flag not in TRUE + FALSE:
        raise RowError(f"use_motion_guide={flag} is neither yes nor no: write true or false")
    inside = path_inside(name, root, "set video_root to a folder above both")
    return Clip(inside, root / inside, {kind: value for kind, value in captions.items() if value}, flag in TRUE)


class _PathFormatter(Formatter):
    """Fills a template of paths; an empty value is refused, where Python would write None."""

    def format_field(self, value, spec: str) -> str:
        if value is None:
            raise ValueError("a value is missing")
        return super().format_field(value, spec)


def _row_path(row: dict, template: str, config: PreprocessConfig) -> str:
    try:
        return _PathFormatter().vformat(template, (), row)
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise RowError(
            f"nothing fits video_column={config.video_column} ({error}); it has {', '.join(row)}"
        ) from error


def _row_caption(row: dict, column: str) -> str | None:
    caption = row.get(column)
    if caption is not None and not isinstance(caption, str):
        raise RowError(f"{column}={str(caption)[:60]} is no text")
    return caption


def fingerprint(clips: list[Clip]) -> str:
    """Hash of what the list says (not of the files)."""
    rows = [(clip.name, clip.captions, clip.use_motion_guide) for clip in clips]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


# --- one clip ---------


def read_captions(clip: Clip, lone: str, encoding: str | None = None, option: str = "encoding=") -> dict[str, str]:
    """The captions of a clip by kind: the table's, or those of `stem.json` {"short", "dense"} or `stem.txt`.

    Args:
        lone: kind that the only caption of a .txt counts as.
        encoding, option: of the files, see ``open_text``.

    Raises:
        ClipError: if there is none.
    """
    found = clip.captions
    if found is None:
        files = (clip.path.with_suffix(suffix) for suffix in (".json", ".txt"))
        try:
            found = next((found for file in files if (found := _captions_in(file, lone, encoding, option))), {})
        except TextError as error:
            raise ClipError(str(error)) from error
    found = {kind: " ".join(text.split()) for kind, text in found.items() if text.split()}
    if not found:
        beside = f"neither {clip.path.stem}.txt nor {clip.path.stem}.json has one"
        raise ClipError(f"no caption: {beside if clip.captions is None else 'its row has none'}")
    if not all(map(is_unicode, found.values())):
        raise ClipError("its caption holds half a character (an unpaired surrogate), which is no text")
    return found


def _captions_in(file: Path, lone: str, encoding: str | None, option: str) -> dict[str, str]:
    """The captions of a .json or a .txt; {} if it is not there."""
    if not file.is_file():
        return {}
    if file.suffix == ".txt":
        return {lone: read_text(file, encoding, option)}
    content = read_json(file, encoding, option)
    content = content if isinstance(content, dict) else {}
    return {kind: content[kind] for kind in ("short", "dense") if isinstance(content.get(kind), str)}


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
