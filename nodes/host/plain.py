"""The host without ComfyUI: one device, folders of the command line."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .files import MOTION_FOLDER, MOTION_SUFFIXES, SAVED_MOTION, SUFFIXES, chosen, inside, listed, named_dtype

if TYPE_CHECKING:
    import torch
    from torch import nn


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
        from ...core.checkpoints.mapped import convert

        return PlainPatcher(convert(module, self._dtype(precision)), self._device())

    def video_model(self, network: nn.Module, precision: str) -> PlainPatcher:
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

    def changes(self, model: PlainPatcher) -> dict:
        return model.model_options

    def model_folders(self) -> list[Path]:
        """None without a home folder; the embedded family needs none."""
        from ...core.checkpoints.locations import models_folder

        try:
            return [models_folder()]
        except ValueError:
            return []

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
        folders = _current.get()
        beside = [folder.with_name(MOTION_FOLDER) for folder in self.model_folders()]
        return [*beside, folders.input, folders.output / SAVED_MOTION]

    def _device(self) -> torch.device:
        import torch

        accelerator = getattr(torch, "accelerator", None)
        found = accelerator.current_accelerator() if accelerator and accelerator.is_available() else None
        return found or torch.device("cpu")

    def _dtype(self, precision: str) -> torch.dtype:
        return named_dtype("fp32" if precision == "auto" else precision)


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
