"""The video UNet as the network of a MODEL."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ....core.diffusion.consistency import student_model
from ....core.diffusion.ddim import Denoiser
from ....core.diffusion.guidance import cfg_model
from ....core.networks.layers import fold_frames, unfold_frames
from ....core.networks.unet import UNet3D

# Key of our settings among a MODEL's transformer_options: keyword arguments of ``FramesAsBatch.denoiser``.
SETTINGS = "t2v_turbo"


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
