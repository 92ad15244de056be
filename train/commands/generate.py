"""``t2v-turbo generate``: prompts to videos, with a student in a few steps or with its teacher."""

from __future__ import annotations

import argparse
import math
import os
import re
from pathlib import Path

import torch

from ...core.checkpoints.lora import split_strength
from ...core.device import WIDE_PRECISIONS, pick_dtype
from ...core.diffusion.guidance import COMBINATIONS
from ...core.diffusion.schedule import TRAIN_TIMESTEPS, solver_grid
from ...core.families import FAMILIES, resolve_family
from ...core.motion.prior import MotionPrior
from ...core.pipeline import Pipeline, load
from ...core.rewards import RewardMixture, load_mixture
from ...core.video import FORMATS, WRITABLE_SUFFIXES, check_rate, check_writable
from ..generation import ClipMaker, GenerateRequest
from ..scoring.best_of import read_weights
from ..seeds import seeds_from
from ..timing import stage, tell_peak, tell_start
from .options import add_device_arguments, device_and_dtype, seed_value
from .prompts import read_prompts

# A teacher's sampling must begin in noise: the least timestep, of 0..999, of its first step.
NOISY = 900

EXAMPLES = """\
examples:
  t2v-turbo generate "a red circle moves right" --steps 4 --seed 0 --out out.mp4
  t2v-turbo generate "a red circle" "a blue cross" --out clips/        one file a prompt, named after it
  t2v-turbo generate --prompts prompts.txt --out clips/ --format gif   one prompt a line
  t2v-turbo generate "a red circle" --out frames/%05d.png              numbered pictures in a folder that is there
  t2v-turbo generate "a red circle moves right" --teacher --steps 50   the undistilled model, 50 DDIM steps
  t2v-turbo generate "a corgi surfing" --model videocrafter2           after `t2v-turbo download`
  t2v-turbo generate "a corgi surfing" --model videocrafter2 --student v1      T2V-Turbo v1, a LoRA of the teacher
  t2v-turbo generate "a corgi surfing" --model videocrafter2 --lora style.safetensors:0.8
  t2v-turbo generate "a red circle" --teacher --motion prior.safetensors     with the motion of a reference clip
  t2v-turbo generate "a red circle moves right" --student mg --motion-strength 500     motion guidance built in
  t2v-turbo generate "a red circle" --best-of 8 --reward hps           eight seeds, the clip of the highest reward
  t2v-turbo generate "a red circle" --best-of 8 --reward hps,clip,internvideo2 --keep-all

Motion guidance comes in two kinds. The teacher follows the motion of a reference clip: give it the prior that
`t2v-turbo motion extract` made, with --teacher --motion. A student that was distilled with motion guidance (mg) needs
no reference; --motion-strength and --tau set its condition and are by default what it was distilled with.

--best-of N samples the seeds SEED, SEED+1, …, scores each clip, writes the best and prints the scores of all; the file
keeps the winner's seed, which makes the same clip again without --best-of, and its scores. Several rewards count with
the paper's weights (hps 0.2, clip 0.2, internvideo2 0.5), or with yours: --reward hps:1,pickscore:0.05. With --keep-all
the others lie beside it, as NAME-seed5.mp4. A clip that holds NaN ends the command. The scores are of the clip before
it is encoded; `t2v-turbo score` of the written mp4 differs from them slightly.

The written mp4 carries the prompt, the seed and all settings as tags; a gif carries them as its comment, a webp in its
EXIF description, every PNG as text. An mp4 and PNG pictures take 0.01 to 240 frames per second, a gif and a webp 50 at
most, as players show faster ones at 10. The same command and seed write the same file, byte for byte.
"""


def register(subparsers) -> None:
    parser = subparsers.add_parser(
        "generate",
        help="prompts to videos",
        description="Generate videos from prompts, in 1 to 16 steps with a distilled student.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompt", nargs="*", help="what to show; several prompts make several videos")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="text file with one prompt a line")
    parser.add_argument("--encoding", help="of the file of prompts, such as latin-1 (default: UTF-8)")
    parser.add_argument("--model", default="shapes", help=f"{' or '.join(sorted(FAMILIES))} (default: shapes)")
    parser.add_argument("--student", default="default", help="student by name (mg, no-mg, v1) or checkpoint file")
    parser.add_argument("--teacher", action="store_true", help="sample the teacher with DDIM and CFG instead")
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:STRENGTH]", help="merge a LoRA (default: 1); repeatable"
    )
    parser.add_argument("--checkpoints", type=Path, metavar="DIR", help="folder of the model's files")
    parser.add_argument("--steps", type=int, help="network evaluations (default: 4; teacher: 50)")
    parser.add_argument("--guidance", type=float, help="guidance scale, 1 = none (default: the model's own)")
    parser.add_argument("--motion", type=Path, metavar="PRIOR", help="motion for the teacher to follow, a .safetensors")
    parser.add_argument("--motion-strength", type=float, metavar="LAMBDA", help="0 = none (default: the model's own)")
    parser.add_argument("--tau", type=float, help="guided part of the sampling (default: the student's own, or 0.5)")
    parser.add_argument("--combination", choices=COMBINATIONS, help="how --motion enters a step (default: released)")
    parser.add_argument("--seed", type=seed_value, default=0, help="same seed, same video; counts up over prompts")
    parser.add_argument("--best-of", type=int, metavar="N", help="sample N seeds and keep the clip of highest reward")
    parser.add_argument("--reward", metavar="NAME[:WEIGHT],…", help="what is best, for --best-of (default: hps)")
    parser.add_argument("--keep-all", action="store_true", help="with --best-of: write the other clips too")
    parser.add_argument("--frames", type=int, help="number of frames (default: the model's own)")
    parser.add_argument("--height", type=int, help="pixels, a multiple of 8 (default: the model's own)")
    parser.add_argument("--width", type=int, help="pixels, a multiple of 8 (default: the model's own)")
    parser.add_argument("--fps", type=float, help="frames per second of the file (default: the model's own)")
    parser.add_argument("--out", default="out.mp4", metavar="FILE|FOLDER/", help="a folder for several prompts")
    parser.add_argument("--format", choices=FORMATS, default="mp4", help="of files in a folder (default: mp4)")
    add_device_arguments(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    tell_start()
    prompts = read_prompts(args.prompt, args.prompts, args.encoding)
    check_settings(args)
    targets = output_files(prompts, args.out, args.format)
    if args.fps is not None:
        check_rate(args.fps, targets[0].suffix, "--fps ")
    device, dtype = device_and_dtype(args)
    request = request_of(args)
    judges = load_judges(args, device) if args.best_of else None
    with stage("load the model", device):
        model = load_model(args, device, dtype)
    maker = ClipMaker(model, request.settled(model))
    count = args.best_of or 1
    for i, (prompt, target) in enumerate(zip(prompts, targets)):
        seeds = seeds_from(args.seed + i * count, count)
        if judges:
            print(maker.write_best(target, judges, prompt, seeds))
        else:
            maker.write(target, maker.sample(prompt, seeds[0]), prompt, seeds[0])
        print(target)
    tell_peak(device)
    return 0


def request_of(args: argparse.Namespace) -> GenerateRequest:
    same = ("steps", "guidance", "frames", "height", "width", "fps", "motion_strength", "tau", "keep_all")
    prior = {"prior": MotionPrior.load(args.motion), "prior_file": args.motion.name} if args.motion else {}
    combination = args.combination or "released"
    return GenerateRequest(**{name: getattr(args, name) for name in same}, combination=combination, **prior)


def load_model(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Pipeline:
    loras = [split_strength(lora) for lora in args.lora]
    return load(args.model, None if args.teacher else args.student, args.checkpoints, device, dtype, loras)


def check_settings(args: argparse.Namespace) -> None:
    """Refuse out-of-range settings before a model is loaded."""
    limit = 1000 if args.teacher else 200
    if args.steps is not None and not 1 <= args.steps <= limit:
        raise ValueError(f"--steps {args.steps} is outside 1..{limit}: use 4 to 16 for a student, 50 for a teacher")
    if args.teacher and args.steps is not None:
        check_grid(args.steps)
    if args.guidance is not None and not 1 <= args.guidance <= 100:
        raise ValueError(f"--guidance {args.guidance:g} is outside 1..100: 1 is no guidance, 7.5 is usual")
    check_motion_settings(args)
    check_best_of(args)


def check_grid(steps: int) -> None:
    """Refuse a teacher's steps whose grid leaves the noisiest timesteps out, as the clip begins in pure noise."""
    start = int(solver_grid(steps)[-1])
    if start < NOISY:
        divisor = max(n for n in range(1, steps) if TRAIN_TIMESTEPS % n == 0)
        raise ValueError(
            f"--steps {steps} would begin at timestep {start} of {TRAIN_TIMESTEPS - 1}, where a clip is no longer pure "
            f"noise: use {divisor}, which divides {TRAIN_TIMESTEPS}"
        )


def check_motion_settings(args: argparse.Namespace) -> None:
    """Refuse combinations of the motion options that mean nothing, before a model is loaded."""
    if args.motion and not args.teacher:
        raise ValueError(
            f"--motion {args.motion} needs --teacher: a student cannot follow a reference clip; one that was distilled "
            "with motion guidance (--student mg) takes --motion-strength alone"
        )
    if args.motion_strength and args.teacher and not args.motion:
        raise ValueError(
            f"--motion-strength {args.motion_strength:g} with --teacher needs --motion and a prior, which "
            "`t2v-turbo motion extract clip.mp4` makes from a reference clip"
        )
    if args.tau is not None and args.teacher and not args.motion:
        raise ValueError(f"--tau {args.tau:g} with --teacher needs --motion: without a prior nothing is guided")
    if args.combination and not args.motion:
        raise ValueError(f"--combination {args.combination} needs --teacher --motion: it is how a prior is followed")
    if args.motion_strength is not None and not 0 <= args.motion_strength < math.inf:
        raise ValueError(f"--motion-strength {args.motion_strength:g} must be 0 or more: 500 is usual, 0 is none")
    if args.tau is not None and not 0 <= args.tau <= 1:
        raise ValueError(f"--tau {args.tau:g} is outside 0..1: 0.5 guides the noisier half of the sampling")


def names_folder(out: str, prompts: int) -> bool:
    """Whether ``out`` is a folder: it is there, ends like one, or has no suffix, or none of a clip for many prompts."""
    if out.endswith(("/", os.sep)) or Path(out).is_dir():
        return True
    suffix = Path(out).suffix.lower()
    return not suffix or (prompts > 1 and suffix not in WRITABLE_SUFFIXES)


def output_files(prompts: list[str], out: str, suffix: str) -> list[Path]:
    """Where each prompt's video goes: ``out`` itself for one prompt, else files in the folder ``out``.

    Raises:
        VideoError: if a file cannot be written there.
    """
    if not names_folder(out, len(prompts)):
        if len(prompts) > 1:
            raise ValueError(f"--out {out} names one file for {len(prompts)} prompts: name a folder")
        if Path(out).suffix.lower() not in WRITABLE_SUFFIXES:
            raise ValueError(
                f"--out {out}: cannot write '{Path(out).suffix}'; use {' or '.join(WRITABLE_SUFFIXES)}, or {out}/ for "
                "a folder"
            )
        return [check_writable(out)]
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    slugs = [re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "clip" for prompt in prompts]
    if suffix == "png":
        return [_numbered_pictures(out / f"{i:03d}-{slug}") for i, slug in enumerate(slugs)]
    return [check_writable(out / f"{i:03d}-{slug}.{suffix}") for i, slug in enumerate(slugs)]


def _numbered_pictures(folder: Path) -> Path:
    """The name for the pictures of a clip in a folder of its own."""
    folder.mkdir(exist_ok=True)
    return check_writable(folder / "%05d.png")


def check_best_of(args: argparse.Namespace) -> None:
    """Refuse options of the contest that mean nothing, before a model is loaded."""
    if args.best_of is None and (args.reward is not None or args.keep_all):
        raise ValueError("--reward and --keep-all choose among several clips: say how many with --best-of 8")
    if args.best_of is not None and args.best_of < 1:
        raise ValueError(f"--best-of {args.best_of} must be 1 or more: 4 to 16 are usual")


def load_judges(args: argparse.Namespace, device: torch.device) -> RewardMixture:
    """The rewards that ``--reward`` names, of the model's family.

    Raises:
        ValueError: for a reward that is unknown, or whose file is missing or damaged.
    """
    weights = read_weights("hps" if args.reward is None else args.reward)
    dtype = pick_dtype(args.dtype, device, WIDE_PRECISIONS)
    options = {"device": device, "dtype": dtype, "folder": args.checkpoints}
    return load_mixture(weights, resolve_family(args.model).name, **options)
