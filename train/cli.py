"""The command line: ``t2v-turbo <command>``. Every command lives in a module of its own with a ``register``."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from functools import partial
from typing import NoReturn

from ..core.command_line import exit_code

# Imported only when named, so that `--help` and a wrong command answer at once.
COMMANDS = {
    "generate": "prompts to videos",
    "demo": "the whole pipeline on the embedded world, with a report",
    "preprocess": "videos and captions to training records",
    "distill": "training records to a few-step student",
    "download": "fetch the published checkpoints",
    "doctor": "whether this machine can do it, and what to mend",
    "score": "how well clips go with prompts, by reward models",
    "rewards": "rewards in distillation: what they cost, what each does",
    "motion": "motion of reference clips: extract, look at, measure",
    "shapes": "render, train and measure the embedded world",
}
VERBOSE = {"-v", "--verbose"}


class Parser(argparse.ArgumentParser):
    """Tells a wrong option in one line, like every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see `{self.prog} --help`")


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser with the options of ``command`` alone, or of every command with None."""
    parser = Parser(
        prog="t2v-turbo",
        description="Fast text-to-video by consistency distillation: sample, distil, measure.",
        epilog="`t2v-turbo <command> --help` explains a command with examples. Try `t2v-turbo demo` first.",
    )
    parser.add_argument(*sorted(VERBOSE), action="store_true", help="tell more; tracebacks in full")
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, summary in COMMANDS.items():
        if command in (None, name):
            importlib.import_module(f".commands.{name}", __package__).register(subparsers)
        else:
            subparsers.add_parser(name, help=summary, add_help=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for a user's mistake, 130 when interrupted; see ``exit_code``."""
    argv = sys.argv[1:] if argv is None else argv
    named = next((word for word in argv if not word.startswith("-")), "")
    return exit_code(partial(run, argv, named), f"t2v-turbo {named}".strip(), not VERBOSE.isdisjoint(argv))


def run(argv: list[str], named: str) -> int | None:
    args = build_parser(named).parse_args(argv)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    return args.func(args)
