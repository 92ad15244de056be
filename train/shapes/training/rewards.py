"""Trains the embedded family's reward models: a CLIP, a preference model and a video-text model.

All three are of the published classes, learn from rendered clips alone.
"""

from __future__ import annotations

import os
import string
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ....core.networks.config import TextConfig
from ....core.networks.text import TextEncoder
from ....core.networks.vae import VideoVAE
from ....core.rewards import Reward, RewardInfo, build_reward
from ....core.rewards.models.config import BERTConfig, CLIPConfig, InternVideo2Config, VideoTowerConfig, ViTConfig
from ...training.trainer import Trainer, TrainerConfig, seeded
from ..world.captions import all_words
from ..world.scene import WORLD
from .contrastive import START_SCALE, PreferenceLoss, alternatives, draw_batch, some_caption, views
from .corruptions import Damage, damages, mild
from .patch_labels import HintedMatchLoss, patch_labels
from .text_tower import ONE_COLOR

VISION = ViTConfig(image_size=WORLD, patch_size=8, width=96, heads=4, layers=4, mlp_ratio=3.0)
INTERNVIDEO2 = InternVideo2Config(
    vision=VideoTowerConfig(
        image_size=WORLD, patch_size=16, width=96, heads=4, layers=4, mlp_dim=288, frames=8,
        pool_heads=4, pool_dim=64, layer_scale=0.5,
    ),
    text=BERTConfig(width=64, heads=4, layers=3, mlp_dim=256, max_positions=40, context_length=40),
    embed_dim=64,
)  # fmt: skip

# Highest deviation of the noise in the latents of frames that are still to be matched with their caption.
LATENT_NOISE = 0.4
# Share of a video reward's mixed batches that are single frames, which it scores too, by other position embeddings.
SINGLE_FRAMES = 0.5


def _info(name: str, kind: str, tokens: int) -> RewardInfo:
    return RewardInfo(f"{name} of Moving Shapes", kind, "cosine", (-1, 1), tokens, "Apache-2.0", "weights/shapes")


def clip_config(name: str, text: TextConfig) -> CLIPConfig:
    """The embedded sizes of "clip" or "hps", which differ in the framing alone, as the published ones do."""
    return CLIPConfig(vision=VISION, text=text, square={"clip": "squash", "hps": "pad"}[name])


def new_clip(name: str, text: TextEncoder, folder: Path, seed: int = 0) -> Reward:
    """ "clip" or "hps" with a fresh image tower and a copy of the family's text tower.

    Args:
        folder: where the text tower's merges lie.
    """
    title = {"clip": "CLIP", "hps": "Preference model"}[name]
    config = clip_config(name, text.config)
    with seeded(seed):
        reward = build_reward(name, config, folder, _info(title, "image", text.config.context_length))
    reward.text.load_state_dict(text.state_dict())
    # The text tower's own training ended with a sharp scale; a fresh image tower learns from a soft one.
    nn.init.constant_(reward.logit_scale.data, START_SCALE)
    return reward


def new_internvideo2(folder: Path, seed: int = 0) -> Reward:
    """The video-text model with fresh weights; its vocabulary is written to ``folder``."""
    size = write_vocabulary(folder / INTERNVIDEO2.text.vocabulary)
    config = replace(INTERNVIDEO2, text=replace(INTERNVIDEO2.text, vocab_size=size))
    info = _info("InternVideo2", "video", config.text.context_length)
    with seeded(seed):
        return build_reward("internvideo2", config, folder, info)


def write_vocabulary(path: Path) -> int:
    """Write the family's WordPiece vocabulary: every word of the world whole, all other words by letters.

    Returns:
        Its size.
    """
    letters = string.ascii_lowercase + string.digits
    pieces = [*letters, *(f"##{letter}" for letter in letters), *string.punctuation]
    words = [word for word in all_words() if word not in pieces]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *words]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return len(tokens)


def _numpy(generator: torch.Generator) -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))


def train_match(reward: Reward, vae: VideoVAE, config: TrainerConfig, folder: Path, clips: int) -> Reward:
    """Train (or resume) in ``folder`` by matching clips and captions; return the averaged model.

    An image reward sees one frame of each clip; a video reward mostly sees all and learns the words for motion.

    Args:
        vae: some frames are seen through it.
        clips: size of the data set.
    """
    video = reward.info.kind == "video"

    def losses(prepared: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rng = _numpy(generator)
        one_color = video and rng.random() < ONE_COLOR
        single = not video or (not one_color and rng.random() < SINGLE_FRAMES)
        drawn = draw_batch(config.batch_size, clips, config.seed + 3, one_color, rng)
        # Motion is asked for where there is one colour: all motions in all colours are too many captions for a step.
        choices, right = alternatives([clip.scene for clip in drawn], one_color, rng)
        captions = [some_caption(clip, rng) for clip in drawn]
        frames = views(drawn, single, vae, generator, LATENT_NOISE)
        labels = patch_labels(drawn, frames, reward.config.vision.patch_size)
        frames, device = mild(frames, generator), trainer.device
        return prepared(frames.to(device), captions, choices, right.to(device), labels.to(device))

    with seeded(config.seed + 1):  # other weights than the reward's own
        model = HintedMatchLoss(reward)
    trainer = Trainer(config, model, losses, folder, title=reward.info.name)
    return trainer.run().reward


def train_preference(reward: Reward, vae: VideoVAE, config: TrainerConfig, folder: Path, clips: int) -> Reward:
    """Train (or resume) in ``folder`` on pairs of a clean frame and the same frame damaged; return the averaged model.

    Args:
        reward: an image reward that already knows the captions.
        vae: some frames are seen through it, and damages of latents are decoded by it.
        clips: size of the data set.
    """
    kinds = list(damages(vae).values())

    def losses(prepared: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rng = _numpy(generator)
        drawn = draw_batch(config.batch_size, clips, config.seed + 3, False, rng, clean=True)
        choices, right = alternatives([clip.scene for clip in drawn], False, rng)
        captions = [some_caption(clip, rng) for clip in drawn]
        good = views(drawn, True, vae, generator)
        bad = _damaged(good, kinds, generator)
        device = trainer.device
        return prepared(good.to(device), bad.to(device), captions, choices, right.to(device))

    trainer = Trainer(config, PreferenceLoss(reward), losses, folder, title=reward.info.name)
    return trainer.run().reward


def _damaged(frames: Tensor, kinds: list[Damage], generator: torch.Generator) -> Tensor:
    """Single frames (B, 1, 3, H, W), each with a damage of a random kind."""
    bad = frames[:, 0].clone()
    which = torch.randint(len(kinds), (len(bad),), generator=generator)
    for kind in which.unique():
        bad[which == kind] = kinds[kind](bad[which == kind], generator)
    return bad[:, None]
