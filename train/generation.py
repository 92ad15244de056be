"""Prompts to files of clips: sampling, the best of several seeds, and what a file tells of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..core.device import dtype_name
from ..core.motion.prior import MotionPrior
from ..core.pipeline import Pipeline
from ..core.rewards import RewardMixture
from ..core.tables import markdown
from ..core.video import to_uint8, write_video
from .scoring.best_of import Candidate, Contest, numbered, tag
from .timing import stage


@dataclass(frozen=True)
class GenerateRequest:
    """What all clips of a command share; None = the model's own.

    Attributes:
        steps: network evaluations.
        guidance: usual guidance scale, 1 = none.
        frames, height, width: of a clip.
        fps: frames per second of the files.
        prior: motion for a teacher to follow.
        prior_file: name of its file.
        motion_strength: lambda in the paper's unit, 0 = none.
        tau: guided part of the sampling, 0..1.
        combination: how a prior enters a step.
        keep_all: of best of several: write the other clips too.
    """

    steps: int | None = None
    guidance: float | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    prior: MotionPrior | None = None
    prior_file: str | None = None
    motion_strength: float | None = None
    tau: float | None = None
    combination: str = "released"
    keep_all: bool = False

    def settled(self, model: Pipeline) -> GenerateRequest:
        """The same with the model's own in place of what is None, but for the size of a clip.

        Raises:
            ValueError: for a tau that this student cannot take.
        """
        if self.tau is not None and model.is_student and not model.unet.takes_motion:
            raise ValueError(
                f"--tau {self.tau:g} needs a student that was distilled with motion guidance (--student mg)"
            )
        guided = model.unet.takes_motion or self.prior is not None
        own = model.motion_strength if guided else None
        return replace(
            self,
            steps=self.steps or (4 if model.is_student else 50),
            guidance=model.family.guidance_scale if self.guidance is None else self.guidance,
            fps=self.fps or model.family.fps,
            motion_strength=own if self.motion_strength is None else self.motion_strength,
            tau=model.tau if self.tau is None else self.tau,
        )

    def size(self, model: Pipeline) -> tuple[int | None, int | None, int | None]:
        """Frames, height and width: as given, else those of the prior, else the model's own (None)."""
        given = self.frames, self.height, self.width
        if self.prior is None:
            return given
        factor = model.vae.config.downsampling
        sizes = self.prior.size[0], self.prior.size[1] * factor, self.prior.size[2] * factor
        return tuple(size if one is None else one for one, size in zip(given, sizes))


@dataclass(frozen=True)
class ClipMaker:
    """Samples and writes clips of a settled request."""

    model: Pipeline
    request: GenerateRequest

    def sample(self, prompt: str, seed: int) -> Tensor:
        """Frames (1, F, 3, H, W) in 0..1, on the CPU.

        Raises:
            ValueError: for motion guidance that the model cannot do, or a clip of NaN.
        """
        model, request, generator = self.model, self.request, torch.Generator().manual_seed(seed)
        noise = model.noise(1, generator, *request.size(model))
        motion = {
            "motion": request.motion_strength, "tau": request.tau, "prior": request.prior,
            "combination": request.combination,
        }  # fmt: skip
        model.check_motion(request.motion_strength, request.prior, noise.shape)  # before the progress bar begins
        bar = tqdm(total=request.steps, desc=prompt[:40], unit="step", leave=False)
        with stage("encode and sample", model.device), bar:
            latents = model.sample(
                [prompt], noise, request.steps, request.guidance, generator, callback=lambda _: bar.update(), **motion
            )
        with stage("decode", model.device):
            frames = model.decode(latents)
        # A decoder hides infinite latents: its frames are clamped.
        if not (latents.isfinite().all() and frames.isfinite().all()):
            raise ValueError(f"seed {seed}: the clip holds NaN or infinite numbers; try {self._remedy()}")
        return frames

    def write(self, target: Path, frames: Tensor, prompt: str, seed: int, **tags: str) -> None:
        """Write frames (1, F, 3, H, W) with the prompt, the seed, all settings and further tags."""
        pixels = to_uint8(frames[0])
        metadata = {"prompt": prompt, "seed": str(seed), "settings": json.dumps(self._settings(pixels))} | tags
        with stage("write the file"):
            write_video(target, pixels, self.request.fps, metadata)

    def write_best(self, target: Path, judges: RewardMixture, prompt: str, seeds: list[int]) -> str:
        """Write the best of the seeds' clips, the others beside it if asked for; returns the scores as a table."""

        def write(path: Path, clip: Candidate) -> None:
            self.write(path, clip.frames, prompt, clip.seed, **tag(clip, judges.weights, seeds))

        others = (lambda clip: write(numbered(target, clip.seed), clip)) if self.request.keep_all else None
        best, table = Contest(judges, partial(self.sample, prompt), others).run(prompt, seeds)
        write(target, best)
        return markdown(table)

    def _settings(self, pixels: np.ndarray) -> dict:
        return {
            "model": self.model.family.name,
            "unet": "student" if self.model.is_student else "teacher",
            "steps": self.request.steps,
            "guidance": self.request.guidance,
            "size": f"{pixels.shape[2]}x{pixels.shape[1]}",
            "frames": len(pixels),
            "dtype": dtype_name(self.model.dtype),
            **self._motion_settings(),
            **({"loras": list(self.model.loras)} if self.model.loras else {}),
        }

    def _motion_settings(self) -> dict:
        """What the file's tags say about motion guidance; {} where there was none."""
        request, prior = self.request, self.request.prior
        if prior is None and not self.model.unet.takes_motion:
            return {}
        settings = {"motion_strength": request.motion_strength, "tau": request.tau}
        if prior is None:
            return settings
        about = {"motion": request.prior_file, "motion_source": prior.origin.source}
        return settings | about | {"combination": request.combination}

    def _remedy(self) -> str:
        """What may keep numbers within their range."""
        strength = self._motion_settings().get("motion_strength")
        smaller = f"--motion-strength below {strength:g}" if strength else "a smaller --guidance"
        return smaller if self.model.dtype == torch.float32 else f"--dtype fp32, or {smaller}"
