"""One clip: sampled, and written with what made it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...core.device import dtype_name
from ...core.motion.prior import MotionPrior
from ...core.pipeline import Pipeline
from ...core.video import to_uint8, write_video
from ..timing import stage
from .motion import MotionSettings
from .request import GenerateRequest


@dataclass(frozen=True)
class ClipSampler:
    """Samples and writes clips as a request says."""

    request: GenerateRequest
    model: Pipeline
    motion: MotionSettings

    @property
    def steps(self) -> int:
        return self.request.steps or (4 if self.model.is_student else 50)

    @property
    def guidance(self) -> float:
        return self.model.family.guidance_scale if self.request.guidance is None else self.request.guidance

    def sample(self, prompt: str, seed: int) -> Tensor:
        """Frames (1, F, 3, H, W) in 0..1, on the CPU.

        Raises:
            ValueError: for a size that the model cannot have, motion guidance that it cannot do, or numbers that are
                not finite.
        """
        model, motion = self.model, self.motion
        generator = torch.Generator().manual_seed(seed)
        noise = model.noise(1, generator, *clip_size(self.request, model, motion.prior))
        model.check_motion(motion.strength, motion.prior, noise.shape)  # before the progress bar begins
        guided = {"motion": motion.strength, "tau": motion.tau, "prior": motion.prior}
        guided["combination"] = motion.combination
        bar = tqdm(total=self.steps, desc=prompt[:40], unit="step", leave=False)
        with stage("encode and sample", model.device), bar:
            latents = model.sample(
                [prompt], noise, self.steps, self.guidance, generator, callback=lambda _: bar.update(), **guided
            )
        with stage("decode", model.device):
            frames = model.decode(latents)
        # A decoder hides infinite latents: its frames are clamped.
        if not (latents.isfinite().all() and frames.isfinite().all()):
            raise ValueError(f"seed {seed}: the clip holds NaN or infinite numbers; try {self.remedy()}")
        return frames

    def remedy(self) -> str:
        """What may keep numbers within their range."""
        strength = self.motion.tags(self.model).get("motion_strength")
        smaller = f"--motion-strength below {strength:g}" if strength else "a smaller --guidance"
        return smaller if self.model.dtype == torch.float32 else f"--dtype fp32, or {smaller}"

    def write(self, target: Path, frames: Tensor, prompt: str, seed: int, **tags: str) -> None:
        """Write frames (1, F, 3, H, W) with the prompt, the seed, all settings and further tags."""
        pixels = to_uint8(frames[0])
        settings = {
            "model": self.model.family.name,
            "unet": "student" if self.model.is_student else "teacher",
            "steps": self.steps,
            "guidance": self.guidance,
            "size": f"{pixels.shape[2]}x{pixels.shape[1]}",
            "frames": len(pixels),
            "dtype": dtype_name(self.model.dtype),
            **self.motion.tags(self.model),
            **({"loras": list(self.model.loras)} if self.model.loras else {}),
        }
        metadata = {"prompt": prompt, "seed": str(seed), "settings": json.dumps(settings)} | tags
        with stage("write the file"):
            write_video(target, pixels, self.request.fps or self.model.family.fps, metadata)


def clip_size(
    request: GenerateRequest, model: Pipeline, prior: MotionPrior | None
) -> tuple[int | None, int | None, int | None]:
    """Frames, height and width: as given, else those of the prior, else the model's own (None)."""
    given = request.frames, request.height, request.width
    if prior is None:
        return given
    factor = model.vae.config.downsampling
    sizes = prior.size[0], prior.size[1] * factor, prior.size[2] * factor
    return tuple(size if one is None else one for one, size in zip(given, sizes))
