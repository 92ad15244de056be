"""``t2v-turbo rewards cost``: memory and time of a training step with rewards."""

from __future__ import annotations

import argparse
from dataclasses import replace

from ....core.device import WIDE_PRECISIONS
from ....core.families import FAMILIES, FamilyConfig, resolve_family
from ....core.rewards import PAPER_WEIGHTS
from ...experiments.reward_cost import Workload, compare_rows
from ..options import check_minimum

ABOUT = """\
Measure the forward and backward pass of a training step without rewards, with rewards on frames decoded all at once or
in chunks, and with reward models that recompute their activations. Networks have the family's sizes and random weights;
nothing is loaded. Memory is the peak beyond weights and inputs: of the allocator on cuda, elsewhere of all tensors that
are alive. Time is the median over interleaved repeats, on a CPU in CPU seconds.
"""


def register(actions) -> None:
    cost = actions.add_parser("cost", help="memory and time of a training step with rewards", description=ABOUT)
    cost.add_argument("--model", default="shapes", help=f"sizes: {' or '.join(sorted(FAMILIES))} (default: shapes)")
    cost.add_argument("--rewards", default=",".join(PAPER_WEIGHTS), help="reward models (default: the paper's three)")
    cost.add_argument("--channels", type=int, help="of the UNet, for sizes in between (default: the family's)")
    cost.add_argument("--frames", type=int, help="of a clip (default: the family's)")
    cost.add_argument("--height", type=int, help="pixels, a multiple of 8 (default: the family's)")
    cost.add_argument("--width", type=int, help="pixels, a multiple of 8 (default: the family's)")
    cost.add_argument("--batch", type=int, default=3, help="samples of the step (default: 3)")
    cost.add_argument("--scored", type=int, default=1, help="samples that rewards score (default: 1)")
    cost.add_argument("--chunk", type=int, default=1, help="frames decoded at once in the chunked rows (default: 1)")
    cost.add_argument("--repeats", type=int, default=5, help="of every row (default: 5)")
    cost.add_argument("--gradient-checkpointing", action="store_true", help="of the student")
    cost.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    cost.add_argument(
        "--dtype",
        choices=("auto", *WIDE_PRECISIONS),
        default="auto",
        help="of rewards, and of autocast; auto = bf16 on cards that have it, else fp32 (default: auto)",
    )
    cost.set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    for name in ("batch", "scored", "chunk", "repeats"):
        check_minimum(f"--{name}", [getattr(args, name)], 1)
    sizes = sized_family(args), args.batch, args.scored
    workload = Workload(*sizes, args.rewards, args.gradient_checkpointing, args.device, args.dtype)
    print(compare_rows(workload, args.chunk, args.repeats))


def sized_family(args: argparse.Namespace) -> FamilyConfig:
    """The family with the sizes that were asked for.

    Raises:
        ValueError: for an unknown family, or a size that the networks cannot have.
    """
    family = resolve_family(args.model)
    given = {name: getattr(args, name) for name in ("frames", "height", "width") if getattr(args, name)}
    for name in given.keys() - {"frames"}:
        if given[name] % family.vae.downsampling:
            raise ValueError(f"--{name} {given[name]} is no multiple of {family.vae.downsampling}: crop it")
    if args.channels:
        if args.channels % family.unet.norm_groups or args.channels % family.unet.head_channels:
            raise ValueError(f"--channels {args.channels}: use {family.unet.model_channels}, or a simple part of it")
        given["unet"] = replace(family.unet, model_channels=args.channels)
    return replace(family, **given)
