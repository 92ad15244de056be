"""The only door to ComfyUI: what the nodes ask of their host, answered by ComfyUI or, without it, by plain torch."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .adapters import FramesAsBatch

# Name of our folder below ComfyUI's models folder, and of its key in folder_paths.
FOLDER = "t2v_turbo"
SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
# Where below it reward models lie, each in the folder of its name: they are not models to sample with.
REWARD_FOLDER = "rewards"
# The same for motion priors, which are small and wanted apart from the models, in one format only.
MOTION_FOLDER = "t2v_turbo_motion"
MOTION_SUFFIXES = (".safetensors",)
# Where below the output folder motion priors are looked for as well.
SAVED_MOTION = "motion"


def host() -> ComfyHost | PlainHost:
    """ComfyUI if this process is a ComfyUI; it has always loaded its memory management before any pack."""
    return ComfyHost() if "comfy.model_management" in sys.modules else PlainHost()


def is_reward_file(name: str) -> bool:
    """Whether a file of the models folder, by its relative name, is a reward model."""
    return PurePath(name).parts[0] == REWARD_FOLDER


def named_dtype(precision: str) -> torch.dtype:
    """The dtype of a precision out of the loader's list, other than "auto"."""
    from ..core.device import DTYPES

    return DTYPES[precision]


# --- without ComfyUI ----------


class Folders(NamedTuple):
    """What ComfyUI calls its input and its output folder."""

    input: Path
    output: Path


USUAL_FOLDERS = Folders(Path("input"), Path("output"))
_current: ContextVar[Folders] = ContextVar("folders", default=USUAL_FOLDERS)


@contextmanager
def using_folders(folders: Folders) -> Iterator[None]:
    """Other folders than ./input and ./output, while the block runs."""
    before = _current.set(folders)
    try:
        yield
    finally:
        _current.reset(before)


class PlainHost:
    """Everything on one device, files from the command line's models folder."""

    def output_device(self) -> torch.device:
        import torch

        return torch.device("cpu")

    def patcher(self, module: nn.Module, kind: str, precision: str) -> PlainPatcher:
        from ..core.mapped import convert

        return PlainPatcher(convert(module, self._dtype(precision)), self._device())

    def video_model(self, network: FramesAsBatch, precision: str) -> PlainPatcher:
        from torch import nn

        return self.patcher(nn.ModuleDict({"diffusion_model": network}), "unet", precision)

    def load(self, patcher: PlainPatcher, memory: int = 0) -> None:
        patcher.model.to(patcher.load_device)

    def free_memory(self, device: torch.device) -> int:
        """Bytes; unknown here, so plenty."""
        return 1 << 40

    def progress(self, model: PlainPatcher | None, steps: int, work: str = "sampling") -> Callable[[dict], None]:
        from tqdm.auto import tqdm

        bar = tqdm(total=steps, desc=work, unit="step", leave=False)

        def callback(info: dict) -> None:
            bar.update()
            if info["i"] + 1 == steps:
                bar.close()

        return callback

    def model_folders(self) -> list[Path]:
        from ..core.model import models_folder

        return [models_folder()]

    def model_files(self) -> list[str]:
        return list(listed(self.model_folders(), SUFFIXES))

    def model_path(self, name: str, what: str = "model") -> Path:
        """A file of the models folder, for the input ``what``."""
        return chosen(what, name, self.model_folders(), SUFFIXES)

    def motion_files(self) -> list[str]:
        return list(listed(self._motion_folders(), MOTION_SUFFIXES))

    def motion_path(self, name: str) -> Path:
        return chosen("motion", name, self._motion_folders(), MOTION_SUFFIXES)

    def input_path(self, name: str) -> Path:
        return inside(_current.get().input, name, "file")

    def new_output(self, prefix: str, suffix: str) -> tuple[Path, str]:
        """The next numbered file for a prefix and its subfolder, which is made, below the output folder."""
        root = _current.get().output.resolve()
        target = inside(root, prefix, "filename_prefix")
        target.parent.mkdir(parents=True, exist_ok=True)
        taken = (path.stem.removeprefix(f"{target.name}_").rstrip("_") for path in target.parent.glob("*_*_.*"))
        number = 1 + max((int(digits) for digits in taken if digits.isdecimal()), default=0)
        return target.with_name(f"{target.name}_{number:05}_{suffix}"), target.parent.relative_to(root).as_posix()

    def _motion_folders(self) -> list[Path]:
        from ..core.model import models_folder

        folders = _current.get()
        return [models_folder().with_name(MOTION_FOLDER), folders.input, folders.output / SAVED_MOTION]

    def _device(self) -> torch.device:
        import torch

        accelerator = getattr(torch, "accelerator", None)
        found = accelerator.current_accelerator() if accelerator and accelerator.is_available() else None
        return found or torch.device("cpu")

    def _dtype(self, precision: str) -> torch.dtype:
        return named_dtype("fp32" if precision == "auto" else precision)


def listed(folders: list[Path], suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The files of these suffixes in folders and their subfolders, by relative name; the first of a name counts."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in suffixes:
                found.setdefault(path.relative_to(folder).as_posix(), path)
    return found


def chosen(what: str, name: str, folders: list[Path], suffixes: tuple[str, ...]) -> Path:
    """The listed file of this name.

    Raises:
        ValueError: if there is none.
    """
    path = listed(folders, suffixes).get(name)
    if path is None:
        raise not_listed(what, name, folders)
    return path


def not_listed(what: str, name: str, folders: list[Path]) -> ValueError:
    """What to say of a file that the dropdown ``what`` does not offer."""
    places = " or ".join(map(str, folders))
    return ValueError(f"{what}: '{name}' does not lie in {places}; choose one of the list, or put the file there")


def inside(folder: Path, name: str, what: str) -> Path:
    """The path of ``name`` below a folder.

    Raises:
        ValueError: if it leads out of the folder.
    """
    folder = folder.resolve()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"{what}={name!r} leads out of {folder}; use a name inside it")
    return path


class PlainPatcher:
    """What our nodes use of ComfyUI's ModelPatcher."""

    def __init__(self, model: nn.Module, load_device: torch.device):
        self.model = model
        self.load_device = load_device
        self.model_options = {"transformer_options": {}}

    def clone(self) -> PlainPatcher:
        clone = PlainPatcher(self.model, self.load_device)
        clone.model_options = copy.deepcopy(self.model_options)
        return clone

    def get_model_object(self, name: str):
        return getattr(self.model, name)

    def model_dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def memory_required(self, shape: tuple[int, ...]) -> int:
        return 0

    def set_model_sampler_post_cfg_function(self, function: Callable[[dict], torch.Tensor]) -> None:
        before = self.model_options.get("sampler_post_cfg_function", [])
        self.model_options["sampler_post_cfg_function"] = [*before, function]


# --- with ComfyUI ----------


class ComfyHost:
    """Devices, memory, precision, progress and the models folder of a running ComfyUI."""

    def output_device(self) -> torch.device:
        import comfy.model_management as management

        return management.intermediate_device()

    def patcher(self, module: nn.Module, kind: str, precision: str):
        """A ModelPatcher, by which ComfyUI moves a network between devices; ``kind`` is one of ``_devices``."""
        from torch import nn

        # ComfyUI writes attributes such as ``device`` to what it moves, which our networks compute: so, into a shell.
        return self._patcher(nn.ModuleDict({"network": module}), kind, precision)

    def video_model(self, network: FramesAsBatch, precision: str):
        """A native MODEL: ComfyUI's epsilon model with Stable Diffusion's schedule around our network."""
        import comfy.latent_formats
        import comfy.model_base
        import comfy.supported_models_base

        from ..core.config import VAEConfig

        # The switch keeps ComfyUI from building a UNet of its own; the other entries are what nodes ask a MODEL for.
        about = {"disable_unet_model_creation": True, "in_channels": network.unet.config.in_channels}
        config = comfy.supported_models_base.BASE(about)
        config.latent_format = comfy.latent_formats.SD15(network.latent_scale)
        if network.latent_scale != VAEConfig().scale_factor:
            # Another latent space than Stable Diffusion's, whose preview colours would be wrong: no preview then.
            config.latent_format.latent_rgb_factors = config.latent_format.taesd_decoder_name = None
        model = comfy.model_base.BaseModel(config, model_type=comfy.model_base.ModelType.EPS)
        model.diffusion_model = network
        return self._patcher(model.eval(), "unet", precision)

    def load(self, patcher, memory: float = 0) -> None:
        """Bring a network to its device, with ``memory`` bytes left for its work."""
        import comfy.model_management as management

        management.load_models_gpu([patcher], memory_required=memory)

    def free_memory(self, device: torch.device) -> int:
        import comfy.model_management as management

        return int(management.get_free_memory(device))

    def progress(self, model, steps: int, work: str = "sampling") -> Callable[[dict], None]:
        """A step's callback: progress bar, the Cancel button and, for a MODEL, a preview of the middle frame."""
        import comfy.model_management as management
        import comfy.utils
        import latent_preview

        previewer = model and latent_preview.get_previewer(model.load_device, model.get_model_object("latent_format"))
        bar = comfy.utils.ProgressBar(steps)

        def callback(info: dict) -> None:
            management.throw_exception_if_processing_interrupted()
            preview = None
            if previewer:
                middle = info["denoised"][:, :, info["denoised"].shape[2] // 2]
                preview = previewer.decode_latent_to_preview_image("JPEG", middle)
            bar.update_absolute(info["i"] + 1, steps, preview)

        return callback

    def model_folders(self) -> list[Path]:
        return self._folders(FOLDER, SUFFIXES)

    def model_files(self) -> list[str]:
        import folder_paths

        self.model_folders()
        return folder_paths.get_filename_list(FOLDER)

    def model_path(self, name: str, what: str = "model") -> Path:
        return self._chosen(what, name, FOLDER, self.model_files())

    def motion_files(self) -> list[str]:
        import folder_paths

        self._motion_folders()
        return folder_paths.get_filename_list(MOTION_FOLDER)

    def motion_path(self, name: str) -> Path:
        return self._chosen("motion", name, MOTION_FOLDER, self.motion_files())

    def new_output(self, prefix: str, suffix: str) -> tuple[Path, str]:
        import folder_paths

        folder, name, number, subfolder, _ = folder_paths.get_save_image_path(
            prefix, folder_paths.get_output_directory()
        )
        return Path(folder) / f"{name}_{number:05}_{suffix}", subfolder

    def _chosen(self, what: str, name: str, key: str, files: list[str]) -> Path:
        import folder_paths

        if name not in files:
            raise not_listed(what, name, folder_paths.get_folder_paths(key))
        return Path(folder_paths.get_full_path_or_raise(key, name))

    def _motion_folders(self) -> list[Path]:
        import folder_paths

        saved = os.path.join(folder_paths.get_output_directory(), SAVED_MOTION)
        return self._folders(MOTION_FOLDER, MOTION_SUFFIXES, folder_paths.get_input_directory(), saved)

    def _folders(self, key: str, suffixes: tuple[str, ...], *more: str) -> list[Path]:
        """The folders of a kind of file: that of the models folder, those of the user's settings, and ``more``."""
        import folder_paths

        folder_paths.add_model_folder_path(key, os.path.join(folder_paths.models_dir, key), is_default=True)
        for folder in more:
            folder_paths.add_model_folder_path(key, folder)
        # A new key lists every file until it is given suffixes.
        folder_paths.folder_names_and_paths[key][1].update(suffixes)
        return [Path(folder) for folder in folder_paths.get_folder_paths(key)]

    def _patcher(self, model: nn.Module, kind: str, precision: str):
        from ..core.mapped import convert

        load_device, offload_device = self._devices(kind)
        model = convert(model, self._dtype(kind, load_device, precision))
        return patcher_class()(model, load_device, offload_device)

    def _devices(self, kind: str) -> tuple[torch.device, torch.device]:
        import comfy.model_management as management

        load_device, offload_device = {
            "unet": (management.get_torch_device, management.unet_offload_device),
            "vae": (management.vae_device, management.vae_offload_device),
            "text": (management.text_encoder_device, management.text_encoder_offload_device),
            "reward": (management.get_torch_device, management.unet_offload_device),
        }[kind]
        return load_device(), offload_device()

    def _dtype(self, kind: str, device: torch.device, precision: str) -> torch.dtype:
        """The precision asked for, or ComfyUI's choice for the device, as far as our networks can do it."""
        import comfy.model_management as management
        import torch

        if precision != "auto":
            return named_dtype(precision)
        if kind == "vae":
            return management.vae_dtype(device, [torch.bfloat16, torch.float32])
        supported = [torch.float16, torch.bfloat16, torch.float32]
        if kind == "reward":
            supported.remove(torch.float16)  # The method computes rewards in bf16, whose range is fp32's.
        chosen = management.unet_dtype(device, supported_dtypes=supported)
        return chosen if chosen in supported else torch.float32


class WholeMoves:
    """Makes ModelPatcher fit networks of plain torch layers, out of which gradients may be wanted.

    Plain layers cannot stream their weights, so a network moves whole or not at all. And it moves outside inference
    mode, under which nodes run: weights that were moved inside it could never take part in a gradient.
    """

    def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        import torch

        with torch.inference_mode(False):
            return super().load(device_to, 0, force_patch_weights, full_load=True)

    def unpatch_model(self, *args, **options):
        import torch

        with torch.inference_mode(False):
            return super().unpatch_model(*args, **options)

    def partially_unload(self, device_to, memory_to_free=0):
        """Free nothing, upon which ComfyUI unloads the whole."""
        return 0


@cache
def patcher_class() -> type:
    import comfy.model_patcher

    return type("WholePatcher", (WholeMoves, comfy.model_patcher.ModelPatcher), {})
