"""Our networks as what ComfyUI's native nodes accept: MODEL, CLIP and VAE.

Everywhere in ComfyUI a clip is a batch of frames: latents (F, 4, h, w), unscaled; images (F, H, W, 3) in 0..1.
"""

from __future__ import annotations

from ....core.pipeline import Pipeline
from ...host import host
from .model import SETTINGS, FramesAsBatch, model_settings
from .text import ClipText
from .vae import FrameVAE

__all__ = ["SETTINGS", "ClipText", "FrameVAE", "FramesAsBatch", "model_settings", "native_parts"]


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
        settings |= {"motion": model.motion_strength, "tau": model.tau}
    native.model_options["transformer_options"][SETTINGS] = settings
    return native, ClipText(model.text, precision), FrameVAE(model.vae, precision)
