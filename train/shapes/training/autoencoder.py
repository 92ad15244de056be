"""Trains the embedded family's KL autoencoder on single frames of many rendered clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from ....core.networks.config import VAEConfig
from ....core.networks.vae import VideoVAE
from ...training.trainer import Trainer, TrainerConfig, seeded
from ..world.rendering import render
from ..world.scene import DIRECTIONS, WORLD, sample_scene

# Weight of the KL term (per pixel value): only keeps the latents bounded.
KL_WEIGHT = 1e-6
# Weight of the gradients' L1, which keeps the outlines sharp.
EDGE_WEIGHT = 1.0
START_LOGVAR = -6.0


def render_frames(count: int, seed: int) -> Tensor:
    """One random frame each of ``count`` clips, half of them of either style: uint8 (count, 3, 64, 64)."""
    rng = np.random.default_rng((seed, 77))
    frames = np.empty((count, WORLD, WORLD, 3), np.uint8)
    for i in tqdm(range(count), desc="frames", unit="frame"):
        scene = sample_scene(rng, ("short", "dense")[i % 2])
        t = int(rng.integers(8))
        dx, dy = DIRECTIONS[scene.direction]
        scene = replace(scene, x=scene.x + dx * scene.speed * t, y=scene.y + dy * scene.speed * t)
        frames[i] = render(scene, frames=1, rng=rng)[0]
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


class AutoencoderLoss(nn.Module):
    """L1 on pixels and on their gradients, plus a faint KL term."""

    def __init__(self, vae: VideoVAE):
        super().__init__()
        self.vae = vae
        # A fresh posterior of deviation 1 drowns the means in noise for hundreds of steps; start it narrow.
        nn.init.constant_(vae.model.quant_conv.bias[vae.config.latent_channels :].data, START_LOGVAR)

    def forward(self, pixels: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """pixels (N, 3, H, W) in -1..1, noise shaped like the latents."""
        posterior = self.vae.model.encode(pixels)
        decoded = self.vae.model.decode(posterior.mean + posterior.std * noise).float()
        l1 = F.l1_loss(decoded, pixels)
        edge = sum(F.l1_loss(a, b) for a, b in zip(_edges(decoded), _edges(pixels)))
        kl = posterior.kl().mean() / pixels[0].numel()
        return {"loss": l1 + EDGE_WEIGHT * edge + KL_WEIGHT * kl, "l1": l1, "edge": edge, "kl": kl}


def train(vae_config: VAEConfig, config: TrainerConfig, folder: Path, frames: int = 40_000) -> VideoVAE:
    """Train from scratch (or resume) in ``folder`` and return the averaged autoencoder, its scale factor set."""
    with seeded(config.seed):
        model = AutoencoderLoss(VideoVAE(vae_config))
    data = render_frames(frames, config.seed)
    latent_shape = (config.batch_size, vae_config.latent_channels, *[WORLD // vae_config.downsampling] * 2)

    def losses(prepared: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(data), (config.batch_size,), generator=generator)
        pixels = data[rows].float() / 127.5 - 1
        noise = torch.randn(latent_shape, generator=generator)
        return prepared(pixels.to(trainer.device), noise.to(trainer.device))

    trainer = Trainer(config, model, losses, folder, title="autoencoder")
    vae = trainer.run().vae
    return with_unit_variance(vae, data[:512])


@torch.no_grad()
def with_unit_variance(vae: VideoVAE, frames: Tensor) -> VideoVAE:
    """The same autoencoder with the scale factor that gives its latents of ``frames`` (N, 3, H, W) variance 1."""
    vae.config = replace(vae.config, scale_factor=1.0)
    latents = vae.encode(frames[None].float() / 255)
    vae.config = replace(vae.config, scale_factor=round(1 / latents.std().item(), 5))
    return vae
