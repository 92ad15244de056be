"""``t2v-turbo rewards table``: what every subset of the rewards does."""

from __future__ import annotations

import argparse
from pathlib import Path

from ....core.tables import markdown
from ...config import load_config
from ...experiments.reward_ablation import Judged, chosen_subsets, is_main, subset_rows, table_of, write_page
from ..options import add_config_arguments, check_minimum, seed_value

ABOUT = """\
Distil the same student with every subset of the rewards hps, clip and internvideo2: from the same start (the packaged
student, or init=…), with the same seed, records and number of steps. Each is then sampled on the fixed prompts, which
training never sees, and measured by the oracle and by all three rewards. Prints a table, writes a page with curves.
"""
EXAMPLES = """\
examples:
  t2v-turbo rewards table records=records/short,records/dense out=runs/rewards steps=300
  t2v-turbo rewards table --subsets none,hps,hps+clip --prompts 100 records=… out=runs/rewards
  t2v-turbo rewards table records=… out=runs/rewards rewards.models=hps:1,clip:1,internvideo2:2 lr=1e-4

Settings are those of `t2v-turbo distill`; weights are taken from rewards.models, by default they are the paper's.
Every subset has a run of its own in <out>/<subset>-<settings>, its scores are kept in <out>/rows.json, the page is
<out>/table.html. The same command goes on where it stopped; other settings begin other runs.
"""


def register(actions) -> None:
    table = actions.add_parser("table", help="oracle scores and rewards by subset of the rewards", description=ABOUT)
    table.add_argument("--subsets", help="only these, such as none,hps,hps+clip (default: all eight)")
    table.add_argument("--prompts", type=int, default=200, help="fixed prompts (default: 200)")
    table.add_argument("--sampling-steps", type=int, default=4, help="network evaluations per clip (default: 4)")
    table.add_argument("--sampling-seed", type=seed_value, default=0)
    add_config_arguments(table, "distill", EXAMPLES)
    table.set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    config = load_config("distill", args.config, args.settings)
    for name in ("prompts", "sampling_steps"):
        check_minimum(f"--{name.replace('_', '-')}", [getattr(args, name)], 1)
    judged = Judged(args.prompts, args.sampling_steps, args.sampling_seed)
    rows = subset_rows(config, chosen_subsets(args.subsets), judged)
    if is_main():
        print(markdown(table_of(rows)))
        print(write_page(Path(config.out), rows))
