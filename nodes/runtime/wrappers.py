"""Our networks as what ComfyUI's native nodes accept: MODEL, CLIP and VAE.

Everywhere in ComfyUI a clip is a batch of frames: latents (F, 4, h, w), unscaled; images (F, H, W, 3) in 0..1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import torch
from torch import Tensor, nn

from ...core.diffusion.consistency import student_model
from ...core.diffusion.ddim import Denoiser
from ...core.diffusion.guidance import cfg_model
from ...core.networks.layers import fold_frames, unfold_frames
from ...core.networks.text import TextEncoder
from ...core.networks.unet import UNet3D
from ...core.networks.vae import VideoVAE
from ...core.pipeline import Pipeline
from ..host import host
from ..inputs import MOTION_TAU

# Key of our settings among a MODEL's transformer_options: keyword arguments of ``FramesAsBatch.denoiser``.
SETTINGS = "t2v_turbo"


def native_parts(model: Pipeline, precision: str) -> tuple:
    """A loaded model as (MODEL, CLIP, VAE)."""
    for part in (model.unet, model.vae, model.text):
        part.eval().requires_grad_(False)
    network = FramesAsBatch(model.unet, model.vae.config.scale_factor, model.family.name)
    native = host().video_model(network, precision)
    settings = {"fps": model.family.fps_condition}
    if model.is_student:
        settings["omega"] = model.family.guidance_scale - 1
    if model.unet.takes_motion:
        settings |= {"motion": model.family.motion_strength, "tau": MOTION_TAU}
    native.model_options["transformer_options"][SETTINGS] = settings
    return native, ClipText(model.text, precision), FrameVAE(model.vae, precision)


def model_settings(model_options: dict) -> dict:
    """A copy of a MODEL's settings; nodes change them on ``model.clone()``."""
    return dict(model_options["transformer_options"].get(SETTINGS, {}))


class FramesAsBatch(nn.Module):
    """The video UNet behind the face of an image UNet, whose batch is the frames of one clip.

    Args:
        latent_scale: the network's latents are ComfyUI's times this.
        family: name of the model family.
    """

    def __init__(self, unet: UNet3D, latent_scale: float, family: str):
        super().__init__()
        self.unet = unet
        self.latent_scale = latent_scale
        self.family = family

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def is_student(self) -> bool:
        return self.unet.takes_guidance

    def denoiser(self, context: Tensor, settings: dict) -> Denoiser:
        """The noise prediction for ``context`` (B, L, D); settings: see ``consistency.student_model``."""
        if self.is_student:
            return student_model(self.unet, context, **settings)
        return cfg_model(self.unet, context, context, scale=1, fps=settings.get("fps", 8))

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, transformer_options: dict, control=None, **_
    ) -> Tensor:
        """Predict the noise for one or more conditions.

        Args:
            x: (n·F, C, h, w), the clip once for each of the n conditions.
            timesteps: (n·F,).
            context: (n·F, L, D), each condition's repeated for every frame.
            transformer_options: holds the list ``cond_or_uncond`` of length n, and our settings.
            control: what a ControlNet adds.

        Raises:
            ValueError: for what nodes want of an image network, and has no effect here.
        """
        refuse_patches(transformer_options, control)
        frames = x.shape[0] // len(transformer_options["cond_or_uncond"])
        context = self.check_context(context)[::frames]
        predict = self.denoiser(context, transformer_options.get(SETTINGS, {}))
        return fold_frames(predict(unfold_frames(x, frames), timesteps[::frames]))

    def check_context(self, context: Tensor, name: str = "positive") -> Tensor:
        """The context itself; ``name`` is that of the node's input, for the message."""
        width = self.unet.config.context_dim
        if context.shape[-1] != width:
            raise ValueError(
                f"{name}: the prompt is {context.shape[-1]} numbers wide, but this model takes {width}; "
                "encode it with the CLIP of the same T2V-Turbo Loader"
            )
        return context


def refuse_patches(options: dict, control) -> None:
    """Refuse a ControlNet, and what nodes have put into a MODEL's ``transformer_options`` for layers of other networks.

    Raises:
        ValueError: naming it.
    """
    parts = (options.get("patches"), options.get("patches_replace"), options.get("wrappers", {}).get("diffusion_model"))
    names = [name for part in parts if part for name in part] + ["control"] * bool(control)
    if names:
        raise ValueError(
            f"model: a node before the sampler reaches into the layers of an image network ({', '.join(names)}), which "
            "this video network does not have; take that node away"
        )


class NativePart:
    """A part of which native nodes may want more than it has; they get a sentence then."""

    WORKS_WITH = ""

    def __getattr__(self, name: str):
        raise AttributeError(
            f"this part of T2V-Turbo Loader has no '{name}', which the node asks for; it works with {self.WORKS_WITH}"
        )


class ClipText(NativePart):
    """The text encoder as a CLIP: what CLIPTextEncode calls."""

    WORKS_WITH = "CLIP Text Encode"

    def __init__(self, text: TextEncoder, precision: str):
        self.text = text
        self.patcher = host().patcher(text, "text", precision)

    def tokenize(self, text: str, **_) -> Tensor:
        """Token ids (1, 77); a longer prompt is cut."""
        return self.text.tokenize([text])

    @torch.no_grad()
    def encode_from_tokens(self, tokens: Tensor) -> Tensor:
        """Context (1, L, D), fp32."""
        host().load(self.patcher)
        return self.text(tokens).float().to(host().output_device())

    def encode_from_tokens_scheduled(self, tokens: Tensor, **_) -> list:
        """CONDITIONING."""
        return [[self.encode_from_tokens(tokens), {"pooled_output": None}]]


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
