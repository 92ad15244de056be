"""``t2v-turbo score``: how well clips go with prompts, by reward models; for a person, a script or a whole folder."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from textwrap import shorten

from tqdm.auto import tqdm

from ...core.command_line import can_print, typed_text
from ...core.device import WIDE_PRECISIONS, dtype_name, pick_device, pick_dtype
from ...core.families import resolve_family
from ...core.rewards import Reward, load_reward, present_rewards, reward_path
from ...core.rewards.base import LONG_CAPTIONS
from ...core.text_files import check_encoding
from ...core.video import VIDEO_SUFFIXES
from ..results import KeptLines
from ..scoring.requests import ENCODING, ScoreRequest, clip_requests, table_requests
from ..scoring.scoring import MOST_FRAMES, score_request, stamp
from ..scoring.tables import ScoreResult, as_json, as_text, means, named, write_csv
from .options import add_model_arguments, check_suffix
from .prompts import read_lines

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
    requests = read_requests(args)
    rewards = load_rewards(args)
    kept = KeptLines(kept_beside(args.out), judged_by(args, rewards)) if args.out else None
    results = []
    for request in tqdm(requests, desc="score", unit="clip", disable=len(requests) < 2):
        results += score_request(request, rewards, args.frames, kept)
    code = tell(results, rewards, args)
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


# --- what is asked ---------


def read_requests(args: argparse.Namespace) -> list[ScoreRequest]:
    """The clips of the command line with their prompts.

    Raises:
        ValueError: if there is no clip, or a prompt is empty.
    """
    clips, prompts = sort_words(args.words)
    prompts = check_prompts([*prompts, *args.prompt, *_lines(args.prompts, args.encoding)])
    if args.table:
        if prompts or len(clips) > 1:
            raise ValueError("--table has the prompts: name beside it only the folder of its clips")
        return table_requests(args.table, Path(clips[0]) if clips else None, args.encoding)
    if not clips:
        given = f" (nothing is there of the name {shorten(prompts[0], 60)})" if prompts else ""
        raise ValueError(f'no clip to score{given}: try `t2v-turbo score clip.mp4 "a red circle moves right"`')
    asked = (clip_requests(Path(clip), tuple(prompts), len(clips) == 1, args.encoding) for clip in clips)
    return [request for requests in asked for request in requests]


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


# --- what is told ---------


def tell(results: list[ScoreResult], rewards: dict[str, Reward], args: argparse.Namespace) -> int:
    """Print or write the scores; returns the exit code.

    Raises:
        ValueError: if there is no score.
    """
    scored, broken = ([one for one in results if bool(one.problem) == wrong] for wrong in (False, True))
    if not scored:
        first = named(broken[0])
        raise ValueError(first if len(broken) == 1 else f"none of {len(broken)} clips can be scored: {first}; …")
    infos = {name: reward.info for name, reward in rewards.items()}
    if args.out:
        write_csv(args.out, results, list(infos))
    if args.json:
        text = json.dumps(as_json(results, infos), indent=1, ensure_ascii=False)
        print(text if can_print(text) else json.dumps(as_json(results, infos), indent=1))
    elif args.out:
        print(f"{args.out}: {len(scored)} scores, mean {', '.join(map(' '.join, means(scored).items()))}")
    else:
        print(as_text(scored, infos))
    if broken:
        clips = len({one.name for one in results})
        lines = [f"{len(broken)} of {clips} clips cannot be scored:", *map(named, broken)]
        print("\n  ".join(lines), file=sys.stderr)
    return EXIT_PARTLY if broken else 0
