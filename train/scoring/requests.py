"""Which clips are scored, and with which prompts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from ...core.command_line import typed_text
from ...core.video import VIDEO_SUFFIXES, VideoError, read_metadata
from ..config import PreprocessConfig
from ..data.prompts import read_lines
from ..data.sources import Clip, ClipError, list_clips, read_captions
from ..data.tables import BadRow, RowError, path_inside, read_table

# How the encoding of texts is set.
ENCODING = "--encoding "


@dataclass(frozen=True)
class ScoreRequest:
    """A clip and what it is scored with.

    Attributes:
        name: as it is shown.
        prompts: () = the clip's own.
        encoding: of the caption beside it, see ``open_text``.
        problem: why it cannot be scored, as far as the list of clips knows.
    """

    name: str
    path: Path
    prompts: tuple[str, ...] = ()
    encoding: str | None = None
    problem: str | None = None


def read_requests(
    words: Sequence[str],
    prompts: Sequence[str] = (),
    prompt_file: Path | None = None,
    table: Path | None = None,
    encoding: str | None = None,
) -> list[ScoreRequest]:
    """The clips of the command line with their prompts.

    Args:
        words: clips, folders of clips, and prompts, which are told apart by ``sort_words``.
        prompts: further ones; those of ``prompt_file``, one a line, too.
        table: columns file, prompt; the only word beside it may be the folder of its clips.
        encoding: of the texts, see ``open_text``.

    Raises:
        ValueError: if there is no clip, or a prompt is empty.
    """
    clips, found = sort_words(words)
    prompts = check_prompts([*found, *prompts, *_lines(prompt_file, encoding)])
    if table:
        if prompts or len(clips) > 1:
            raise ValueError("--table has the prompts: name beside it only the folder of its clips")
        return table_requests(table, Path(clips[0]) if clips else None, encoding)
    if not clips:
        given = f" (nothing is there of the name {shorten(prompts[0], 60)})" if prompts else ""
        raise ValueError(f'no clip to score{given}: try `t2v-turbo score clip.mp4 "a red circle moves right"`')
    asked = (clip_requests(Path(clip), tuple(prompts), len(clips) == 1, encoding) for clip in clips)
    return [request for requests in asked for request in requests]


def sort_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(clips, prompts) of the words of the command line."""
    clips = [word for word in words if _is_clip(word)]
    return clips, [typed_text(word) for word in words if word not in clips]


def _is_clip(word: str) -> bool:
    return bool(word.strip()) and (Path(word).suffix.lower() in VIDEO_SUFFIXES or os.path.exists(word))


def _lines(file: Path | None, encoding: str | None) -> list[str]:
    lines = read_lines(file, "--prompts", encoding) if file else []
    if file and not lines:
        raise ValueError(f"--prompts {file}: holds no prompt; write one a line")
    return lines


def check_prompts(prompts: list[str]) -> list[str]:
    """Raises: ValueError: if one is blank."""
    blank = [i for i, prompt in enumerate(prompts, 1) if not prompt.strip()]
    if blank:
        raise ValueError(f"prompt {blank[0]} is empty: write what the clip should show, or leave the prompt out")
    return prompts


def clip_requests(path: Path, prompts: tuple[str, ...], alone: bool, encoding: str | None) -> list[ScoreRequest]:
    """A clip, or those of a folder; their names are relative to a folder that is alone."""
    if not path.exists():
        raise VideoError(f"{path}: no such video file or folder")
    if not path.is_dir():
        return [ScoreRequest(str(path), path, prompts, encoding)]
    clips = list_clips(PreprocessConfig(videos=str(path), records=""))
    clips.sort(key=lambda clip: clip.name)
    names = [clip.name if alone else str(clip.path) for clip in clips]
    return [ScoreRequest(name, clip.path, prompts, encoding, clip.problem) for name, clip in zip(names, clips)]


def table_requests(table: Path, folder: Path | None, encoding: str | None = None) -> list[ScoreRequest]:
    """The rows of a table with the columns file and prompt; one that cannot be used has its problem.

    Args:
        folder: where the files lie, and the table too if it is not found; None = that of the table.

    Raises:
        ValueError: if it is no such table, or no row can be used.
    """
    if folder and not table.is_file():
        table = folder / table
    folder = folder or table.parent
    if not table.is_file():
        raise ValueError(f"--table {table}: no such file; it is looked for here and in the clips' folder")

    def request(row: dict) -> ScoreRequest:
        if not {"file", "prompt"} <= set(row):
            raise RowError(f"a first line file,prompt and a line per clip are needed; it has {', '.join(row)}")
        name, prompt = (row[column] or "" for column in ("file", "prompt"))
        if not (isinstance(name, str) and isinstance(prompt, str)):
            raise RowError(f"file={name}, prompt={prompt}: both must be text")
        inside = path_inside(name, folder, "give a folder above both as the folder of the clips")
        return ScoreRequest(name, folder / inside, (prompt,))

    rows = read_table(table, request, ("file", "prompt"), encoding, ENCODING)
    if not rows:
        raise ValueError(f"{table}: a first line file,prompt and a line per clip are needed")
    return [
        ScoreRequest(f"{table}, row {row.number}", table, problem=row.reason) if isinstance(row, BadRow) else row
        for row in rows
    ]


def own_prompt(path: Path, encoding: str | None = None) -> str:
    """The prompt that a clip carries in its tags, else the caption beside it, the short one where there are two.

    Raises:
        VideoError: if there is none, or the file is broken.
    """
    prompt = read_metadata(path).get("prompt", "").strip()
    if prompt and not prompt.startswith("{"):  # ComfyUI puts its graph there
        return prompt
    try:
        captions = read_captions(Clip(path.name, path, None), "short", encoding, ENCODING)
    except ClipError as error:
        raise ClipError(f"no prompt in its tags, and {error}; give one with --prompt") from error
    return captions.get("short") or captions["dense"]
