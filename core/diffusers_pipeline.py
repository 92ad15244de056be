"""The models as a pipeline of diffusers, for programs that speak its language."""

# Annotations stay classes here: diffusers reads them.
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from .checkpoints.distilled import distilled_motion
from .checkpoints.files import CheckpointError, read_json
from .checkpoints.locations import find_family
from .checkpoints.networks import load_text, load_unet, load_vae, save_text, save_unet, save_vae
from .diffusion.schedule import draw_noise
from .families import resolve_family
from .files import check_folder, replacing
from .motion.prior import MotionPrior
from .networks.text import TextEncoder
from .networks.unet import UNet3D
from .networks.vae import VideoVAE
from .pipeline import Pipeline, load
from .python_api import as_dtype, as_loras
from .sampling import SamplingSettings, as_prompts, open_prior
from .video import to_uint8

# What this call names otherwise than ``SamplingSettings``.
NAMES = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
# Frames of a clip as the caller wants them, from (F, 3, H, W) in 0..1.
OUTPUTS: dict[str, Callable] = {
    "pil": lambda clips: [[Image.fromarray(frame) for frame in to_uint8(clip)] for clip in clips],
    "np": lambda clips: clips.permute(0, 1, 3, 4, 2).numpy(),
    "pt": lambda clips: clips,
}
OFFLOAD = "use enable_model_cpu_offload, which moves one network at a time"
ATTENTION = "attention is torch's own here, which needs no more memory than that"
# Files of ``save_pretrained``.
UNET_FILE, VAE_FILE, TEXT_FILE = "unet.safetensors", "vae.safetensors", "text_encoder.safetensors"


@dataclass
class T2VTurboPipelineOutput(BaseOutput):
    """What a call returns.

    Attributes:
        frames: one clip per prompt and video: lists of PIL images ("pil"), an array (B, F, H, W, 3) in 0..1 ("np"), a
            tensor (B, F, 3, H, W) in 0..1 on the CPU ("pt"), or scaled latents (B, 4, F, h, w) ("latent").
    """

    frames: list[list[Image.Image]] | np.ndarray | Tensor


class T2VTurboPipeline(DiffusionPipeline):
    """Text to video with a distilled student in a few steps, or with its teacher by DDIM.

    Args:
        unet: student or teacher.
        vae: the autoencoder of single frames.
        text_encoder: the text tower, with its tokenizer.
        family: name of the model family, whose sizes and scales are the defaults of a call.
        motion_strength, tau: lambda and the guided fraction where a call names none; None = the family's.
        loras: LoRAs merged into the UNet, as FILE:STRENGTH, for the record.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _callback_tensor_inputs = ("latents", "denoised")

    def __init__(
        self,
        unet: UNet3D,
        vae: VideoVAE,
        text_encoder: TextEncoder,
        family: str = "videocrafter2",
        motion_strength: float = None,  # noqa: RUF013, as older diffusers cannot read float | None
        tau: float = None,  # noqa: RUF013
        loras: tuple = (),
    ):
        super().__init__()
        resolve_family(family)
        self.register_modules(unet=unet, vae=vae, text_encoder=text_encoder)
        self.register_to_config(family=family, motion_strength=motion_strength, tau=tau, loras=list(loras))
        self._interrupt = False

    # --- files ----------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path = "shapes",
        student: str | Path | None = "default",
        torch_dtype: torch.dtype | None = None,
        loras: str | Path | Sequence = (),
        dtype: torch.dtype | None = None,
        **unknown,
    ) -> "T2VTurboPipeline":
        """Load a pipeline onto the CPU.

        Args:
            pretrained_model_name_or_path: "shapes", which is embedded; "videocrafter2", after `t2v-turbo download`; a
                folder with the published files or ours, or a folder of such folders; or what ``save_pretrained`` wrote.
            student: "mg", "no-mg", "v1", the path of a checkpoint, or "default", the first of them that is there;
                None = the teacher.
            torch_dtype: float32 (None), bfloat16 or float16; ``dtype`` is its newer name.
            loras: to merge into the UNet: files, FILE:STRENGTH, or pairs of a file and its strength.

        Raises:
            ValueError: for anything that is not there, not of these, or not a setting.
        """
        refuse(
            unknown, "T2VTurboPipeline.from_pretrained, which reads local files and takes student, torch_dtype, loras"
        )
        dtype = as_dtype(torch_dtype or dtype or torch.float32, torch.device("cpu"))
        if (Path(pretrained_model_name_or_path) / cls.config_name).is_file():
            return cls._from_saved(Path(pretrained_model_name_or_path), student, dtype, loras)
        family, folder = find_family(pretrained_model_name_or_path)
        model = load(family, student, folder, "cpu", dtype, as_loras(loras))
        return cls(model.unet, model.vae, model.text, family, model.motion_strength, model.tau, model.loras)

    @classmethod
    def _from_saved(cls, folder: Path, student, dtype: torch.dtype, loras) -> "T2VTurboPipeline":
        about = read_json(folder / cls.config_name)
        if about.get("_class_name") != cls.__name__:
            raise CheckpointError(f"{folder}: holds a {about.get('_class_name')}, not a {cls.__name__}")
        if student != "default" or loras:
            raise ValueError(f"{folder}: is a saved pipeline with one UNet in it; leave student and loras out")
        family = resolve_family(str(about.get("family")))
        unet = load_unet(folder / UNET_FILE, family.unet, "cpu", dtype)
        vae = load_vae(folder / VAE_FILE, family.vae, "cpu", dtype)
        text = load_text(folder / TEXT_FILE, family.text, "cpu", dtype)
        return cls(unet, vae, text, family.name, **distilled_motion(folder / UNET_FILE), loras=about.get("loras", ()))

    def save_pretrained(self, save_directory: str | Path, safe_serialization: bool = True, **unknown) -> None:
        """Write the three networks as safetensors, in their own precision, with LoRAs merged in.

        ``from_pretrained`` of this class reads them back; ``load`` and the command line take a student's UNet alone,
        as ``student="…/unet.safetensors"``.

        Raises:
            ValueError: for settings of diffusers that these files do not have.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write a pickle, which can run code; leave it out")
        refuse(unknown, "T2VTurboPipeline.save_pretrained, which writes one .safetensors for each network")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        index = check_folder(folder / self.config_name)
        index.unlink(missing_ok=True)  # until all is there again
        model, text = self.model, self.text_encoder
        motion = {"motion": self.unet.takes_motion, "motion_strength": model.motion_strength, "tau": model.tau}
        save_unet(self.unet, folder / UNET_FILE, self.unet.dtype, distill=json.dumps(motion))
        save_vae(self.vae, folder / VAE_FILE, self.vae.dtype)
        save_text(text, folder / TEXT_FILE, text.dtype)
        if text.tokenizer.merges:
            with replacing(folder / Path(text.config.merges).name) as partial:
                shutil.copyfile(text.tokenizer.merges, partial)
        with replacing(index) as partial:
            partial.write_bytes(self.to_json_string().encode())

    # --- the call ----------

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        negative_prompt: str | list[str] | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        motion_strength: float | None = None,
        tau: float | None = None,
        prior: MotionPrior | str | Path | None = None,
        combination: str | None = None,
        fps: int | None = None,
    ) -> T2VTurboPipelineOutput | tuple:
        """Make clips.

        Args:
            prompt: one text or several.
            num_inference_steps: None = 4 for a student, 50 for a teacher.
            guidance_scale: usual scale, 1..100, 1 = none; None = the family's. A student's omega is this minus 1.
            num_frames, height, width: size of the clips; None = of ``latents``, of the prior, or of the family.
            negative_prompt: what a teacher shall avoid; a student has its guidance built in and takes none.
            num_videos_per_prompt: clips of every prompt.
            generator: draws all noise, one for all clips or one per clip; None = torch's global one. The clip of
                ``torch.Generator().manual_seed(s)`` is that of ``Pipeline(…, seed=s)``.
            latents: initial noise (B, 4, F, h, w) of unit variance in place of drawn noise; what a student draws
                between its steps still comes from ``generator``.
            output_type: "pil", "np", "pt" or "latent"; see ``T2VTurboPipelineOutput``.
            return_dict: False returns a tuple of the frames alone.
            callback_on_step_end: called after every step with (pipeline, i, timestep, tensors); a dictionary that it
                returns may have other "latents", which are sampled on. ``pipe._interrupt = True`` ends the sampling,
                with the clean latents of the step.
            callback_on_step_end_tensor_inputs: which of "latents" and "denoised" it is given.
            motion_strength, tau, prior, combination: motion guidance, see ``SamplingSettings``; a prior may be a file.
            fps: the network's frame rate input; None = the family's. The rate of a file is set where it is exported.

        Raises:
            ValueError: for what is out of range, has no effect, or does not fit this model.
        """
        model, device, prompts = self.model, self._execution_device, as_prompts(prompt)
        check_choice("output_type", output_type, (*OUTPUTS, "latent"))
        inputs = self._tensor_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        count = len(prompts) * check_count(num_videos_per_prompt)
        check_generators(generator, count)
        prior, prior_file = open_prior(prior)
        settings = SamplingSettings(
            num_inference_steps, guidance_scale, motion_strength, tau, prior, combination, fps, prior_file
        )
        sizes = {"num_frames": num_frames, "height": height, "width": width}
        if latents is None:
            shape = model.latent_shape(count, *model.clip_size(*sizes.values(), prior))
        else:
            shape = check_latents(latents, count, model, sizes)
        settings = model.settle(settings, shape, NAMES | {"fps_condition": "fps"})
        self._guidance_scale, self._num_timesteps, self._interrupt = settings.guidance, settings.steps, False

        context, negative = self._contexts(prompts, negative_prompt, num_videos_per_prompt)
        noise = draw_noise(shape, generator) if latents is None else latents
        steps = model.iterate(context, noise.to(device, torch.float32), settings, generator, negative)
        latents = self._sample(steps, callback_on_step_end, inputs)
        frames = latents if output_type == "latent" else OUTPUTS[output_type](self._decode(latents))
        self.maybe_free_model_hooks()
        return T2VTurboPipelineOutput(frames=frames) if return_dict else (frames,)

    @property
    def model(self) -> Pipeline:
        """The networks as the pipeline of this package."""
        family, about = resolve_family(self.config.family), self.config
        parts = {"unet": self.unet, "vae": self.vae, "text": self.text_encoder}
        own = {"loras": tuple(about.loras), "motion_strength": about.motion_strength, "tau": about.tau}
        return Pipeline(family, **parts, **own)

    @property
    def guidance_scale(self) -> float:
        """Of the call that runs, or ran last."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Steps of the call that runs, or ran last."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the sampling ends after the step that runs."""
        return self._interrupt

    def _contexts(
        self, prompts: list[str], negative: str | list[str] | None, videos: int
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings (B, L, D) of the prompts, and for a teacher (1 or B, L, D) of what it shall avoid."""
        context = self._encode(prompts).repeat_interleave(videos, dim=0)
        if self.unet.takes_guidance:
            if negative is not None:
                raise ValueError(
                    "negative_prompt was given to a student, whose guidance is built in: leave it out, or load the "
                    "teacher (student=None)"
                )
            return context, None
        if negative is None:
            return context, self._encode([""])
        if self.guidance_scale == 1:
            raise ValueError("negative_prompt has no effect with guidance_scale=1, which is no guidance; 7.5 is usual")
        avoided = as_prompts(negative)
        if len(avoided) not in (1, len(prompts)):
            raise ValueError(
                f"negative_prompt holds {len(avoided)} texts for {len(prompts)} prompts; give one, or as many"
            )
        found = self._encode(avoided)
        return context, found if len(avoided) == 1 else found.repeat_interleave(videos, dim=0)

    def _encode(self, prompts: list[str]) -> Tensor:
        """Prompts -> context (B, L, D) on the device of the work, where an offloaded text encoder goes for it."""
        return self.text_encoder(self.text_encoder.tokenize(prompts)).to(self._execution_device)

    def _sample(self, steps: Iterator[dict], callback: Callable | None, inputs: Sequence[str]) -> Tensor:
        """Latents (B, 4, F, h, w) of the last step, or the clean ones of the step that was interrupted."""
        with self.progress_bar(total=self.num_timesteps) as bar:
            for step in steps:
                bar.update()
                if callback is not None:
                    self._call_back(callback, step, inputs)
                if self.interrupt:
                    return step["denoised"]
        return step["latents"]

    def _call_back(self, callback: Callable, step: dict, inputs: Sequence[str]) -> None:
        """Tell the user's callback of a step, and take other latents from it."""
        given = {name: step[name] for name in inputs}
        for name, tensor in (callback(self, step["i"], step["t"], dict(given)) or {}).items():
            if name == "latents":
                if tensor.shape != step["latents"].shape:
                    raise ValueError(
                        f"callback_on_step_end returned latents of the shape {tuple(tensor.shape)}; they are "
                        f"{tuple(step['latents'].shape)}"
                    )
                step["latents"] = tensor.to(step["latents"])
            elif tensor is not given.get(name):
                raise ValueError(f"callback_on_step_end returned another '{name}': only latents can be replaced")

    def _tensor_inputs(self, callback: Callable | None, inputs: Sequence[str]) -> Sequence[str]:
        """Names of the tensors that the callback is given; diffusers' own callbacks know theirs.

        Raises:
            ValueError: for a tensor that is not to be had.
        """
        if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
            inputs = callback.tensor_inputs
        for name in inputs:
            check_choice("callback_on_step_end_tensor_inputs", name, self._callback_tensor_inputs)
        return inputs

    def _decode(self, latents: Tensor) -> Tensor:
        """Latents -> frames (B, F, 3, H, W) in 0..1 on the CPU; an offloaded autoencoder goes to its device for it."""
        hook = getattr(self.vae, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(self.vae)
        frames = self.model.decode(latents)
        # A decoder hides infinite latents: its frames are clamped.
        if not (latents.isfinite().all() and frames.isfinite().all()):
            wider = "" if self.dtype == torch.float32 else "torch_dtype=torch.float32, or "
            raise ValueError(
                f"a clip holds NaN or infinite numbers; try {wider}a smaller guidance_scale or motion_strength"
            )
        return frames

    # --- memory ----------

    def enable_vae_slicing(self) -> None:
        """Decode one frame at a time; newer programs say ``pipe.vae.enable_slicing()``."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decode several frames at once, as many as fit."""
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Decode large frames in tiles; newer programs say ``pipe.vae.enable_tiling()``."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decode whole frames."""
        self.vae.disable_tiling()

    def enable_sequential_cpu_offload(self, *_, **__) -> None:
        """Refused."""
        raise ValueError("enable_sequential_cpu_offload cannot move these networks layer by layer; " + OFFLOAD)

    def enable_group_offload(self, *_, **__) -> None:
        """Refused."""
        raise ValueError("enable_group_offload cannot move these networks group by group; " + OFFLOAD)

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Refused, but for None, which is what there is."""
        if slice_size is not None:
            raise ValueError("enable_attention_slicing has nothing to slice: " + ATTENTION)

    def enable_xformers_memory_efficient_attention(self, *_, **__) -> None:
        """Refused."""
        raise ValueError("enable_xformers_memory_efficient_attention has nothing to replace: " + ATTENTION)


# --- what a call may be given ----------


def refuse(unknown: dict, by: str) -> None:
    """Refuse settings that have no effect here, other than switched off ones."""
    names = [name for name, value in unknown.items() if value not in (None, False)]
    if names:
        raise ValueError(f"{', '.join(names)}: unknown to {by}; leave it out")


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a word that is none of those known."""
    if value not in known:
        raise ValueError(f"{name}={value!r} is unknown; use {', '.join(known)}")


def check_count(videos: int) -> int:
    """Refuse a number of clips below 1."""
    if not isinstance(videos, int) or videos < 1:
        raise ValueError(f"num_videos_per_prompt={videos} must be a whole number of 1 or more")
    return videos


def check_generators(generator: torch.Generator | list[torch.Generator] | None, count: int) -> None:
    """Refuse a list of generators that is not one per clip."""
    if isinstance(generator, list) and len(generator) != count:
        raise ValueError(f"generator: {len(generator)} were given for {count} clips; give one, or one per clip")


def check_latents(latents: Tensor, count: int, model: Pipeline, sizes: dict[str, int | None]) -> tuple[int, ...]:
    """The shape of given latents, if it is that of ``count`` clips of this model and of the sizes given beside them.

    Raises:
        ValueError: naming both sides.
    """
    channels, factor = model.unet.config.in_channels, model.vae.config.downsampling
    if latents.ndim != 5 or latents.shape[:2] != (count, channels):
        raise ValueError(f"latents: {tuple(latents.shape)} were given, ({count}, {channels}, F, h, w) are needed")
    frames, height, width = latents.shape[2:]
    for (name, given), held in zip(sizes.items(), (frames, height * factor, width * factor)):
        if given not in (None, held):
            raise ValueError(f"{name}={given} was given, but the latents are of {held}; leave one of them out")
    return tuple(latents.shape)
