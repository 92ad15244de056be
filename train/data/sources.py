"""Which clips there are, and their captions: a folder of videos, or a table."""

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

import torch

from ...core.text_files import TextError, is_unicode, read_json, read_text
from ...core.video import VIDEO_SUFFIXES, VideoError
from ..config import PreprocessConfig
from ..seeds import generator_for
from .tables import BadRow, RowError, path_inside, read_table

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
