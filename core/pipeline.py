"""A loaded model: UNet, autoencoder, text tower and schedule; prompts to clips, and the two ways to sample."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from tqdm.auto import tqdm

from .checkpoints.distilled import distilled_motion
from .checkpoints.locations import BASE_FILES, family_folder, student_path
from .checkpoints.lora import guidance_dim, split_strength
from .checkpoints.lora_files import Lora, find_lora, load_lora
from .checkpoints.networks import CheckpointError, load_text, load_unet, load_vae
from .device import dtype_name, free_memory
from .diffusion.consistency import consistency_steps, student_model
from .diffusion.ddim import Callback, GuidedDenoiser, ddim_steps, finish
from .diffusion.guidance import cfg_model
from .diffusion.schedule import NoiseSchedule, draw_noise
from .families import FamilyConfig, resolve_family
from .motion.guidance import motion_model
from .motion.prior import MotionPrior
from .networks.text import TextEncoder
from .networks.unet import UNet3D
from .networks.vae import VideoVAE
from .sampling import RELEASED, SEEDS, SamplingSettings, as_prompts, check_seed, open_prior
from .video import TaggedFrames, write_video

# Frames that are decoded at once where memory is plenty: more gain little.
MAX_CHUNK = 8


@dataclass
class Pipeline:
    """A model family with one UNet, teacher or student.

    The text encoder stays where it was loaded, on the CPU, and visits the UNet's device to encode.

    Attributes:
        loras: LoRAs merged into the UNet, as FILE:STRENGTH.
        motion_strength, tau: lambda and the guided fraction of the sampling where a call names none: those that the
            student was distilled with, else the family's.
    """

    family: FamilyConfig
    unet: UNet3D
    vae: VideoVAE
    text: TextEncoder
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    loras: tuple[str, ...] = ()
    motion_strength: float | None = None
    tau: float | None = None

    def __post_init__(self):
        self.motion_strength = self.family.motion_strength if self.motion_strength is None else self.motion_strength
        self.tau = self.family.tau if self.tau is None else self.tau

    @property
    def is_student(self) -> bool:
        return self.unet.takes_guidance

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    # --- prompts to clips ----------

    def __call__(
        self,
        prompt: str | Sequence[str],
        steps: int | None = None,
        seed: int = 0,
        guidance: float | None = None,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        motion_strength: float | None = None,
        tau: float | None = None,
        prior: MotionPrior | str | Path | None = None,
        combination: str | None = None,
        fps_condition: int | None = None,
        progress: bool = True,
    ) -> TaggedFrames | list[TaggedFrames]:
        """Make a clip of a prompt, or one of each of several: the frames of ``t2v-turbo generate`` with the same seed.

        Args:
            prompt: one text, or a list of texts, which are sampled one after the other.
            seed: of the first prompt, 0..2^64 − 1; it counts up.
            frames, height, width: size of the clip; None = the prior's, or the family's. Pixels are multiples of 8.
            prior: a motion prior, or its file, that a teacher follows.
            steps, guidance, motion_strength, tau, combination, fps_condition: see ``SamplingSettings``.
            progress: show a bar.

        Returns:
            uint8 (F, H, W, 3) with the tags that ``save`` writes; a list of them for a list of prompts.

        Raises:
            ValueError: for what is out of range, what this model cannot do, or a clip that holds NaN.
        """
        prior, prior_file = open_prior(prior)
        settings = SamplingSettings(
            steps, guidance, motion_strength, tau, prior, combination, fps_condition, prior_file
        )
        prompts, seed, size = as_prompts(prompt), check_seed(seed), self.clip_size(frames, height, width, prior)
        settings = self.settle(settings, self.latent_shape(1, *size))
        clips = [self._clip(one, (seed + i) % SEEDS, settings, size, progress) for i, one in enumerate(prompts)]
        return clips[0] if isinstance(prompt, str) else clips

    def _clip(
        self, prompt: str, seed: int, settings: SamplingSettings, size: tuple[int, int, int], progress: bool
    ) -> TaggedFrames:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad(), tqdm(total=settings.steps, desc=prompt[:40], leave=False, disable=not progress) as bar:
            sampled = self.iterate(self.encode([prompt]), self.noise(1, generator, *size), settings, generator)
            latents = finish(sampled, lambda _: bar.update())
        frames = self.decode(latents)
        # A decoder hides infinite latents: its frames are clamped.
        if not (latents.isfinite().all() and frames.isfinite().all()):
            wider = "" if self.dtype == torch.float32 else "dtype='fp32', or "
            raise ValueError(
                f"seed={seed}: the clip holds NaN or infinite numbers; try {wider}a smaller guidance or motion_strength"
            )
        return TaggedFrames.of(frames[0], self.tags(prompt, seed, settings, frames.shape[1:]))

    def tags(self, prompt: str, seed: int, settings: SamplingSettings, shape: Sequence[int]) -> dict[str, str]:
        """What the file of a clip says about its making: the prompt, the seed, and settled settings as JSON.

        Args:
            shape: of the frames (F, 3, H, W).
        """
        about = {
            "model": self.family.name,
            "unet": "student" if self.is_student else "teacher",
            "steps": int(settings.steps),
            "guidance": float(settings.guidance),
            "size": f"{shape[3]}x{shape[2]}",
            "frames": shape[0],
            "dtype": dtype_name(self.dtype),
        }
        if settings.prior is not None or self.unet.takes_motion:
            about |= {"motion_strength": float(settings.motion_strength), "tau": float(settings.tau)}
        if settings.prior is not None:
            source = settings.prior.origin.source
            about |= {"motion": settings.prior_file, "motion_source": source, "combination": settings.combination}
        if settings.fps_condition != self.family.fps_condition:
            about["fps_condition"] = settings.fps_condition
        if self.loras:
            about["loras"] = list(self.loras)
        return {"prompt": prompt, "seed": str(seed), "settings": json.dumps(about)}

    def save(self, frames: np.ndarray, path: str | Path, fps: float | None = None) -> Path:
        """Write one clip as .mp4, .gif, .webp or numbered .png (``frames/%05d.png``), by the suffix.

        Args:
            frames: uint8 (F, H, W, 3); those that a call returned carry their prompt, seed and settings along.
            fps: frames per second; None = the family's.

        Raises:
            VideoError: for a file that cannot be written, see ``video.check_writable``.
            ValueError: for frames of another kind.
        """
        if not isinstance(frames, np.ndarray):
            raise ValueError(
                f"frames: a {type(frames).__name__} was given; save one clip, uint8 (F, H, W, 3), at a time"
            )
        fps = self.family.fps if fps is None else fps
        write_video(path, np.asarray(frames), fps, getattr(frames, "tags", None))
        return Path(path)

    # --- the steps in between ----------

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """Prompts -> context (B, L, D) on the UNet's device, with the text encoder there for as long as it takes."""
        weights = {name: weight.to(self.device) for name, weight in self.text.named_parameters()}
        return functional_call(self.text, weights, (self.text.tokenize(prompts),))

    def noise(
        self,
        batch: int,
        generator: torch.Generator | list[torch.Generator],
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Tensor:
        """Initial latents (B, 4, F, H/8, W/8), from one generator or one per sample (``schedule.draw_noise``).

        Raises:
            ValueError: see ``latent_shape``.
        """
        shape = self.latent_shape(batch, *self.clip_size(frames, height, width))
        return draw_noise(shape, generator).to(self.device)

    def clip_size(
        self, frames: int | None, height: int | None, width: int | None, prior: MotionPrior | None = None
    ) -> tuple[int, int, int]:
        """Frames, height and width in pixels: as given, else the prior's, else the family's."""
        usual = self.family.frames, self.family.height, self.family.width
        if prior is not None:
            factor = self.vae.config.downsampling
            usual = prior.size[0], prior.size[1] * factor, prior.size[2] * factor
        return tuple(own if given is None else given for given, own in zip((frames, height, width), usual))

    def latent_shape(self, batch: int, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Shape (B, 4, F, H/8, W/8) of the latents of clips.

        Raises:
            ValueError: if a side is not a positive multiple of the autoencoder's downsampling, or frames < 1.
        """
        factor = self.vae.config.downsampling
        for name, side in (("height", height), ("width", width)):
            if side < factor or side % factor:
                nearest = max(factor, round(side / factor) * factor)
                raise ValueError(f"{name}={side} is no positive multiple of {factor}: use {nearest}")
        if frames < 1:
            raise ValueError(f"frames={frames}: at least 1 frame is needed")
        return batch, self.unet.config.in_channels, frames, height // factor, width // factor

    @torch.no_grad()
    def sample(
        self,
        prompts: list[str],
        noise: Tensor,
        steps: int | None = None,
        guidance: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        fps_condition: int | None = None,
        motion: float | None = None,
        tau: float | None = None,
        callback: Callback | None = None,
        prior: MotionPrior | None = None,
        combination: str = RELEASED,
    ) -> Tensor:
        """Sample clean latents: few-step consistency sampling with a student, DDIM with CFG with a teacher.

        Motion guidance: a teacher follows the motion of a ``prior``; a student distilled with lambda has it built in.

        Args:
            prompts: one per sample.
            noise: initial latents (B, 4, F, h, w), from ``self.noise``.
            steps: network evaluations; None = 4 for a student, 50 for a teacher.
            guidance: usual guidance scale, 1 = none; None = the family's. The student's omega is this minus 1.
            generator: draws the noise between the student's steps.
            fps_condition: the network's frame rate input; None = the family's.
            motion: lambda in the paper's unit, 0 = none; None = ``motion_strength``, where there is anything to guide.
            tau: fraction of the sampling that is guided, from the noisiest step on; None = ``self.tau``.
            prior: motion of a reference clip, for a teacher only (``motion.prior.make_prior``).
            combination: how a prior's score enters a step, out of ``guidance.COMBINATIONS``.

        Returns:
            Scaled latents (B, 4, F, h, w), fp32.

        Raises:
            ValueError: for motion guidance that this UNet cannot do, or a prior that does not fit.
        """
        self.check_motion(motion, prior, noise.shape)
        settings = self.filled(SamplingSettings(steps, guidance, motion, tau, prior, combination, fps_condition))
        return finish(self.iterate(self.encode(prompts), noise, settings, generator), callback)

    def settle(
        self, settings: SamplingSettings, shape: Sequence[int], names: Mapping[str, str] | None = None
    ) -> SamplingSettings:
        """Settings that were checked for latents of ``shape``, with this model's own where there were none.

        Args:
            names: see ``SamplingSettings.check``.

        Raises:
            ValueError: for a setting that is out of range, that has no effect, or that this UNet cannot take.
        """
        settings.check(self.is_student, self.unet.takes_motion, names)
        self.check_motion(settings.motion_strength, settings.prior, shape)
        return self.filled(settings)

    def filled(self, settings: SamplingSettings) -> SamplingSettings:
        """Settings with this model's own where there were none."""
        own = {
            "steps": 4 if self.is_student else 50,
            "guidance": self.family.guidance_scale,
            "motion_strength": self.motion_strength,
            "tau": self.tau,
            "combination": RELEASED,
            "fps_condition": self.family.fps_condition,
        }
        return replace(settings, **{name: value for name, value in own.items() if getattr(settings, name) is None})

    def iterate(
        self,
        context: Tensor,
        noise: Tensor,
        settings: SamplingSettings,
        generator: torch.Generator | list[torch.Generator] | None = None,
        negative: Tensor | None = None,
    ) -> Iterator[dict]:
        """The steps of a sampling, one after another, without gradients if the caller takes none.

        Args:
            context: prompt embedding (B, L, D).
            noise: initial latents (B, 4, F, h, w), on the device of the work.
            settings: filled (``settle``).
            generator: draws the noise between a student's steps.
            negative: embedding (1 or B, L, D) of what a teacher shall avoid; None = of the empty prompt.

        Returns:
            What ``diffusion.ddim.Callback`` gets, after every step.
        """
        if self.is_student:
            omega, fps = settings.guidance - 1, settings.fps_condition
            predict = student_model(self.unet, context, omega, fps, settings.motion_strength, settings.tau)
            return consistency_steps(predict, noise, self.schedule, settings.steps, generator)
        negative = self.encode([""]) if negative is None else negative
        return ddim_steps(self._teacher(context, negative, settings), noise, self.schedule, settings.steps)

    def _teacher(self, context: Tensor, negative: Tensor, settings: SamplingSettings) -> GuidedDenoiser:
        """The teacher's noise prediction with classifier-free guidance and, with a prior, motion guidance."""
        given, fps = (self.unet, context, negative, settings.guidance), settings.fps_condition
        if settings.prior is None:
            return cfg_model(*given, fps)
        unet, *texts = given
        motion = {"strength": settings.motion_strength, "tau": settings.tau, "combination": settings.combination}
        return motion_model(unet, settings.prior, *texts, self.schedule, settings.steps, **motion, fps=fps)

    def check_motion(self, motion: float | None, prior: MotionPrior | None, shape: Sequence[int]) -> None:
        """Whether motion guidance as asked for in ``sample`` is possible for latents of ``shape``.

        Raises:
            ValueError: naming what is missing or too much, and the remedy.
        """
        if self.is_student and prior is not None:
            raise ValueError(
                "a motion prior was given to a student, which cannot follow one: sample with the teacher (--teacher, "
                "or student=None); a student distilled with motion guidance takes lambda alone"
            )
        if prior is not None:
            prior.check(self.unet, shape)
        elif motion and not self.is_student:
            raise ValueError(
                f"lambda {motion:g} was given to a teacher without a motion prior: make one from a reference clip with "
                "`t2v-turbo motion extract`"
            )
        elif motion and not self.unet.takes_motion:
            raise ValueError(
                f"lambda {motion:g} was given, but this student has no input for it: use one that was distilled with "
                "motion=true (student 'mg'), or leave lambda out"
            )

    @torch.no_grad()
    def decode(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        """Latents (B, 4, F, h, w) -> frames (B, F, 3, H, W) in 0..1, fp32, on the CPU.

        ``chunk`` frames are decoded at once; None = as many as half of the free memory holds, at most ``MAX_CHUNK``.
        """
        if chunk is None:
            room = free_memory(self.vae.device) // 2
            chunk = max(1, min(MAX_CHUNK, room // self.vae.frame_memory(*latents.shape[-2:])))
        return self.vae.decode(latents, chunk).float().cpu()


def load(
    family: str | FamilyConfig = "shapes",
    student: str | Path | None = "default",
    folder: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    loras: Sequence[tuple[str | Path, float]] = (),
) -> Pipeline:
    """Load a model for inference, straight to a device in a number format; the text encoder stays on the CPU.

    Args:
        family: "shapes" (embedded, nothing to download) or "videocrafter2".
        student: None = the teacher; "default"; a name out of ``STUDENT_FILES``; or the path of a checkpoint, with
            ``:STRENGTH`` after that of a LoRA, which is merged into the teacher.
        folder: where the files lie; None = ``family_folder``.
        loras: files of LoRAs to merge into the UNet, each with its strength.

    Raises:
        ValueError: for an unknown family or student.
        CheckpointError: for a file that is missing, damaged or of another model.
    """
    family = resolve_family(family)
    folder = Path(folder) if folder else family_folder(family.name)
    _, vae_file, text_file = (folder / name for name in BASE_FILES[family.name])
    unet_file, merged = unet_source(family, student, folder, loras)
    unet = load_unet(unet_file, family.unet, device, dtype, merged)
    if student is not None and not unet.takes_guidance:
        raise CheckpointError(f"{unet_file}: is a teacher without a guidance input; a student was expected")
    guided = student is not None and unet.takes_motion
    own = distilled_motion(student_path(family.name, student, folder)) if guided else {}
    vae = load_vae(vae_file, family.vae, device, dtype)
    named = tuple(f"{lora.path.name}:{strength:g}" for lora, strength in merged)
    return Pipeline(family, unet, vae, load_text(text_file, family.text, "cpu", dtype), loras=named, **own)


def unet_source(
    family: FamilyConfig, student: str | Path | None, folder: Path, loras: Sequence[tuple[str | Path, float]] = ()
) -> tuple[Path, list[tuple[Lora, float]]]:
    """The file of a UNet's whole weights, and the LoRAs to merge into them: a student may be a LoRA of its teacher.

    Raises:
        ValueError: for an unknown student, or a strength of one that is no LoRA.
        CheckpointError: for a file that cannot be read, a LoRA in the wrong place, or one whose teacher is missing.
    """
    teacher = folder / BASE_FILES[family.name][0]
    given = [(load_lora(path), strength) for path, strength in loras]
    if student is None:
        for lora, _ in given:
            if guidance_dim(lora, family.unet):
                raise CheckpointError(f"{lora.path}: is {lora} that makes a teacher a student; give it as --student")
        return teacher, given
    path, strength = student_path(family.name, student, folder), split_strength(student)[1]
    lora = find_lora(path)
    if lora is None:
        if strength != 1:
            raise ValueError(f"{path}: holds whole weights, which take no strength ({strength:g}); leave it out")
        return path, given
    if not guidance_dim(lora, family.unet):
        raise CheckpointError(
            f"{path}: is {lora}, which brings no guidance input to the UNet of {family.name} and so makes no student; "
            "give it with --lora, or name the model that it is for with --model"
        )
    if not teacher.is_file():
        raise CheckpointError(
            f"{path}: is {lora}, which makes a student of {teacher.name}; put that file into {folder}, or fetch it "
            "with `t2v-turbo download teacher`"
        )
    return teacher, [(lora, strength), *given]
