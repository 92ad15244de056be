"""``t2v-turbo distill``: training records to a few-step student."""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import PartialState

from ..config import load_config
from ..distill import STUDENT, distill
from ..distill_rewards import MEANING
from ..preprocess import share_of_work
from .options import add_config_arguments

EXAMPLES = """\
examples:
  t2v-turbo distill records=records/ out=runs/student                  the embedded family, on a CPU
  t2v-turbo distill records=records/short,records/dense out=runs/student steps=1000 lr=1e-4
  t2v-turbo distill --config paper records=https://example.org/records out=runs/vc2
  accelerate launch -m t2v_turbo.train distill --config paper records=… out=…      all GPUs, several machines
  t2v-turbo distill records=records/ out=runs/mg motion=true           with motion guidance, lambda as an input
  t2v-turbo distill records=… out=runs/liked rewards.models=hps,clip,internvideo2     with rewards, the paper's weights
  t2v-turbo distill records=… out=runs/liked rewards.models=hps:0.3,clip:0.1 rewards.every=2 rewards.ramp=100
  t2v-turbo distill records=… out=runs/liked rewards.models=clip init=runs/student/student.safetensors
  t2v-turbo generate "a red circle moves right" --student runs/student/student.safetensors

motion=true wants records with motion scores (`t2v-turbo preprocess … motion=true`): the solver's step then follows the
motion of real clips, by motion_strength (lambda) in the noisiest fraction tau of the timesteps. The same records make
the paper's other variant with motion=false.

Stopped at any moment, the same command goes on from the newest checkpoint, and ends with the same weights as a run
without a stop: bit by bit on a CPU, and on a GPU with deterministic=true, which image rewards do not allow. <out> holds
student.safetensors (averaged weights, renewed at every checkpoint), stats.jsonl, tensorboard/ and checkpoints/.

Rewards score a few frames of the student's prediction, on samples with short captions alone. `t2v-turbo rewards cost`
tells their time and memory. """ + MEANING


def register(subparsers) -> None:
    parser = subparsers.add_parser(
        "distill",
        help="training records to a few-step student",
        description="Train a student by consistency distillation on records of `t2v-turbo preprocess` (Algorithm 2).",
    )
    add_config_arguments(parser, "distill", EXAMPLES)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    config = load_config("distill", args.config, args.settings)
    if config.rewards.models and not args.verbose and share_of_work(None, None)[0] == 0:
        print(MEANING)  # which --verbose shows in the log
    distill(config)
    if PartialState().is_main_process:
        print(Path(config.out) / STUDENT)
    return 0
