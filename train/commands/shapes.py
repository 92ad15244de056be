"""``t2v-turbo shapes``: render, train and measure the embedded world."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ...core.checkpoints.locations import PACKAGED_WEIGHTS
from ...core.checkpoints.networks import load_text, load_vae
from ...core.families import SHAPES
from ...core.pipeline import load
from ...core.rewards import PAPER_WEIGHTS, load_reward
from ...core.video import check_writable, write_video
from .options import seed_value

EXAMPLES = """\
examples:
  t2v-turbo shapes render clips/ --count 100 --style dense    mp4 files with captions
  t2v-turbo shapes oracle                                     how often the oracle itself is right
  t2v-turbo shapes autoencoder                                what the autoencoder costs in the oracle's eyes
  t2v-turbo shapes text                                       how well the text tower tells words apart
  t2v-turbo shapes rewards                                    how well the reward models tell right from wrong
  t2v-turbo shapes table                                      teacher and student by number of steps
  t2v-turbo shapes gallery shapes.gif                         a grid of the student's clips
  t2v-turbo shapes train teacher --steps 8000                 one network's recipe; stop and start it at will
"""


# In the order in which they can be trained.
NETWORKS = "vae, text, teacher, reward_clip, reward_hps, reward_internvideo2"


def register(subparsers) -> None:
    parser = subparsers.add_parser(
        "shapes",
        help="render, train and measure the embedded world",
        description='"Moving Shapes", the embedded world: coloured shapes that move, measured exactly by an oracle.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)
    _register_render(actions)
    _register_oracle(actions)
    _register_autoencoder(actions)
    _register_text(actions)
    _register_rewards(actions)
    _register_table(actions)
    _register_gallery(actions)
    _register_train(actions)


def _register_render(actions) -> None:
    render = actions.add_parser("render", help="write clips as mp4 with captions")
    render.add_argument("folder", type=Path, help="where the clips go; those that exist are kept")
    render.add_argument("--count", type=int, default=100, help="number of clips (default: 100)")
    render.add_argument("--seed", type=seed_value, default=0)
    render.add_argument("--style", choices=("short", "dense"), default="short", help="mixed quality, or clean and fast")
    render.set_defaults(func=run_render)


def _register_oracle(actions) -> None:
    oracle = actions.add_parser("oracle", help="the oracle's own accuracy on rendered clips, clean and degraded")
    oracle.add_argument("--count", type=int, default=500, help="clips per condition (default: 500)")
    oracle.add_argument("--seed", type=seed_value, default=0)
    oracle.set_defaults(func=run_oracle)


def _register_autoencoder(actions) -> None:
    autoencoder = actions.add_parser("autoencoder", help="oracle scores of clips before and after the autoencoder")
    autoencoder.add_argument("--count", type=int, default=200, help="clips (default: 200)")
    autoencoder.add_argument("--seed", type=seed_value, default=999)
    autoencoder.add_argument("--weights", type=Path, help="folder of the family's files (default: the packaged ones)")
    autoencoder.set_defaults(func=run_autoencoder)


def _register_text(actions) -> None:
    text = actions.add_parser("text", help="how far changing one word moves the text tower's output")
    text.add_argument("--weights", type=Path, help="folder of the family's files (default: the packaged ones)")
    text.set_defaults(func=run_text)


def _register_rewards(actions) -> None:
    rewards = actions.add_parser("rewards", help="how well the reward models tell right from wrong on held-out clips")
    rewards.add_argument("--count", type=int, default=256, help="clips (default: 256)")
    rewards.add_argument("--seed", type=seed_value, default=999)
    rewards.add_argument("--only", choices=sorted(PAPER_WEIGHTS), nargs="*", help="only these models")
    rewards.add_argument("--weights", type=Path, help="folder of the family's files (default: the packaged ones)")
    rewards.set_defaults(func=run_rewards)


def _register_table(actions) -> None:
    table = actions.add_parser("table", help="oracle scores of teacher and student by number of steps")
    table.add_argument("--prompts", type=int, default=200, help="fixed prompts (default: 200)")
    table.add_argument("--seed", type=seed_value, default=0)
    table.add_argument("--weights", type=Path, help="folder of the family's files (default: the packaged ones)")
    table.add_argument("--student", default="default", help="student by name or checkpoint file")
    table.add_argument("--steps", type=int, nargs="*", help="only rows with these numbers of steps")
    table.add_argument("--only", choices=("teacher", "student"), help="only this model's rows")
    table.add_argument("--guidance", type=float, help="guidance scale (default: the family's)")
    table.add_argument("--out", type=Path, default=Path("runs/shapes/table.json"), help="scores; a stopped run goes on")
    table.set_defaults(func=run_table)


def _register_gallery(actions) -> None:
    gallery = actions.add_parser("gallery", help="a grid of clips of the first fixed prompts as one clip")
    gallery.add_argument("out", type=Path, help="file to write: .mp4, .gif, .webp, or pictures numbered %%05d.png")
    gallery.add_argument("--rows", type=int, default=3)
    gallery.add_argument("--columns", type=int, default=8)
    gallery.add_argument("--steps", type=int, default=4, help="network evaluations per clip (default: 4)")
    gallery.add_argument("--seed", type=seed_value, default=0)
    gallery.add_argument("--teacher", action="store_true", help="the teacher with DDIM instead of the student")
    gallery.add_argument("--student", default="default", help="student by name or checkpoint file")
    gallery.add_argument("--weights", type=Path, help="folder of the family's files (default: the packaged ones)")
    gallery.set_defaults(func=run_gallery)


def _register_train(actions) -> None:
    train = actions.add_parser("train", help="run the recipe of one network; resumes where it stopped")
    train.add_argument("network", help=f"{NETWORKS} (in this order: later ones need earlier ones)")
    train.add_argument("--folder", type=Path, help="run folder (default: runs/shapes/NETWORK)")
    train.add_argument("--weights", type=Path, default=PACKAGED_WEIGHTS / "shapes", help="where the weights go")
    train.add_argument("--steps", type=int, help="instead of the recipe's; raising it prolongs a run")
    train.set_defaults(func=run_train)


def run_render(args: argparse.Namespace) -> None:
    from ..shapes.world.dataset import write_dataset

    print(write_dataset(args.folder, args.count, args.seed, args.style))


def run_oracle(args: argparse.Namespace) -> None:
    from ..shapes.evaluation import evaluate_oracle

    columns = ("color", "shape", "direction", "speed")
    print_header("condition", columns)
    for name, rates in evaluate_oracle(args.count, args.seed):
        print_rates(name, columns, rates)


def run_autoencoder(args: argparse.Namespace) -> None:
    from ..shapes.evaluation import evaluate_autoencoder

    scores = evaluate_autoencoder(load("shapes", None, args.weights), args.count, args.seed)
    columns = ("color", "shape", "direction", "smoothness", "steadiness", "sharpness")
    print_header("clips", columns)
    for name, row in scores.items():
        print_rates(name, columns, row)
    print(f"mean error per colour value: {scores['decoded']['error']:.2f} of 255")


def run_text(args: argparse.Namespace) -> None:
    from ..shapes.evaluation import evaluate_text

    distances = evaluate_text(load_text(folder_of(args.weights) / "text.safetensors", SHAPES.text))
    print_header("changed word", ["relative distance"])
    for name, distance in distances.items():
        print(f"| {name} | {distance:.2f} |")


def run_rewards(args: argparse.Namespace) -> None:
    from ..shapes.reward_accuracy import accuracy_table, evaluate_reward

    folder = folder_of(args.weights)
    vae = load_vae(folder / "vae.safetensors", SHAPES.vae)
    names = args.only or PAPER_WEIGHTS
    rewards = {name: load_reward(name, folder / f"reward_{name}.safetensors", dtype=torch.float32) for name in names}
    print(accuracy_table({name: evaluate_reward(one, vae, args.count, args.seed) for name, one in rewards.items()}))


def run_table(args: argparse.Namespace) -> None:
    from ..shapes.evaluation import evaluate_table, markdown_table, table_settings

    settings = table_settings(args.steps, args.only and args.only == "student", args.guidance)
    needed = {setting.student for setting in settings}
    models = {student: load("shapes", args.student if student else None, args.weights) for student in needed}
    rows = evaluate_table(models, settings, args.out, args.prompts, args.seed)
    print(markdown_table(rows))
    print(json.dumps({"scores": str(args.out), "prompts": args.prompts, "seed": args.seed}))


def run_gallery(args: argparse.Namespace) -> None:
    from ..shapes.gallery import gallery

    check_writable(args.out)
    model = load("shapes", None if args.teacher else args.student, args.weights)
    frames, prompts = gallery(model, args.rows, args.columns, args.steps, args.seed)
    write_video(args.out, frames, model.family.fps, {"prompts": "; ".join(prompts)})
    print(args.out)


def run_train(args: argparse.Namespace) -> None:
    from ..shapes.training.recipes import train

    train(args.network, args.folder or Path("runs/shapes") / args.network, args.weights, args.steps)


# --- what several actions share ---------


def folder_of(weights: Path | None) -> Path:
    """The folder of the family's files: as given, else the packaged ones."""
    return weights or PACKAGED_WEIGHTS / "shapes"


def print_header(name: str, columns: Sequence[str]) -> None:
    print(f"| {name} | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))


def print_rates(name: str, columns: Sequence[str], rates: Mapping[str, float]) -> None:
    """A row in per cent, seen at once where the next takes long."""
    print(f"| {name} | " + " | ".join(f"{100 * rates[column]:.1f}" for column in columns) + " |", flush=True)
