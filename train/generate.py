"""``t2v-turbo generate``: prompts to videos, with a student in a few steps or with its teacher."""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..core.config import FAMILIES
from ..core.model import DTYPES, Model, load
from ..core.motion_prior import MotionPrior
from ..core.video import check_writable, to_uint8, write_video

EXAMPLES = """\
examples:
  t2v-turbo generate "a red circle moves right" --steps 4 --seed 0 --out out.mp4
  t2v-turbo generate "a red circle" "a blue cross" --out clips/        one file a prompt, named after it
  t2v-turbo generate --prompts prompts.txt --out clips/ --format gif   one prompt a line
  t2v-turbo generate "a red circle moves right" --teacher --steps 50   the undistilled model, 50 DDIM steps
  t2v-turbo generate "a corgi surfing" --model videocrafter2           after `t2v-turbo download videocrafter2`
  t2v-turbo generate "a red circle" --teacher --motion prior.safetensors     with the motion of a reference clip
  t2v-turbo generate "a red circle moves right" --student mg --motion-strength 500     motion guidance built in

Motion guidance comes in two kinds. The teacher follows the motion of a reference clip: give it the prior that
`t2v-turbo motion extract` made, with --teacher --motion. A student that was distilled with motion guidance (mg) needs
no reference; --motion-strength and --tau set what it was conditioned on.

The written mp4 carries the prompt, the seed and all settings as tags; a gif carries them as its comment.
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
    parser.add_argument("--model", default="shapes", help=f"{' or '.join(sorted(FAMILIES))} (default: shapes)")
    parser.add_argument("--student", default="default", help="student by name (mg, no-mg) or checkpoint file")
    parser.add_argument("--teacher", action="store_true", help="sample the teacher with DDIM and CFG instead")
    parser.add_argument("--checkpoints", type=Path, metavar="DIR", help="folder of the model's files")
    parser.add_argument("--steps", type=int, help="network evaluations (default: 4; teacher: 50)")
    parser.add_argument("--guidance", type=float, help="guidance scale, 1 = none (default: the model's own)")
    parser.add_argument("--motion", type=Path, metavar="PRIOR", help="motion for the teacher to follow, a .safetensors")
    parser.add_argument("--motion-strength", type=float, metavar="LAMBDA", help="0 = none (default: the model's own)")
    parser.add_argument("--tau", type=float, default=0.5, help="guided part of the sampling, from its start on (0.5)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same video; counts up over prompts")
    parser.add_argument("--frames", type=int, help="number of frames (default: the model's own)")
    parser.add_argument("--height", type=int, help="pixels, a multiple of 8 (default: the model's own)")
    parser.add_argument("--width", type=int, help="pixels, a multiple of 8 (default: the model's own)")
    parser.add_argument("--fps", type=float, help="frames per second of the file (default: the model's own)")
    parser.add_argument("--out", type=Path, default=Path("out.mp4"), help="file, or folder for several prompts")
    parser.add_argument("--format", choices=("mp4", "gif"), default="mp4", help="of files in a folder (default: mp4)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, xpu (default: auto)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32", help="precision (default: fp32)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    prompts = read_prompts(args.prompt, args.prompts)
    check_settings(args)
    targets = output_files(prompts, args.out, args.format)
    device = pick_device(args.device)
    prior = MotionPrior.load(args.motion) if args.motion else None
    model = load(
        args.model, None if args.teacher else args.student, args.checkpoints, device=device, dtype=DTYPES[args.dtype]
    )
    for i, (prompt, target) in enumerate(zip(prompts, targets)):
        generate(model, prompt, target, args.seed + i, args, prior)
        print(target)
    return 0


def generate(
    model: Model, prompt: str, target: Path, seed: int, args: argparse.Namespace, prior: MotionPrior | None = None
) -> None:
    """Sample one clip and write it to ``target``."""
    generator = torch.Generator().manual_seed(seed)
    noise = model.noise(1, generator, *clip_size(args, model, prior))
    steps = args.steps or (4 if model.is_student else 50)
    guidance = model.family.guidance_scale if args.guidance is None else args.guidance
    motion = {"motion": args.motion_strength, "tau": args.tau, "prior": prior}
    model.check_motion(args.motion_strength, prior, noise.shape)  # before the progress bar begins
    with tqdm(total=steps, desc=prompt[:40], unit="step", leave=False) as bar:
        latents = model.sample([prompt], noise, steps, guidance, generator, callback=lambda _: bar.update(), **motion)
    frames = to_uint8(model.decode(latents)[0])
    settings = {
        "model": model.family.name,
        "unet": "student" if model.is_student else "teacher",
        "steps": steps,
        "guidance": guidance,
        "size": f"{frames.shape[2]}x{frames.shape[1]}",
        "frames": len(frames),
        "dtype": args.dtype,
        **motion_settings(args, model, prior),
    }
    metadata = {"prompt": prompt, "seed": str(seed), "settings": json.dumps(settings)}
    write_video(target, frames, args.fps or model.family.fps, metadata)


def clip_size(
    args: argparse.Namespace, model: Model, prior: MotionPrior | None
) -> tuple[int | None, int | None, int | None]:
    """Frames, height and width: as given, else those of the prior, else the model's own (None)."""
    given = args.frames, args.height, args.width
    if prior is None:
        return given
    factor = model.vae.config.downsampling
    sizes = prior.size[0], prior.size[1] * factor, prior.size[2] * factor
    return tuple(size if one is None else one for one, size in zip(given, sizes))


def motion_settings(args: argparse.Namespace, model: Model, prior: MotionPrior | None) -> dict:
    """What the file's tags say about motion guidance; {} where there was none."""
    if prior is None and not model.unet.takes_motion:
        return {}
    strength = model.family.motion_strength if args.motion_strength is None else args.motion_strength
    settings = {"motion_strength": strength, "tau": args.tau}
    return settings if prior is None else settings | {"motion": args.motion.name, "motion_source": prior.origin.source}


def read_prompts(prompts: list[str], file: Path | None) -> list[str]:
    """The prompts of the command line and of the file, without empty lines.

    Raises:
        ValueError: if there is none.
    """
    lines = file.read_text(encoding="utf-8").splitlines() if file else []
    found = [prompt.strip() for prompt in [*prompts, *lines] if prompt.strip()]
    if not found:
        raise ValueError('no prompt: write one, such as "a red circle moves right", or name a file with --prompts')
    return found


def check_settings(args: argparse.Namespace) -> None:
    """Refuse out-of-range settings before a model is loaded."""
    limit = 1000 if args.teacher else 200
    if args.steps is not None and not 1 <= args.steps <= limit:
        raise ValueError(f"--steps {args.steps} is outside 1..{limit}: use 4 to 16 for a student, 50 for a teacher")
    if args.fps is not None and not 0 < args.fps <= 240:
        raise ValueError(f"--fps {args.fps:g} is outside 0..240: use the model's own by leaving it out")
    if args.guidance is not None and not 1 <= args.guidance <= 100:
        raise ValueError(f"--guidance {args.guidance:g} is outside 1..100: 1 is no guidance, 7.5 is usual")
    check_motion_settings(args)


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
    if args.motion_strength is not None and not 0 <= args.motion_strength < math.inf:
        raise ValueError(f"--motion-strength {args.motion_strength:g} must be 0 or more: 500 is usual, 0 is none")
    if not 0 <= args.tau <= 1:
        raise ValueError(f"--tau {args.tau:g} is outside 0..1: 0.5 guides the noisier half of the sampling")


def output_files(prompts: list[str], out: Path, suffix: str) -> list[Path]:
    """Where each prompt's video goes: ``out`` itself for one prompt, else files in the folder ``out``.

    Raises:
        VideoError: if a file cannot be written there.
    """
    if out.suffix and not out.is_dir():
        if len(prompts) > 1:
            raise ValueError(f"--out {out} names one file for {len(prompts)} prompts: name a folder")
        return [check_writable(out)]
    out.mkdir(parents=True, exist_ok=True)
    slugs = [re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "clip" for prompt in prompts]
    return [check_writable(out / f"{i:03d}-{slug}.{suffix}") for i, slug in enumerate(slugs)]


def pick_device(name: str) -> torch.device:
    """The device that ``name`` means; "auto" takes an accelerator if there is one.

    Raises:
        ValueError: if torch cannot use it here.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"--device {name} cannot be used here ({reason}); use cpu or auto") from error
