"""The autoencoder as a VAE."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import torch
from torch import Tensor, nn

from ....core.networks.layers import fold_frames, unfold_frames
from ....core.networks.vae import VideoVAE
from ...host import host
from .part import NativePart


class FrameVAE(NativePart):
    """The autoencoder as a VAE: what VAEDecode, VAEEncode and their tiled kin call."""

    WORKS_WITH = "VAE Decode and VAE Encode, tiled or not"

    def __init__(self, vae: VideoVAE, precision: str):
        self.vae = vae
        self.patcher = host().patcher(vae, "vae", precision)
        self.downscale_ratio = vae.config.downsampling
        self.latent_channels = vae.config.latent_channels

    @torch.no_grad()
    def decode(self, samples: Tensor) -> Tensor:
        """Latents (F, 4, h, w) -> images (F, H, W, 3)."""
        chunk = self._load(samples.shape[-2:])
        latents = unfold_frames(samples, samples.shape[0]) * self.vae.config.scale_factor
        steps = self.vae.evaluations(len(samples), *samples.shape[-2:], chunk)
        with counting(self.vae.model.decoder, steps, "decoding"):
            return self.vae.decode(latents, chunk)[0].movedim(1, -1).float().to(host().output_device())

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Images (F, H, W, 3) -> latents (F, 4, h, w), the posterior's mean; sides are cropped to multiples of 8."""
        frames = crop_to_multiple(pixels[..., :3].movedim(-1, 1), self.downscale_ratio)
        chunk = self._load([side // self.downscale_ratio for side in frames.shape[-2:]])
        steps = self.vae.evaluations(len(frames), *frames.shape[-2:], chunk, self.downscale_ratio)
        with counting(self.vae.model.encoder, steps, "encoding"):
            latents = self.vae.encode(frames[None], chunk=chunk) / self.vae.config.scale_factor
        return fold_frames(latents).float().to(host().output_device())

    def decode_tiled(self, samples: Tensor, tile_x: int = 64, tile_y: int = 64, overlap: int = 16, **_) -> Tensor:
        """``decode`` in tiles, sizes in latent cells: less memory for large frames."""
        with tiling(self.vae, min(tile_x, tile_y), overlap):
            return self.decode(samples)

    def encode_tiled(self, pixels: Tensor, tile_x: int = 512, tile_y: int = 512, overlap: int = 64, **_) -> Tensor:
        """``encode`` in tiles, sizes in pixels."""
        with tiling(self.vae, min(tile_x, tile_y) // self.downscale_ratio, overlap // self.downscale_ratio):
            return self.encode(pixels)

    def spacial_compression_decode(self) -> int:
        return self.downscale_ratio

    def spacial_compression_encode(self) -> int:
        return self.downscale_ratio

    def temporal_compression_decode(self) -> None:
        """None: frames are decoded one by one."""

    def throw_exception_if_invalid(self) -> None:
        """Nothing to complain of: a loader that fails returns no VAE."""

    def _load(self, cells: tuple[int, int]) -> int:
        """Bring the network to its device; the number of frames that fit at once."""
        frame = self.vae.frame_memory(*cells)
        host().load(self.patcher, frame)
        if self.patcher.load_device.type == "cpu":
            return 1  # More are slower there, and Cancel is heard after each.
        return max(1, min(16, host().free_memory(self.patcher.load_device) // frame))


@contextmanager
def counting(module: nn.Module, steps: int, work: str) -> Iterator[None]:
    """A progress bar over ``steps`` evaluations of a network, between which Cancel is heard, while the block runs."""
    progress, number = host().progress(None, steps, work), count()
    hook = module.register_forward_hook(lambda *_: progress({"i": next(number)}))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def tiling(vae: VideoVAE, tile: int, overlap: int) -> Iterator[None]:
    """Tiles of ``tile`` latent cells that overlap by ``overlap``, while the block runs."""
    vae.tile, vae.overlap = tile, overlap
    try:
        yield
    finally:
        vae.tile, vae.overlap = None, 0


def crop_to_multiple(frames: Tensor, factor: int) -> Tensor:
    """The middle of (…, H, W) whose sides are multiples of ``factor``.

    Raises:
        ValueError: if a side is shorter than that.
    """
    height, width = frames.shape[-2:]
    if min(height, width) < factor:
        raise ValueError(f"pixels: {width}x{height} is too small to encode; both sides need {factor} pixels or more")
    top, left = height % factor // 2, width % factor // 2
    return frames[..., top : top + height // factor * factor, left : left + width // factor * factor]
