"""``t2v-turbo motion transfer``: does a clip take over the motion of a reference?"""

from __future__ import annotations

import argparse

from ....core.families import SHAPES as FAMILY
from ....core.tables import markdown
from ...experiments.loading import load_measured
from ...experiments.motion_transfer import Guidance, Sampling, direction_gain, run_pairs, transfer_table
from ...results import KeptRows
from ..options import add_experiment_arguments, check_experiment, device_and_dtype

ABOUT = """\
Does a clip take over the direction of a reference? References such as "a blue square moves left" guide prompts of
another colour and shape that name no direction, "a red circle"; each is sampled with and without guidance from the same
noise. The oracle tells how often the direction is the reference's, by chance a quarter; intervals are of 95 %.
"""


def register(actions) -> None:
    transfer = actions.add_parser("transfer", help="guided against unguided, with intervals", description=ABOUT)
    transfer.add_argument("--strength", type=float, help="lambda (default: the family's)")
    transfer.add_argument("--tau", type=float, default=FAMILY.tau, help="guided part of the sampling (default: 0.5)")
    transfer.add_argument("--pairs", type=int, default=100, help="references and prompts (default: 100)")
    add_experiment_arguments(transfer)
    transfer.set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    strength = FAMILY.motion_strength if args.strength is None else args.strength
    check_experiment(args, [strength], [args.tau])
    if not strength:
        raise ValueError("--strength 0 guides nothing: it is compared with 0, so give the lambda of interest")
    model, made_from = load_measured(FAMILY.name, None, args.checkpoints, *device_and_dtype(args))
    kept = KeptRows(args.out / "rows.json")
    unguided, guided = (Guidance(one, args.tau) for one in (0.0, strength))
    results = run_pairs(model, [unguided, guided], args.pairs, sampling_of(args), kept, made_from)
    print(markdown(transfer_table(results)))
    gain, low, high = (100 * value for value in direction_gain(results[unguided], results[guided]))
    print(f"direction: guidance adds {gain:.1f} points (95 % interval {low:.1f} to {high:.1f}, {args.pairs} pairs)")


def sampling_of(args: argparse.Namespace) -> Sampling:
    return Sampling(args.steps or 50, args.guidance, args.method, args.grid, args.seed)
