"""Options and checks that several commands share."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...core.device import PRECISIONS, pick_device, pick_dtype
from ...core.diffusion.schedule import TRAIN_TIMESTEPS
from ...core.families import FAMILIES
from ...core.files import check_folder
from ...core.motion.inversion import METHODS
from ..config import STAGES, check_inversion_grid, describe_settings
from ..seeds import SEEDS

KEPT = "a stopped run goes on from there"

T = TypeVar("T")


def request_from(args: argparse.Namespace, kind: type[T], **given: Any) -> T:
    """A command's dataclass out of its options: every field is that of ``given``, else the option of its name."""
    return kind(**{f.name: given[f.name] if f.name in given else getattr(args, f.name) for f in fields(kind)})


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="shapes", help=f"{' or '.join(sorted(FAMILIES))} (default: shapes)")
    add_place_arguments(parser)


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoints", type=Path, metavar="DIR", help="folder of the model's files")
    add_device_arguments(parser)


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, xpu (default: auto)")
    parser.add_argument(
        "--dtype",
        choices=PRECISIONS,
        default="auto",
        help="precision: bf16, fp16, fp32, or auto: bf16 on cards that have it, fp16 on other cards and mps, fp32 on a "
        "CPU (default: auto)",
    )


def device_and_dtype(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """What ``--device`` and ``--dtype`` mean here."""
    device = pick_device(args.device)
    return device, pick_dtype(args.dtype, device)


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, help="of the sampling (default: 50; student: 4)")
    parser.add_argument("--guidance", type=float, help="guidance scale of the teacher (default: the family's)")
    parser.add_argument("--method", choices=METHODS, default="ddim", help="how references are read (default: ddim)")
    parser.add_argument("--grid", type=int, default=50, help="steps of the references' inversion (default: 50)")
    parser.add_argument("--seed", type=seed_value, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/motion"), help=f"folder of rows.json and pages; {KEPT}")
    add_place_arguments(parser)


def check_experiment(args: argparse.Namespace, strengths: list[float], taus: list[float]) -> None:
    """Refuse settings out of range before a model is loaded."""
    check_minimum("--pairs", [args.pairs], 1)
    check_minimum("--strength", strengths, 0)
    check_tau(taus)
    check_inversion_grid(args.grid, "--grid ")
    if args.steps is not None and not 1 <= args.steps <= TRAIN_TIMESTEPS:
        raise ValueError(f"--steps {args.steps} is outside 1..{TRAIN_TIMESTEPS}: use 50, or 4 for a student")


def check_minimum(name: str, values: list[float], minimum: float) -> None:
    for value in values:
        if not value >= minimum:
            raise ValueError(f"{name} {value:g} is too small: it must be at least {minimum:g}")


def check_tau(taus: list[float]) -> None:
    for tau in taus:
        if not 0 < tau <= 1:
            raise ValueError(f"--tau {tau:g} is outside 0..1, without 0: 0.5 guides the noisier half")


def check_suffix(name: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse a file that cannot be written, before the work.

    Raises:
        ValueError: for another suffix, a folder of that name, or a folder that does not exist or cannot be written to.
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{name} {path}: cannot write '{path.suffix or 'no suffix'}'; use {' or '.join(suffixes)}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{name} {path}: is a folder or in one that does not exist; name a file in a folder that does")
    check_folder(path)


def add_config_arguments(parser: argparse.ArgumentParser, stage: str, examples: str) -> None:
    """``--config`` and ``key=value`` for a stage, and a help text with every setting and its default."""
    parser.add_argument(
        "--config", default="shapes", metavar="FILE", help="YAML file, or shapes or paper (default: shapes)"
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, over those of the file; see below")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    lines = [f"  {name:<24} {about}" for name, about in describe_settings(STAGES[stage])]
    parser.epilog = examples + "\nsettings (with their defaults, over which the file goes):\n" + "\n".join(lines)


def seed_value(text: str) -> int:
    """A seed as the user wrote it, for argparse.

    Raises:
        argparse.ArgumentTypeError: for anything but a whole number in the range.
    """
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < SEEDS:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 0 to {SEEDS - 1}")
    return number
