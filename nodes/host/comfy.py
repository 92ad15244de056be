"""The only door to ComfyUI."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from .files import FOLDER, MOTION_FOLDER, MOTION_SUFFIXES, SAVED_MOTION, SUFFIXES, named_dtype, not_listed

if TYPE_CHECKING:
    import torch
    from torch import nn


log = logging.getLogger(__name__)


class ComfyHost:
    """Devices, memory, precision, progress and the models folder of a running ComfyUI."""

    def output_device(self) -> torch.device:
        import comfy.model_management as management

        return management.intermediate_device()

    def patcher(self, module: nn.Module, kind: str, precision: str):
        """A ModelPatcher, by which ComfyUI moves a network between devices; ``kind`` is one of ``_devices``."""
        from torch import nn

        # ComfyUI writes attributes such as ``device`` to what it moves, which our networks compute: so, into a shell,
        # by whose class ComfyUI's log calls it.
        shell = type(type(module).__name__, (nn.ModuleDict,), {})
        return self._patcher(shell({"network": module}), kind, precision)

    def video_model(self, network: nn.Module, precision: str):
        """A native MODEL: ComfyUI's epsilon model with Stable Diffusion's schedule around our network."""
        import comfy.latent_formats
        import comfy.model_base
        import comfy.supported_models_base

        from ...core.networks.config import VAEConfig

        # The switch keeps ComfyUI from building a UNet of its own; the other entries are what nodes ask a MODEL for.
        about = {key: getattr(network.unet.config, key) for key in ("in_channels", "model_channels")}
        config = comfy.supported_models_base.BASE(about | {"disable_unet_model_creation": True})
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

    def changes(self, model) -> dict:
        """What nodes have changed of how a MODEL samples, by ComfyUI's names."""
        wrappers = {kind: keyed for kind, keyed in model.wrappers.items() if any(keyed.values())}
        return model.model_options | model.object_patches | wrappers

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
        from ...core.checkpoints.mapped import convert

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
        if chosen in supported:
            return chosen
        usable = torch.bfloat16 if management.should_use_bf16(device) else torch.float32
        log.warning("T2V-Turbo: ComfyUI's options ask for %s, which our networks cannot do; %s is used", chosen, usable)
        return usable


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
