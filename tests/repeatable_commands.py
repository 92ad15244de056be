"""Run by test_repeatable.py in processes of its own: every command that trains, in small, and what each left.

    python repeatable_commands.py GIVEN FOLDER

GIVEN holds clips and a family's files. Prints {command: {file: hash of its tensors or bytes}} as JSON.
"""

import contextlib
import hashlib
import json
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import conftest
import numpy
import torch
from safetensors import safe_open

from t2v_turbo.core.checkpoints import networks
from t2v_turbo.core.checkpoints.locations import PACKAGED_WEIGHTS
from t2v_turbo.core.families import SHAPES
from t2v_turbo.core.networks.unet import UNet3D
from t2v_turbo.train import cli
from t2v_turbo.train.shapes.training import recipes
from t2v_turbo.train.training.trainer import newest_checkpoint

# A teacher small enough for many runs, with dropout, which is random too.
TINY = replace(SHAPES.unet, model_channels=16, channel_mult=(1, 1), head_channels=8, temporal_dropout=0.2)
PREPROCESS = {
    "preprocess": ["workers=1", "precision=no"],
    "preprocess motion": ["motion=true", "motion_grid=2", "motion_batch=2", "precision=no"],
    "preprocess seed": ["seed=1", "precision=no"],
}
DISTILL = {
    "distill": [],
    "distill seed": ["seed=1"],
    "distill motion": ["motion=true"],
    "distill motion seed": ["motion=true", "seed=1"],
    "distill rewards": ["rewards.models=hps,clip,internvideo2", "rewards.samples=all", "rewards.batch_size=1"],
    "distill ema": ["target=ema", "target_decay=0.5", "ema_decay=0.5", "motion=true"],
    "distill accumulate": ["accumulate=2", "ema_decay=null", "prefetch=true"],
}


def family(folder: Path) -> None:
    """The embedded family with a tiny teacher of fixed weights."""
    shutil.copytree(PACKAGED_WEIGHTS / "shapes", folder)
    networks.save_unet(conftest.randomize(UNet3D(TINY), 0), folder / "teacher.safetensors")


def command(*arguments: str) -> None:
    # As a fresh process would begin; what came before left the global generators where its own seed put them.
    torch.seed(), numpy.random.seed(), random.seed()
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the hashes
        assert cli.main(list(arguments)) == 0, arguments


def content(path: Path) -> str:
    """Hash of what a file holds. In safetensors, names and metadata come in any order."""
    digest = hashlib.sha256()
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            digest.update(repr(sorted((file.metadata() or {}).items())).encode())
            for name in sorted(file.keys()):
                value = file.get_tensor(name).contiguous()
                digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
                digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    else:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def contents(folder: Path) -> dict[str, str]:
    return {path.name: content(path) for path in sorted(folder.iterdir()) if path.is_file()}


def preprocessed(root: Path, given: Path) -> dict[str, dict]:
    found = {}
    for name, settings in PREPROCESS.items():
        records = root / name.replace(" ", "-")
        command(
            "preprocess", f"videos={given}/clips", f"records={records}", f"model.folder={given}/family", "batch_size=4",
            "records_per_clip=2", "clips_per_shard=3", "solver_steps=4", "model.device=cpu", *settings,
        )  # fmt: skip
        found[name] = contents(records)
    return found


def distilled(root: Path, given: Path) -> dict[str, dict]:
    found = {}
    for name, settings in DISTILL.items():
        out = root / name.replace(" ", "-")
        command(
            "distill", f"records={root}/preprocess-motion", f"out={out}", f"model.folder={given}/family",
            "model.device=cpu", "steps=2", "batch_size=2", "lr=1e-2", "warmup=0", "log_every=1", "precision=no",
            "export_dtype=fp32", *settings,
        )  # fmt: skip
        found[name] = {"student": content(out / "student.safetensors"), **contents(newest_checkpoint(out))}
    return found


def trained(root: Path) -> dict[str, dict]:
    found = {}
    for name, recipe in recipes.RECIPES.items():
        config = replace(recipe.config, steps=2, batch_size=3, precision="no", compile=False, warmup=0)
        recipes.RECIPES[name] = replace(recipe, config=config, clips=4)
        command("shapes", "train", name, "--folder", f"{root}/{name}", "--weights", f"{root}/trained")
        found[f"shapes train {name}"] = {
            **contents(newest_checkpoint(root / name)),
            "reward or network": content(root / "trained" / f"{name}.safetensors"),
        }
    found["shapes train"] = contents(root / "trained")  # with the vocabularies
    return found


if __name__ == "__main__":
    given, root = map(Path, sys.argv[1:])
    print(json.dumps(preprocessed(root, given) | distilled(root, given) | trained(root)))
