"""``t2v-turbo demo``: the whole pipeline on the embedded world, in minutes on a CPU, with a report to look at."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..demo import DemoRequest, demo
from .options import request_from


def register(subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="the whole pipeline on the embedded world, with a report",
        description="Render a small data set, preprocess it, distil a student from the shipped teacher, sample both "
        "side by side, score them with the oracle, and write an HTML report. Takes a few minutes on two CPU cores; "
        "stopped at any moment, the same command goes on where it was.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of everything (default: demo)")
    parser.add_argument("--clips", type=int, default=256, help="clips to render (default: 256)")
    parser.add_argument("--steps", type=int, default=300, help="training steps of the student (default: 300)")
    parser.add_argument("--prompts", type=int, default=24, help="prompts to score on (default: 24)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    print(f"\nThe report is {demo(request_from(args, DemoRequest)).resolve()}")
    return 0
