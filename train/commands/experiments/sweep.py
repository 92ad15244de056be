"""``t2v-turbo motion sweep``: which lambda and tau suit a model."""

from __future__ import annotations

import argparse

from ....core.families import SHAPES as FAMILY
from ....core.tables import markdown
from ...experiments.loading import load_measured
from ...experiments.motion_sweep import best, grid, run_prompts, sweep_table, write_sweep
from ...experiments.motion_transfer import run_pairs
from ...results import KeptRows
from ..options import add_experiment_arguments, check_experiment, device_and_dtype
from .transfer import sampling_of

ABOUT = """\
Try every lambda with every tau on the embedded world and let the oracle judge. The teacher follows rendered references
(see transfer), and the energy is measured at every guided step; a student with motion guidance (--student mg) is
sampled on the fixed prompts. Prints a table, writes a page with curves, and keeps every batch of clips: the same
command, or one with more pairs, goes on where it stopped. Other weights begin anew.
"""
# Small clips want small ones: the gradient of a mean grows as its clip shrinks.
STRENGTHS = [0, 5, 15, 50, 150, 500, 1500]


def register(actions) -> None:
    sweep = actions.add_parser("sweep", help="scores over a grid of lambda and tau", description=ABOUT)
    sweep.add_argument("--strength", type=float, nargs="+", default=STRENGTHS, help="of lambda (0 5 15 … 1500)")
    sweep.add_argument("--tau", type=float, nargs="+", default=[FAMILY.tau], help="values of tau (default: 0.5)")
    sweep.add_argument("--student", help="sweep a student by name or checkpoint file instead of the teacher")
    sweep.add_argument("--pairs", type=int, default=40, help="clips per lambda and tau (default: 40)")
    add_experiment_arguments(sweep)
    sweep.set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    check_experiment(args, args.strength, args.tau)
    model, made_from = load_measured(FAMILY.name, args.student, args.checkpoints, *device_and_dtype(args))
    guidances, kept = grid(args.strength, args.tau), KeptRows(args.out / "rows.json")
    if args.student:
        results = run_prompts(model, guidances, args.pairs, args.steps or 4, args.seed, kept, made_from)
    else:
        results = run_pairs(model, guidances, args.pairs, sampling_of(args), kept, made_from)
    print(markdown(sweep_table(results)))
    found = best(results)
    print(f"highest total: lambda {found.strength:g}, tau {found.tau:g}")
    print(write_sweep(args.out / "sweep.html", results))
