"""``t2v-turbo download``: fetch the published checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..download import USUAL, all_files, download_named


def _listing() -> str:
    lines = ((name, file) for name, files in all_files().items() for file in files)
    return "\n".join(f"  {name:<13} {file.repository} {file.file}: {file.about}" for name, file in lines)


EXAMPLES = f"""\
examples:
  t2v-turbo download                          teacher and student with motion guidance, 13 GB
  t2v-turbo download teacher no-mg            these two
  t2v-turbo download hps clip internvideo2    the paper's reward models, for `score --model videocrafter2`
  t2v-turbo download mg hps --folder models/  somewhere else; then give --checkpoints models/ to the other commands

files:
{_listing()}

Reward models go to a folder of their own each, rewards/NAME, below the models folder or below --folder.
"""

DEFAULT_FOLDER = "default: videocrafter2/ in the models folder, which is T2V_TURBO_MODELS or ~/.cache/t2v-turbo"


def register(subparsers) -> None:
    parser = subparsers.add_parser(
        "download",
        help="fetch the published checkpoints",
        description="Fetch the published checkpoints. A stopped download goes on where it was; what arrives is "
        "compared with the hub's check sum and opened once.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(all_files())
    parser.add_argument("files", nargs="*", default=list(USUAL), metavar="FILE", help=f"any of {names}")
    parser.add_argument("--folder", type=Path, help=DEFAULT_FOLDER)
    parser.add_argument("--endpoint", help="address of a mirror of the hub (default: the hub, or HF_ENDPOINT)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    for path in download_named(args.files, args.folder, args.endpoint):
        print(path)
    return 0
