"""How the embedded family was made: one recipe a network, each run by ``t2v-turbo shapes train``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ....core.checkpoints import networks
from ....core.families import SHAPES
from ....core.networks.vae import VideoVAE
from ....core.rewards import Reward, load_reward, save_reward
from ...training.trainer import TrainerConfig
from . import autoencoder, rewards, teacher, text_tower

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
    networks.save_vae(vae, weights / "vae.safetensors", STORED)


def _train_text(recipe: Recipe, folder: Path, weights: Path) -> None:
    merges = weights / SHAPES.text.merges
    config = replace(SHAPES.text, vocab_size=text_tower.write_merges(merges))
    text = text_tower.train(config, merges, recipe.config, folder, recipe.clips)
    networks.save_text(text, weights / "text.safetensors", STORED)


def _train_teacher(recipe: Recipe, folder: Path, weights: Path) -> None:
    vae = networks.load_vae(weights / "vae.safetensors", SHAPES.vae)
    text = networks.load_text(weights / "text.safetensors", SHAPES.text)

    def export(unet, step: int) -> None:
        networks.save_unet(unet, weights / "teacher.safetensors", STORED, steps=str(step))

    teacher.train(SHAPES.unet, vae, text, recipe.config, folder, recipe.clips, export)


def _train_reward_clip(recipe: Recipe, folder: Path, weights: Path) -> None:
    text = networks.load_text(weights / "text.safetensors", SHAPES.text)
    clip = rewards.new_clip("clip", text, weights, recipe.config.seed)
    _save_reward("clip", rewards.train_match(clip, _vae(weights), recipe.config, folder, recipe.clips), weights)


def _train_reward_hps(recipe: Recipe, folder: Path, weights: Path) -> None:
    clip = load_reward("clip", weights / "reward_clip.safetensors", dtype=torch.float32)
    hps = rewards.new_clip("hps", clip.text, weights, recipe.config.seed)
    hps.load_state_dict(clip.state_dict())
    _save_reward("hps", rewards.train_preference(hps, _vae(weights), recipe.config, folder, recipe.clips), weights)


def _train_reward_internvideo2(recipe: Recipe, folder: Path, weights: Path) -> None:
    video = rewards.new_internvideo2(weights, recipe.config.seed)
    video = rewards.train_match(video, _vae(weights), recipe.config, folder, recipe.clips)
    _save_reward("internvideo2", video, weights)


def _vae(weights: Path) -> VideoVAE:
    return networks.load_vae(weights / "vae.safetensors", SHAPES.vae)


def _save_reward(name: str, reward: Reward, weights: Path) -> None:
    save_reward(reward, name, weights / f"reward_{name}.safetensors", STORED)


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
    # Many small batches: what the image tower waits for is steps, until it begins to see shapes.
    "reward_clip": Recipe(
        TrainerConfig(
            steps=6000, batch_size=32, lr=1e-3, warmup=200, decay=0.3, ema_decay=0.998, log_every=20, save_every=250
        ),
        clips=150_000,
        run=_train_reward_clip,
    ),
    "reward_hps": Recipe(
        TrainerConfig(
            steps=1200, batch_size=32, lr=3e-4, warmup=50, decay=0.5, ema_decay=0.99, log_every=20, save_every=250
        ),
        clips=150_000,
        run=_train_reward_hps,
    ),
    "reward_internvideo2": Recipe(
        TrainerConfig(
            steps=8000, batch_size=24, lr=1e-3, warmup=200, decay=0.3, ema_decay=0.998, log_every=20, save_every=250
        ),
        clips=150_000,
        run=_train_reward_internvideo2,
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
