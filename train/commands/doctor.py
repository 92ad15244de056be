"""``t2v-turbo doctor``: options, the checks they ask for, the report."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from pathlib import Path

HELP = """\
examples:
  t2v-turbo doctor                            everything but full size and network; a CPU takes 15 s and more
  t2v-turbo doctor --quick                    without sampling or video files
  t2v-turbo doctor --device cuda:1            one device alone
  t2v-turbo doctor --full                     also a clip of VideoCrafter2's size on random weights: memory and time
  t2v-turbo doctor --online                   also whether the hub answers
  t2v-turbo doctor --json > report.json       for programs, or to send along with a question

Each line is ok, note (worth knowing), FAIL (a problem) or - (not there, or not looked at). At the end every problem is
named with its remedy. The exit code is 0 without problems and 1 with them. No check can end the command: one that
raises or crashes is a problem of its own, and -v shows its traceback. Nothing is sent anywhere; the report tells
versions, devices, and folders by their paths.

--json prints one object: format (1), ok, problems (their number), checks: a list of name, title, seconds and
findings, each with name, status (ok, warn, fail, skip), value, remedy, and data: numbers in bytes and seconds.
"""


def register(subparsers) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="whether this machine can do it, and what to mend",
        description="Check versions, devices, folders, checkpoints and video files, and sample a clip of the embedded "
        "model on every device in every precision, which is compared with a stored one.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--quick", action="store_true", help="no sampling, no video files: a few seconds")
    scope.add_argument("--full", action="store_true", help="a clip of full size too; on a CPU one step of a small clip")
    parser.add_argument("--online", action="store_true", help="ask the hub too; no other check uses the network")
    parser.add_argument("--device", help="only this one: auto, cpu, cuda, cuda:1, mps, xpu (default: all there are)")
    parser.add_argument("--dtype", choices=("auto", "fp32", "bf16", "fp16"), help="only this precision (default: all)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where `download --folder` put the checkpoints")
    parser.add_argument("--endpoint", help="address of a mirror of the hub, for --online (default: as for `download`)")
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="check this ComfyUI too: version, requirements")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on standard output")
    # Of the whole command line too, where it must stand before the command.
    parser.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="tracebacks in full")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from ..doctor.catalogue import COMFYUI, FULL, ONLINE, QUICK, USUAL
    from ..doctor.findings import Options
    from ..doctor.report import as_json, problems, section, summary
    from ..doctor.running import run_checks

    check_options(args)
    optional = [(args.full, FULL), (args.online, ONLINE), (args.comfyui, COMFYUI)]
    checks = [*(QUICK if args.quick else USUAL), *(check for asked, check in optional if asked)]
    options = Options(args.device, args.dtype, args.folder, args.comfyui, args.endpoint, verbose=args.verbose)
    spell_out_unknown_letters()
    results = []
    for result in run_checks(checks, options):
        results.append(result)
        if not args.json:
            print(section(result), end="\n\n", flush=True)
    print(as_json(results) if args.json else summary(results))
    return 1 if problems(results) else 0


def check_options(args: argparse.Namespace) -> None:
    """Raises: ValueError: for an option that would have no effect."""
    if args.endpoint and not args.online:
        raise ValueError(f"--endpoint {args.endpoint} is of the hub, which is asked with --online alone: add --online")
    if args.dtype and args.quick:
        raise ValueError(f"--dtype {args.dtype} is of clips, which --quick leaves out: leave one of the two out")


def spell_out_unknown_letters() -> None:
    """A terminal may not know every letter of a path or of a message."""
    with contextlib.suppress(AttributeError, io.UnsupportedOperation):
        sys.stdout.reconfigure(errors="backslashreplace")
