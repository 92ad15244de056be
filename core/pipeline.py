"""A loaded model: UNet, autoencoder, text tower and schedule, and the two ways to sample from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call

from .checkpoints.locations import BASE_FILES, family_folder, student_path
from .checkpoints.lora import guidance_dim, split_strength
from .checkpoints.lora_files import Lora, find_lora, load_lora
from .checkpoints.networks import CheckpointError, load_text, load_unet, load_vae
from .device import free_memory
from .diffusion.consistency import sample_consistency, student_model
from .diffusion.ddim import Callback, sample_ddim
from .diffusion.guidance import cfg_model
from .diffusion.schedule import NoiseSchedule, draw_noise
from .families import FamilyConfig, resolve_family
from .motion.guidance import motion_model
from .motion.prior import MotionPrior
from .networks.text import TextEncoder
from .networks.unet import UNet3D
from .networks.vae import VideoVAE

# Frames that are decoded at once where memory is plenty: more gain little.
MAX_CHUNK = 8


@dataclass
class Pipeline:
    """A model family with one UNet, teacher or student.

    The text encoder stays where it was loaded, on the CPU, and visits the UNet's device to encode.
    """

    family: FamilyConfig
    unet: UNet3D
    vae: VideoVAE
    text: TextEncoder
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    # LoRAs merged into the UNet, as FILE:STRENGTH.
    loras: tuple[str, ...] = ()

    @property
    def is_student(self) -> bool:
        return self.unet.takes_guidance

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

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
            ValueError: if a side is not a positive multiple of the autoencoder's downsampling, or frames < 1.
        """
        frames, height, width = (
            given if given is not None else usual
            for given, usual in ((frames, self.family.frames), (height, self.family.height), (width, self.family.width))
        )
        factor = self.vae.config.downsampling
        for name, side in (("height", height), ("width", width)):
            if side < factor or side % factor:
                nearest = max(factor, round(side / factor) * factor)
                raise ValueError(f"{name}={side} is no positive multiple of {factor}: use {nearest}")
        if frames < 1:
            raise ValueError(f"frames={frames}: at least 1 frame is needed")
        shape = (batch, self.unet.config.in_channels, frames, height // factor, width // factor)
        return draw_noise(shape, generator).to(self.device)

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
        tau: float = 0.5,
        callback: Callback | None = None,
        prior: MotionPrior | None = None,
        combination: str = "released",
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
            motion: lambda in the paper's unit, 0 = none; None = the family's, where there is anything to guide.
            tau: fraction of the sampling that is guided, from the noisiest step on.
            prior: motion of a reference clip, for a teacher only (``motion.prior.make_prior``).
            combination: how a prior's score enters a step, out of ``guidance.COMBINATIONS``.

        Returns:
            Scaled latents (B, 4, F, h, w), fp32.

        Raises:
            ValueError: for motion guidance that this UNet cannot do, or a prior that does not fit.
        """
        self.check_motion(motion, prior, noise.shape)
        guidance = self.family.guidance_scale if guidance is None else guidance
        fps = self.family.fps_condition if fps_condition is None else fps_condition
        motion = self.family.motion_strength if motion is None else motion
        context = self.encode(prompts)
        if self.is_student:
            predict = student_model(self.unet, context, guidance - 1, fps, motion, tau)
            return sample_consistency(predict, noise, self.schedule, steps or 4, generator, callback=callback)
        given, steps = (context, self.encode([""]), guidance), steps or 50
        if prior is None:
            predict = cfg_model(self.unet, *given, fps)
        else:
            settings = {"tau": tau, "combination": combination, "fps": fps}
            predict = motion_model(self.unet, prior, *given, self.schedule, steps, motion, **settings)
        return sample_ddim(predict, noise, self.schedule, steps, callback)

    def check_motion(self, motion: float | None, prior: MotionPrior | None, shape: Sequence[int]) -> None:
        """Whether motion guidance as asked for in ``sample`` is possible for latents of ``shape``.

        Raises:
            ValueError: naming what is missing or too much, and the remedy.
        """
        if self.is_student and prior is not None:
            raise ValueError(
                "a motion prior was given to a student, which cannot follow one: sample with the teacher (--teacher); "
                "a student distilled with motion guidance takes lambda alone"
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
    vae = load_vae(vae_file, family.vae, device, dtype)
    named = tuple(f"{lora.path.name}:{strength:g}" for lora, strength in merged)
    return Pipeline(family, unet, vae, load_text(text_file, family.text, "cpu", dtype), loras=named)


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
