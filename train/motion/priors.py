"""Motion priors of video files: ``t2v-turbo motion extract`` and ``preview``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ...core.diffusion.schedule import SOLVER_STEPS
from ...core.files import replacing
from ...core.motion.preview import preview
from ...core.motion.prior import MotionPrior, Origin, make_prior
from ...core.pipeline import Pipeline
from ...core.text_files import name_text
from ...core.video import to_uint8
from ..data.clips import read_frames
from ..seeds import generator_for


@dataclass(frozen=True)
class PriorRequest:
    """A clip and how its motion is read.

    Attributes:
        timesteps: 0..999, those of the sampling that the prior will guide.
        start: seconds into the clip.
        frames, height, width: of the clip that is read, in pixels; None = the model's own.
        method: "ddim" or "noise", see ``prior_latents``.
        grid: steps of the inversion.
        seed: of the noise of the method "noise".
    """

    clip: Path
    timesteps: tuple[int, ...]
    caption: str = ""
    start: float = 0.0
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    method: str = "ddim"
    grid: int = SOLVER_STEPS
    seed: int = 0


def extract_prior(model: Pipeline, request: PriorRequest) -> MotionPrior:
    """The motion prior of a video file, with a progress bar.

    Raises:
        ValueError: for a size that the model cannot have, or timesteps outside the grid.
        VideoError: if the clip is broken or too short.
    """
    frames = read_clip(model, request)
    family = model.family
    about = request.caption, name_text(request.clip), request.method, request.grid
    origin = Origin(family.name, *about, family.fps_condition)
    with torch.no_grad(), tqdm(desc="motion prior", unit="evaluation") as bar:

        def show(info: dict) -> None:
            bar.total = info["steps"]
            bar.update()

        x0 = model.vae.encode(frames[None].float() / 255).to(model.device).float()
        context = model.encode([request.caption])
        generator = generator_for("motion prior", request.seed)
        return make_prior(
            model.unet, x0, context, request.timesteps, model.schedule, origin, generator=generator, callback=show
        )


def read_clip(model: Pipeline, request: PriorRequest) -> Tensor:
    """The frames of the request, uint8 (F, 3, H, W), at the model's frame rate."""
    size = request.frames, request.height, request.width
    frames, height, width = model.noise(1, torch.Generator(), *size).shape[2:]  # checks the size
    factor = model.vae.config.downsampling
    return read_frames(request.clip, frames, model.family.fps, height * factor, width * factor, request.start)


def write_preview(prior: MotionPrior, timestep: int | None, path: Path) -> None:
    """Write ``preview`` as a picture, whole or not at all; the suffix is one that Pillow writes."""
    picture = to_uint8(preview(prior, timestep).permute(2, 0, 1)[None])[0]
    with replacing(path) as partial:
        Image.fromarray(picture).save(partial)
