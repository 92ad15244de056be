"""``t2v-turbo motion cost``: what cheaper motion scores cost, and how exact they are."""

from __future__ import annotations

import argparse
from pathlib import Path

from ....core.families import TAU
from ...config import check_inversion_grid
from ...experiments.loading import load_measured
from ...experiments.motion_cost import CostPlan, compare_settings
from ...results import KeptRows
from ..options import (
    KEPT,
    add_model_arguments,
    check_minimum,
    check_tau,
    device_and_dtype,
    request_from,
    seed_value,
)

ABOUT = """\
Compare ways to make motion scores for training: UNet evaluations per guided record, beside the cosine between the
scores and those of the authors' scheme (200 steps, an inversion for every record). By default on rendered clips, of
both styles in turn. One inversion may serve several records of a clip; that changes its cost only.
"""


def register(actions) -> None:
    cost = actions.add_parser("cost", help="cost and exactness of cheaper motion scores", description=ABOUT)
    cost.add_argument("--clips", type=int, default=64, help="clips (default: 64; 8 give a first idea)")
    cost.add_argument("--videos", help="folder or table of videos, as for preprocess (default: rendered clips)")
    cost.add_argument("--grids", type=int, nargs="+", default=[200, 50, 25, 10], help="steps of the inversion")
    cost.add_argument("--records", type=int, nargs="+", default=[1, 4], help="records per clip and inversion, K")
    cost.add_argument("--tau", type=float, default=TAU, help="guided part of the timesteps (default: 0.5)")
    cost.add_argument("--seed", type=seed_value, default=0)
    cost.add_argument("--gradient-checkpointing", action="store_true", help="a third of the memory, 1.5 x the time")
    cost.add_argument("--out", type=Path, default=Path("runs/motion/cost.json"), help=f"figures; {KEPT}")
    add_model_arguments(cost)
    cost.set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    for name, values in (("--clips", [args.clips]), ("--records", args.records)):
        check_minimum(name, values, 1)
    for steps in args.grids:
        check_inversion_grid(steps, "--grids ")
    check_tau([args.tau])
    plan = request_from(args, CostPlan, grids=tuple(args.grids), records=tuple(args.records))
    model, made_from = load_measured(args.model, None, args.checkpoints, *device_and_dtype(args))
    print(compare_settings(model, plan, KeptRows(args.out), made_from))
