"""``t2v-turbo rewards``: what rewards in distillation cost, and what each of them does."""

from __future__ import annotations

import argparse

from .experiments import reward_ablation, reward_cost

EXAMPLES = """\
examples:
  t2v-turbo rewards cost                                   memory and time of a step, embedded sizes, random weights
  t2v-turbo rewards cost --model videocrafter2 --dtype bf16 --gradient-checkpointing --device cuda
  t2v-turbo rewards table records=records/short,records/dense out=runs/rewards steps=300
  t2v-turbo rewards table --subsets none,hps+clip --prompts 100 records=… out=runs/rewards steps=300

`t2v-turbo score` scores finished clips. `rewards <action> --help` explains an action.
"""


def register(subparsers) -> None:
    parser = subparsers.add_parser(
        "rewards",
        help="rewards in distillation: what they cost, what each does",
        description="Rewards in distillation: what a step costs with them, and what every subset of them does.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)
    for module in (reward_cost, reward_ablation):
        module.register(actions)
