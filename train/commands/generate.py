"""``t2v-turbo generate``: prompts to videos, with a student in a few steps or with its teacher."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...core.command_line import typed_text
from ...core.diffusion.guidance import COMBINATIONS
from ...core.families import FAMILIES
from ...core.video import FORMATS
from ..data.prompts import read_prompts
from ..generation.generate import generate
from ..generation.request import GenerateRequest
from ..timing import tell_start
from .options import add_device_arguments, request_from, seed_value

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
    parser.add_argument("prompt", nargs="*", type=typed_text, help="what to show; several prompts make several videos")
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
    prompts = tuple(read_prompts(args.prompt, args.prompts, args.encoding))
    student = None if args.teacher else args.student
    for clip in generate(request_from(args, GenerateRequest, prompts=prompts, student=student, loras=tuple(args.lora))):
        if clip.scores:
            print(clip.scores)
        print(clip.path)
    return 0
