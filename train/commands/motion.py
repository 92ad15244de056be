"""``t2v-turbo motion``: the motion of reference clips: extract it, look at it, measure what guidance by it does."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...core.command_line import typed_text
from ...core.diffusion.guidance import guided_timesteps
from ...core.diffusion.schedule import TRAIN_TIMESTEPS
from ...core.families import TAU
from ...core.motion.inversion import METHODS, inversion_steps
from ...core.motion.prior import MotionPrior
from ...core.pipeline import load
from ...core.text_files import is_unicode
from ..config import check_inversion_grid
from ..motion.priors import PriorRequest, extract_prior, write_preview
from .experiments import compare, cost, memory, sweep, transfer
from .options import add_model_arguments, check_minimum, check_suffix, device_and_dtype, request_from, seed_value

EXAMPLES = """\
examples:
  t2v-turbo motion extract clip.mp4 --caption "a blue square moves left" --out prior.safetensors
  t2v-turbo motion preview prior.safetensors --out prior.png          which frame attends to which, and where
  t2v-turbo generate "a red circle" --teacher --motion prior.safetensors --motion-strength 500 --tau 0.5
  t2v-turbo motion cost --clips 64                      what cheaper inversions cost, and how exact their scores are
  t2v-turbo motion sweep --strength 0 5 50 500 --tau 0.3 0.5 0.7      which lambda and tau suit a model
  t2v-turbo motion transfer --pairs 100                 does a clip take over the direction of a reference?
  t2v-turbo motion compare --students no-mg mg --steps 4 8             what distilling with motion guidance changed
  t2v-turbo motion memory --batch 4                     memory of the score, before and after chunking

The motion is in the temporal attention of the model: which frame every place of a frame looks at. A prior keeps it for
the timesteps that are guided. `motion <action> --help` explains an action.
"""
EXTRACT = """\
Read the motion of a clip into a prior. Consecutive frames from --start on, at the model's frame rate, are cut to the
model's size, encoded, and taken to the noisy timesteps of the sampling that the prior will guide: by DDIM inversion
under the clip's caption (method ddim), or by plain noise (method noise, which spares the inversion and is less exact).
The ComfyUI node T2V-Turbo Motion Prior spreads its frames over the whole clip instead.
"""
PREVIEW = """\
Draw a prior, a row per layer and their mean first. The matrix tells which frame (row) attends to which (column); the
maps tell it at every place of every frame. The colour is the frame attended to, the brightness how much.
"""
# Images that Pillow writes by suffix.
PICTURES = (".png", ".jpg", ".webp")


def register(subparsers) -> None:
    parser = subparsers.add_parser(
        "motion",
        help="motion of reference clips: extract, look at, measure",
        description="Motion guidance: the motion of reference clips, and what guidance by it does.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)
    _register_extract(actions)
    _register_preview(actions)
    for module in (cost, memory, sweep, transfer, compare):
        module.register(actions)


def _register_extract(actions) -> None:
    extract = actions.add_parser("extract", help="read a clip's motion into a prior", description=EXTRACT)
    extract.add_argument("clip", type=Path, help="video file")
    extract.add_argument(
        "--caption", type=typed_text, default="", help="what the clip shows; a good caption makes a good inversion"
    )
    extract.add_argument("--out", type=Path, default=Path("prior.safetensors"), help="file (prior.safetensors)")
    extract.add_argument("--start", type=float, default=0.0, help="seconds into the clip (default: 0)")
    extract.add_argument("--frames", type=int, help="number of frames (default: the model's own)")
    extract.add_argument("--height", type=int, help="pixels, a multiple of 8 (default: the model's own)")
    extract.add_argument("--width", type=int, help="pixels, a multiple of 8 (default: the model's own)")
    extract.add_argument("--steps", type=int, default=50, help="steps of the sampling that it will guide (default: 50)")
    extract.add_argument("--tau", type=float, default=TAU, help="part of that sampling that it will guide (0.5)")
    extract.add_argument("--at", type=int, nargs="+", metavar="T", help="timesteps 0..999 instead of --steps and --tau")
    extract.add_argument("--method", choices=METHODS, default="ddim", help="inversion, or plain noise (default: ddim)")
    extract.add_argument("--grid", type=int, default=50, help="steps of the inversion; 200 are the authors' (50)")
    extract.add_argument("--seed", type=seed_value, default=0, help="of the noise of --method noise")
    add_model_arguments(extract)
    extract.set_defaults(func=run_extract)


def _register_preview(actions) -> None:
    preview = actions.add_parser("preview", help="draw a prior", description=PREVIEW)
    preview.add_argument("prior", type=Path, help="file of `t2v-turbo motion extract`")
    preview.add_argument("--out", type=Path, help="picture, .png, .jpg or .webp (default: PRIOR.png)")
    preview.add_argument("--at", type=int, metavar="T", help="timestep, the nearest one is drawn (default: the last)")
    preview.set_defaults(func=run_preview)


def run_extract(args: argparse.Namespace) -> None:
    request = prior_request(args)
    prior = extract_prior(load(args.model, None, args.checkpoints, *device_and_dtype(args)), request)
    prior.save(args.out)
    frames, height, width = prior.size
    print(
        f"{args.out}: {frames} frames of {width}x{height} latents, {len(prior.layers)} layers at {len(prior.timesteps)}"
        f" timesteps ({prior.evaluations} UNet evaluations)"
    )


def prior_request(args: argparse.Namespace) -> PriorRequest:
    """What the options of ``extract`` ask for; settings out of range are refused before a model is loaded."""
    check_suffix("--out", args.out, (".safetensors",))
    if not is_unicode(args.caption):
        raise ValueError(f"--caption {args.caption!a} holds bytes that are no text here; write it in UTF-8")
    sizes = {"--start": (args.start, 0), "--height": (args.height, 8), "--width": (args.width, 8)}
    for name, (value, minimum) in sizes.items():
        check_minimum(name, [] if value is None else [value], minimum)
    if not 1 <= args.steps <= TRAIN_TIMESTEPS:
        raise ValueError(f"--steps {args.steps} is outside 1..{TRAIN_TIMESTEPS}: use those of the sampling, 50")
    timesteps = args.at or guided_timesteps(args.steps, args.tau)
    if not timesteps:
        raise ValueError(f"--tau {args.tau:g} of {args.steps} steps guides none of them: raise --tau")
    if args.method == "ddim":
        check_inversion_grid(args.grid, "--grid ")
    inversion_steps(timesteps, args.method, args.grid)  # checks the timesteps
    return request_from(args, PriorRequest, timesteps=tuple(timesteps))


def run_preview(args: argparse.Namespace) -> None:
    prior = MotionPrior.load(args.prior)
    out = args.out or args.prior.with_suffix(".png")
    check_suffix("--out", out, PICTURES)
    write_preview(prior, args.at, out)
    print(out)
