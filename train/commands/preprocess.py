"""``t2v-turbo preprocess``: videos and captions to training records."""

from __future__ import annotations

import argparse

from ..config import load_config
from ..preprocess import preprocess, share_of_work
from .options import add_config_arguments

EXAMPLES = """\
examples:
  t2v-turbo preprocess videos=clips/ records=records/            clips/x.mp4 with its caption in clips/x.txt or x.json
  t2v-turbo preprocess videos=clips/ records=records/ records_per_clip=4 limit=1000
  t2v-turbo preprocess --config paper videos=webvid.csv video_column="{page_dir}/{videoid}.mp4" text_column=name \\
      video_root=/data/webvid records=records/webvid
  t2v-turbo preprocess videos=clips/ records=records/ motion=true      with motion scores, for distill motion=true
  t2v-turbo preprocess videos=clips/ records=records/ motion=true motion_grid=200      as exactly as the authors
  accelerate launch -m t2v_turbo.train preprocess --config paper …    one process per GPU, the shards are shared out
  t2v-turbo preprocess --rank 2 --world-size 8 …                      the same by hand, on any machine

A motion score (Algorithm 1) pulls the teacher's step towards the motion of the clip itself. It is made for the draws in
the noisiest fraction tau, unless the clip's column use_motion_guide says no. One inversion of a clip serves all of its
records_per_clip draws; `t2v-turbo motion cost` compares grids of the inversion by cost and exactness.

Videos are decoded by PyAV. reader=decord (pip install decord) takes decord for the clips that it reads alike: it is no
faster on most, and lets clips with damaged frames pass, which PyAV refuses. Records tell which reader they are of.

Stopped at any moment, the same command goes on with the shards that are missing. A clip that cannot be used is named
with the reason in <records>/skipped.jsonl.
"""


def register(subparsers) -> None:
    parser = subparsers.add_parser(
        "preprocess",
        help="videos and captions to training records",
        description="Encode clips, noise them, ask the teacher, and write records in WebDataset shards (Algorithm 1).",
    )
    parser.add_argument("--rank", type=int, help="number of this process (default: the launcher's, else 0)")
    parser.add_argument("--world-size", type=int, help="number of processes (default: the launcher's, else 1)")
    add_config_arguments(parser, "preprocess", EXAMPLES)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    config = load_config("preprocess", args.config, args.settings)
    rank, world = share_of_work(args.rank, args.world_size)
    summary = preprocess(config, rank, world)
    print(
        f"{config.records}: wrote {summary.records} records of {summary.clips} clips, skipped {summary.skipped} clips"
        f" ({summary.evaluations / max(summary.records, 1):.3g} UNet evaluations per record)"
    )
    if summary.guided:
        print(
            f"{summary.guided} of them have a motion score ({summary.guided_evaluations / summary.guided:.3g} UNet"
            " evaluations per guided record)"
        )
    if summary.total is None:
        print("shards of other processes are still missing; the last process to end completes the set")
    else:
        print("complete: {} records; {} clips skipped, see skipped.jsonl".format(*summary.total))
    return 0
