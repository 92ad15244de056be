"""``t2v-turbo score``: how well clips go with prompts, by reward models; for a person, a script or a whole folder."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ...core.command_line import can_print, typed_text
from ...core.rewards.base import LONG_CAPTIONS
from ...core.text_files import check_encoding
from ..scoring.requests import ENCODING, read_requests
from ..scoring.results import Scores
from ..scoring.rewards import ScoreSettings
from ..scoring.scoring import MOST_FRAMES, score
from ..scoring.tables import as_json, as_text, means
from .options import add_model_arguments, check_suffix, request_from

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
    settings = request_from(args, ScoreSettings)
    check_encoding(args.encoding, ENCODING)
    if args.out:
        check_suffix("--out", args.out, (".csv",))
    requests = read_requests(args.words, args.prompt, args.prompts, args.table, args.encoding)
    scores = score(requests, settings, args.out)
    print(answer(scores, args.out, args.json))
    if not scores.broken:
        return 0
    clips = len({one.name for one in scores.results})
    lines = [f"{len(scores.broken)} of {clips} clips cannot be scored:", *(one.complaint for one in scores.broken)]
    print("\n  ".join(lines), file=sys.stderr)
    return EXIT_PARTLY


def answer(scores: Scores, out: Path | None, as_object: bool) -> str:
    """The scores as JSON or as a table, or what was written to ``out``."""
    if as_object:
        found = as_json(scores.results, scores.infos)
        text = json.dumps(found, indent=1, ensure_ascii=False)
        return text if can_print(text) else json.dumps(found, indent=1)
    if out:
        return f"{out}: {len(scores.scored)} scores, mean {', '.join(map(' '.join, means(scores.scored).items()))}"
    return as_text(scores.scored, scores.infos)
