"""``t2v-turbo motion compare``: students with and without motion guidance."""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from ....core.tables import markdown
from ...experiments.report import write_report
from ...experiments.student_comparison import (
    INTRODUCTION,
    MAX_STEPS,
    MOTION,
    STILL,
    Plan,
    compare_students,
    load_student,
)
from ...results import KeptRows
from ..options import KEPT, add_place_arguments, check_minimum, check_tau, device_and_dtype, seed_value

ABOUT = """\
Compare students of the embedded world that were distilled with and without motion guidance, as the paper's Table 4
does. All get the same prompts and the same noise; the oracle scores every clip. A table per number of steps holds the
means and the paired differences to the first student with 95 % intervals, and marks those that exclude 0; a second one
is of prompts that ask for no motion. Every batch of clips is kept: the same command goes on where it stopped.
"""


def register(actions) -> None:
    compare = actions.add_parser("compare", help="students with and without motion guidance", description=ABOUT)
    compare.add_argument(
        "--students", nargs="+", default=["no-mg", "mg"], metavar="STUDENT",
        help="names or checkpoint files; the first is what others are compared with (default: no-mg mg)",
    )  # fmt: skip
    compare.add_argument("--prompts", type=int, default=200, help="fixed prompts that ask for motion (default: 200)")
    compare.add_argument("--still", type=int, default=48, help="prompts that ask for no motion (default: 48, 0 = none)")
    compare.add_argument("--seeds", type=int, default=1, help="clips per prompt, each of its own noise (default: 1)")
    compare.add_argument("--steps", type=int, nargs="+", default=[4], help="of the sampling, a table for each (4)")
    compare.add_argument("--strength", type=float, help="lambda (default: what the student was distilled with)")
    compare.add_argument("--tau", type=float, help="guided part of the sampling (default: as the student's lambda)")
    compare.add_argument("--guidance", type=float, help="guidance scale (default: the family's)")
    compare.add_argument("--seed", type=seed_value, default=0)
    compare.add_argument("--out", type=Path, default=Path("runs/motion"), help=f"folder of rows and page; {KEPT}")
    add_place_arguments(compare)
    compare.set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    check_arguments(args)
    where = args.checkpoints, *device_and_dtype(args)
    students = [load_student(name, *where, args.strength, args.tau) for name in args.students]
    kept = KeptRows(args.out / "rows.json")
    told = [f"{one.name}: lambda {one.guidance.strength:g}, tau {one.guidance.tau:g}." for one in students]
    sections = []
    for asks, steps in product((MOTION, STILL), args.steps):
        count = args.prompts if asks == MOTION else args.still
        if count:
            plan = Plan(asks, count, args.seeds, steps, args.guidance, args.seed)
            sections.append(compare_students(students, plan, kept))
            print(f"{sections[-1].title}\n{markdown(sections[-1].table)}\n")
    print(*told, "A star marks differences whose 95 % interval excludes 0.")
    title = "Students with and without motion guidance"
    print(write_report(args.out / "compare.html", title, [*INTRODUCTION, " ".join(told)], sections))


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse settings out of range before a model is loaded."""
    names = args.students
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"--students {' '.join(names)}: name two or more different ones, such as no-mg mg")
    for name, minimum in (("prompts", 1), ("still", 0), ("seeds", 1), ("strength", 0), ("guidance", 1)):
        value = getattr(args, name)
        check_minimum(f"--{name}", [] if value is None else [value], minimum)
    check_tau([] if args.tau is None else [args.tau])
    for steps in args.steps:
        if not 1 <= steps <= MAX_STEPS:
            raise ValueError(f"--steps {steps} is outside 1..{MAX_STEPS}: use 4 to 16 for a student")
