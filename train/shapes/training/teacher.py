"""Trains the embedded family's teacher: noise prediction on latents of rendered clips of both styles."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors import safe_open
from torch import Tensor, nn
from tqdm.auto import tqdm

from ....core.checkpoints.networks import save_tensors
from ....core.diffusion.schedule import TRAIN_TIMESTEPS, NoiseSchedule, expand
from ....core.networks.config import UNetConfig
from ....core.networks.text import TextEncoder
from ....core.networks.unet import UNet3D
from ....core.networks.vae import VideoVAE
from ...training.trainer import Trainer, TrainerConfig, no_accelerator, seeded
from ..world.dataset import render_clip

logger = logging.getLogger(__name__)

# Share of samples that see the empty prompt, so that classifier-free guidance has its second half.
EMPTY_PROMPT = 0.1


def cached_latents(vae: VideoVAE, text: TextEncoder, clips: int, seed: int, path: Path) -> dict[str, Tensor]:
    """Latents and captions of ``clips`` rendered clips, half of either style, from ``path`` if it fits, else made.

    Returns:
        latents (N, 4, F, h, w), fp16, sampled from the posterior; tokens (N, 2, 77), int16: short and dense caption.
    """
    made_from = json.dumps({"clips": clips, "seed": seed, "vae": asdict(vae.config), "text": asdict(text.config)})
    if path.exists():
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("made_from") == made_from:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        logger.info("%s was made from other settings: rendering anew", path)
    generator = torch.Generator().manual_seed(seed)
    latents, captions = [], []
    for start in tqdm(range(0, clips, 32), desc="latents", unit="batch"):
        batch = [render_clip(seed, i, ("short", "dense")[i % 2]) for i in range(start, min(start + 32, clips))]
        frames = torch.stack([torch.from_numpy(clip.frames) for clip in batch])  # (N, F, H, W, 3)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            encoded = vae.encode(frames.permute(0, 1, 4, 2, 3).float() / 255, generator, chunk=256)
        latents.append(encoded.half())
        captions += [caption for clip in batch for caption in (clip.short_caption, clip.dense_caption)]
    tokens = text.tokenize(captions).unflatten(0, (-1, 2)).short()
    data = {"latents": torch.cat(latents), "tokens": tokens}
    save_tensors(data, path, {"made_from": made_from})
    return data


def noise_loss(predicted: Tensor, noise: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Squared error of the noise, each sample weighted by 1 / alpha_bar(t): the error of v = alpha·eps − sigma·x0.

    The plain error all but ignores the noisiest timesteps, where motion and composition are decided.
    """
    weight = 1 / schedule.alpha_bar_at(t)
    return (expand(weight, noise) * (predicted.float() - noise) ** 2).mean()


def train(
    unet_config: UNetConfig,
    vae: VideoVAE,
    text: TextEncoder,
    config: TrainerConfig,
    folder: Path,
    clips: int = 60_000,
    export=None,
) -> UNet3D:
    """Train from scratch (or resume) in ``folder`` and return the averaged teacher."""
    with seeded(config.seed):
        unet = UNet3D(unet_config)
    with PartialState(cpu=no_accelerator()).main_process_first():  # the others read what it made
        data = cached_latents(vae.eval(), text.eval(), clips, config.seed + 2, folder / "latents.safetensors")
    schedule, empty = NoiseSchedule(), text.tokenize([""])[0]
    latents, tokens = data["latents"], data["tokens"]

    def losses(prepared: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        n = config.batch_size
        rows = torch.randint(len(latents), (n,), generator=generator)
        which = torch.randint(2, (n,), generator=generator)
        prompts = tokens[rows, which].long()
        prompts[torch.rand(n, generator=generator) < EMPTY_PROMPT] = empty
        t = torch.randint(TRAIN_TIMESTEPS, (n,), generator=generator)
        x0 = latents[rows].float()
        noise = torch.randn(x0.shape, generator=generator)
        x = schedule.add_noise(x0, noise, t)
        with torch.no_grad():
            context = text(prompts)
        device = trainer.device
        predicted = prepared(x.to(device), t.to(device), context.to(device))
        loss = noise_loss(predicted, noise.to(device), t, schedule)
        return {"loss": loss, "noise_mse": (predicted.float() - noise.to(device)).square().mean()}

    trainer = Trainer(config, unet, losses, folder, export, title="teacher")
    return trainer.run()
