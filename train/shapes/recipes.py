"""How the embedded family was made: one recipe a network, each run by ``t2v-turbo shapes train``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...core import checkpoints
from ...core.config import SHAPES
from ..trainer import TrainerConfig
from . import autoencoder, language, teacher

# Half the size of fp32; 11 bits of mantissa keep every figure of the cards.
STORED = torch.float16


@dataclass(frozen=True)
class Recipe:
    """A network's training settings, how many rendered clips it sees, and the function that runs it."""

    config: TrainerConfig
    clips: int
    run: Callable[[Recipe, Path, Path], None]


def _train_vae(recipe: Recipe, folder: Path, weights: Path) -> None:
    vae = autoencoder.train(SHAPES.vae, recipe.config, folder, recipe.clips)
    checkpoints.save_vae(vae, weights / "vae.safetensors", STORED)


def _train_text(recipe: Recipe, folder: Path, weights: Path) -> None:
    merges = weights / SHAPES.text.merges
    config = replace(SHAPES.text, vocab_size=language.write_merges(merges))
    text = language.train(config, merges, recipe.config, folder, recipe.clips)
    checkpoints.save_text(text, weights / "text.safetensors", STORED)


def _train_teacher(recipe: Recipe, folder: Path, weights: Path) -> None:
    vae = checkpoints.load_vae(weights / "vae.safetensors", SHAPES.vae)
    text = checkpoints.load_text(weights / "text.safetensors", SHAPES.text)

    def export(unet, step: int) -> None:
        checkpoints.save_unet(unet, weights / "teacher.safetensors", STORED, steps=str(step))

    teacher.train(SHAPES.unet, vae, text, recipe.config, folder, recipe.clips, export)


RECIPES = {
    "vae": Recipe(
        TrainerConfig(steps=6000, batch_size=16, lr=8e-4, ema_decay=0.998, precision="bf16", log_every=20),
        clips=40_000,
        run=_train_vae,
    ),
    "text": Recipe(
        TrainerConfig(steps=3000, batch_size=96, lr=1e-3, warmup=200, decay=0.3, ema_decay=0.995, log_every=20),
        clips=16_000,
        run=_train_text,
    ),
    # On two processes of one thread each, which is faster than one of two threads:
    # OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 --no-python t2v-turbo shapes train teacher
    "teacher": Recipe(
        TrainerConfig(
            steps=5600, batch_size=16, lr=1e-3, warmup=500, decay=0.25, ema_decay=0.9995,
            precision="bf16", compile=True, log_every=20, save_every=500,
        ),
        clips=24_000,
        run=_train_teacher,
    ),
}  # fmt: skip


def train(network: str, folder: Path, weights: Path, steps: int | None = None) -> None:
    """Run (or resume) the recipe of ``network`` in ``folder`` and write its weights to the folder ``weights``.

    Raises:
        ValueError: if there is no recipe of that name.
    """
    if network not in RECIPES:
        raise ValueError(f"no recipe for '{network}'; there are {', '.join(RECIPES)}")
    recipe = RECIPES[network]
    if steps is not None:
        recipe = replace(recipe, config=replace(recipe.config, steps=steps))
    recipe.run(recipe, Path(folder), Path(weights))
