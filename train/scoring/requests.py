"""Which clips are scored with which prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...core.video import VideoError, read_metadata
from ..config import PreprocessConfig
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
