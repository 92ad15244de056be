"""``t2v-turbo score``: how well clips go with prompts, by reward models; for a person, a script or a whole folder."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from tqdm.auto import tqdm

from ...core.command_line import can_print, typed_text
from ...core.device import WIDE_PRECISIONS, dtype_name, pick_device, pick_dtype
from ...core.families import resolve_family
from ...core.rewards import Reward, load_reward, present_rewards, reward_path
from ...core.rewards.base import LONG_CAPTIONS
from ...core.text_files import check_encoding, is_unicode
from ...core.video import VIDEO_SUFFIXES, VideoError, from_uint8, iterate_video, read_metadata, video_duration
from ..config import PreprocessConfig
from ..data.sources import Clip, ClipError, list_clips, read_captions
from ..data.tables import BadRow, RowError, path_inside, read_table
from ..results import KeptLines
from ..scoring.tables import Answer, as_json, as_text, means, named, write_csv
from .generate import read_lines
from .options import add_model_arguments, check_suffix

# How the encoding of texts is set.
ENCODING = "--encoding "
# Frames of a clip that are held at once; a longer clip is seen at so many instants, evenly spaced.
MOST_FRAMES = 32
# Frames that an image reward is given at once.
CHUNK = 8
EXIT_PARTLY = 1

EXAMPLES = """\
examples:
  t2v-turbo score clip.mp4 "a red circle moves right"        a table of the rewards
  t2v-turbo score out.mp4                                    a clip of `generate` carries its prompt
  t2v-turbo score clip.mp4 "a red circle" --rewards clip,hps,internvideo2 --json
  t2v-turbo score a.mp4 b.mp4 --prompt "a cat" --prompt "a dog"     every clip with every prompt, a matrix per reward
  t2v-turbo score clips/ --out scores.csv                    a folder: each clip with its own prompt
  t2v-turbo score clips/ --table captions.csv                prompts from a table with the columns file,prompt
  t2v-turbo score clip.mp4 "a corgi surfing" --model videocrafter2
                                 the published models, after `t2v-turbo download hps clip internvideo2`

Clips are mp4, webm, mov, mkv, avi or gif, of any size and length. A word is taken for a clip where a file or folder of
that name exists or it ends like a video; all others are prompts. Write them together, before the options or behind. A
table is .csv or .tsv (comma, semicolon or tab), .json or .jsonl.
A clip without a given prompt is scored with its own: that of its tags, else the caption in a .txt or .json of its name
beside it. The rewards are those of --model that are there; --checkpoints names another folder of the model's files.

Image rewards (hps, clip, pickscore, imagereward) score single frames, and their mean counts: all frames of a clip of up
to 32, else 32 evenly spaced ones, or as many as --frames says. A video reward (internvideo2) sees 8 evenly spaced ones
whatever --frames says. A single frame is scored as an image. A prompt beyond a model's limit (77 tokens; internvideo2:
40) is scored in segments of whole sentences, whose mean counts, or cut off there with --long-captions truncate.

Scores of one reward can be compared with each other, those of two rewards cannot. A clip that cannot be scored is named
with the reason and the others go on; the exit code is then 1, and 2 if there is no score at all. With --out a command
that was stopped goes on where it was when it is given again.
"""


@dataclass(frozen=True)
class Question:
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


def register(subparsers) -> None:
    parser = subparsers.add_parser(
        "score",
        help="how well clips go with prompts, by reward models",
        description="Score clips against prompts with reward models.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="CLIP|PROMPT", help="clips or folders of clips, and prompts")
    parser.add_argument("--prompt", action="append", default=[], type=typed_text, help="a prompt; several: a matrix")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="text file with one prompt a line")
    parser.add_argument("--table", type=Path, metavar="CSV", help="columns file,prompt; files lie in the given folder")
    parser.add_argument("--encoding", help="of table, prompt file and captions, such as latin-1 (default: UTF-8)")
    parser.add_argument("--rewards", metavar="NAME,…", help="reward models (default: those that are there)")
    parser.add_argument("--frames", type=int, help=f"frames for image rewards (default: all, at most {MOST_FRAMES})")
    parser.add_argument(
        "--long-captions", choices=LONG_CAPTIONS, default="segments",
        help="a prompt beyond a model's limit: mean over its sentences' segments (default), or cut off there",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="CSV", help="write the scores to a table instead")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    add_model_arguments(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    if args.frames is not None and args.frames < 1:
        raise ValueError(f"--frames {args.frames} must be 1 or more")
    check_encoding(args.encoding, ENCODING)
    if args.out:
        check_suffix("--out", args.out, (".csv",))
    questions = read_questions(args)
    rewards = load_rewards(args)
    kept = KeptLines(kept_beside(args.out), judged_by(args, rewards)) if args.out else None
    answers = []
    for question in tqdm(questions, desc="score", unit="clip", disable=len(questions) < 2):
        answers += answer(question, rewards, args.frames, kept)
    code = tell(answers, rewards, args)
    if kept:
        kept.path.unlink(missing_ok=True)
    return code


def kept_beside(table: Path) -> Path:
    """Where the scores for a table are until it is written."""
    return table.with_name(f".{table.name}.kept")


def judged_by(args: argparse.Namespace, rewards: dict[str, Reward]) -> dict:
    """What scores depend on but for the clip and its prompts, as JSON values."""
    family, folder = resolve_family(args.model).name, args.checkpoints
    files = {name: stamp(Path(reward_path(name, family, folder))) for name in rewards}
    dtype = dtype_name(pick_dtype(args.dtype, pick_device(args.device), WIDE_PRECISIONS))
    return {"rewards": files, "frames": args.frames, "long_captions": args.long_captions, "dtype": dtype}


def stamp(path: Path) -> list:
    """Path, bytes and time of change of a file: another file has another."""
    about = path.stat()
    return [str(path.resolve()), about.st_size, about.st_mtime_ns]


# --- what is asked ---------


def read_questions(args: argparse.Namespace) -> list[Question]:
    """The clips of the command line with their prompts.

    Raises:
        ValueError: if there is no clip, or a prompt is empty.
    """
    clips, prompts = sort_words(args.words)
    prompts = check_prompts([*prompts, *args.prompt, *_lines(args.prompts, args.encoding)])
    if args.table:
        if prompts or len(clips) > 1:
            raise ValueError("--table has the prompts: name beside it only the folder of its clips")
        return table_questions(args.table, Path(clips[0]) if clips else None, args.encoding)
    if not clips:
        given = f" (nothing is there of the name {shorten(prompts[0], 60)})" if prompts else ""
        raise ValueError(f'no clip to score{given}: try `t2v-turbo score clip.mp4 "a red circle moves right"`')
    asked = (_questions(Path(clip), tuple(prompts), len(clips) == 1, args.encoding) for clip in clips)
    return [question for questions in asked for question in questions]


def sort_words(words: list[str]) -> tuple[list[str], list[str]]:
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


def _questions(path: Path, prompts: tuple[str, ...], alone: bool, encoding: str | None) -> list[Question]:
    """A clip, or those of a folder; their names are relative to a folder that is alone."""
    if not path.exists():
        raise VideoError(f"{path}: no such video file or folder")
    if not path.is_dir():
        return [Question(str(path), path, prompts, encoding)]
    clips = list_clips(PreprocessConfig(videos=str(path), records=""))
    clips.sort(key=lambda clip: clip.name)
    return [
        Question(clip.name if alone else str(clip.path), clip.path, prompts, encoding, clip.problem) for clip in clips
    ]


def table_questions(table: Path, folder: Path | None, encoding: str | None = None) -> list[Question]:
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

    def question(row: dict) -> Question:
        if not {"file", "prompt"} <= set(row):
            raise RowError(f"a first line file,prompt and a line per clip are needed; it has {', '.join(row)}")
        name, prompt = (row[column] or "" for column in ("file", "prompt"))
        if not (isinstance(name, str) and isinstance(prompt, str)):
            raise RowError(f"file={name}, prompt={prompt}: both must be text")
        inside = path_inside(name, folder, "give a folder above both as the folder of the clips")
        return Question(name, folder / inside, (prompt,))

    rows = read_table(table, question, ("file", "prompt"), encoding, ENCODING)
    if not rows:
        raise ValueError(f"{table}: a first line file,prompt and a line per clip are needed")
    return [
        Question(f"{table}, row {row.number}", table, problem=row.reason) if isinstance(row, BadRow) else row
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


# --- scoring ---------


def load_rewards(args: argparse.Namespace) -> dict[str, Reward]:
    """The rewards asked for, else those that are there.

    Raises:
        ValueError: for an unknown one, or a file that is missing or damaged; if none is there.
    """
    family, folder = resolve_family(args.model).name, args.checkpoints
    asked = filter(None, map(str.strip, (args.rewards or "").split(",")))
    names = list(dict.fromkeys(asked)) or present_rewards(family, folder)
    if not names:
        raise ValueError(
            f"no reward model is there, such as {reward_path('hps', family, folder)}: fetch the published ones with "
            "`t2v-turbo download hps clip internvideo2` for --model videocrafter2, or name a folder with --checkpoints"
        )
    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device, WIDE_PRECISIONS)
    options = {"device": device, "dtype": dtype, "long_captions": args.long_captions}
    return {name: load_reward(name, family=family, folder=folder, **options) for name in names}


def answer(
    question: Question, rewards: dict[str, Reward], image_frames: int | None = None, kept: KeptLines | None = None
) -> list[Answer]:
    """Score a clip with each of its prompts.

    Args:
        image_frames: how many evenly spaced frames image rewards see; None = all, ``MOST_FRAMES`` at most.
        kept: where scores are found and kept; None = nowhere.
    """
    if question.problem:
        return [Answer(question.name, problem=question.problem)]
    try:
        if not question.path.is_file():
            raise VideoError(f"{question.path}: no such video file")
        prompts = question.prompts or (own_prompt(question.path, question.encoding),)
        if not all(map(str.strip, prompts)):
            raise ClipError("its prompt is empty")
        if not all(map(is_unicode, prompts)):
            raise ClipError("its prompt holds half a character (an unpaired surrogate), which is no text")
        made_from = {"clip": stamp(question.path), "prompts": prompts}
        found = kept and kept.find(made_from)
        columns = found or score_file(question.path, prompts, rewards, image_frames)
    except (VideoError, OSError) as error:
        return [Answer(question.name, problem=str(error))]
    if kept and not found:
        kept.add(made_from, columns)
    rows = (dict(zip(columns, scores)) for scores in zip(*columns.values()))
    return [Answer(question.name, prompt, scores) for prompt, scores in zip(prompts, rows)]


def score_file(
    path: Path, prompts: tuple[str, ...], rewards: dict[str, Reward], image_frames: int | None = None
) -> dict[str, list[float]]:
    """Scores by reward, one per prompt, of a clip's file.

    Raises:
        VideoError: if the file is broken.
    """
    videos = any(reward.info.kind == "video" for reward in rewards.values())
    frames = read_evenly(path, max(image_frames or MOST_FRAMES, MOST_FRAMES if videos else 1))
    return {name: score_clip(reward, frames, prompts, image_frames) for name, reward in rewards.items()}


def read_evenly(path: Path, most: int) -> list[np.ndarray]:
    """Frames uint8 (H, W, 3) of a clip: all where there are up to ``most``, else so many, evenly spaced in time.

    Raises:
        VideoError: if the file is broken.
    """
    frames = list(iterate_video(path, most + 1))
    if len(frames) <= most:
        return frames
    frames.clear()  # memory need not hold two sets
    duration = video_duration(path)
    if not duration > 0:
        raise VideoError(f"{path}: does not tell how long it is; convert it to mp4")
    return list(iterate_video(path, most, most / duration))


@torch.no_grad()
def score_clip(
    reward: Reward, frames: list[np.ndarray], prompts: tuple[str, ...], image_frames: int | None = None
) -> list[float]:
    """``reward.score`` of one clip with each prompt; the clip is encoded once, a few frames at a time.

    Args:
        frames: uint8 (H, W, 3).

    Raises:
        ValueError: if a score is not finite.
    """
    total = len(frames)
    if reward.info.kind == "video":
        parts = [reward.chosen_frames(total)]
    else:
        count = min(image_frames or total, total)
        chosen = [i * total // count for i in range(count)]
        parts = [chosen[i : i + CHUNK] for i in range(0, count, CHUNK)]
    pixels = (from_uint8(np.stack([frames[i] for i in part]))[None].to(reward.device) for part in parts)
    features = torch.cat([reward.encode_frames(some) for some in pixels], dim=1)  # (1, K, …)
    scores = reward.rate(features.expand(len(prompts), *features.shape[1:]), list(prompts)).tolist()
    if not all(map(math.isfinite, scores)):
        raise ValueError(f"{reward.info.name} gives {scores}; it needs more precision, such as --dtype fp32")
    return scores


# --- what is told ---------


def tell(answers: list[Answer], rewards: dict[str, Reward], args: argparse.Namespace) -> int:
    """Print or write the scores; returns the exit code.

    Raises:
        ValueError: if there is no score.
    """
    scored, broken = ([one for one in answers if bool(one.problem) == wrong] for wrong in (False, True))
    if not scored:
        first = named(broken[0])
        raise ValueError(first if len(broken) == 1 else f"none of {len(broken)} clips can be scored: {first}; …")
    infos = {name: reward.info for name, reward in rewards.items()}
    if args.out:
        write_csv(args.out, answers, list(infos))
    if args.json:
        text = json.dumps(as_json(answers, infos), indent=1, ensure_ascii=False)
        print(text if can_print(text) else json.dumps(as_json(answers, infos), indent=1))
    elif args.out:
        print(f"{args.out}: {len(scored)} scores, mean {', '.join(map(' '.join, means(scored).items()))}")
    else:
        print(as_text(scored, infos))
    if broken:
        clips = len({one.name for one in answers})
        lines = [f"{len(broken)} of {clips} clips cannot be scored:", *map(named, broken)]
        print("\n  ".join(lines), file=sys.stderr)
    return EXIT_PARTLY if broken else 0
