"""Checkpoints of a run, `step-NNNNNN`: written whole or not at all, the newest whole one read, the oldest deleted."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from ...core.checkpoints.networks import save_tensors

logger = logging.getLogger(__name__)

NAME = re.compile(r"step-(\d+)")
PROGRESS = "progress.json"
# What every checkpoint holds, and what some do. Those of older runs do not say which files are theirs.
ALWAYS = ("model.safetensors", "optimizer.bin")
SOMETIMES = ("ema.safetensors", "follower.safetensors", "scaler.bin", "scaler.pt")


class DamagedError(ValueError):
    """A checkpoint that cannot be read; the message names the file and the reason."""


@dataclass
class Checkpoint:
    """What training needs to go on.

    Attributes:
        tensors: weights by network: "model", and where there are such averages "ema" and "follower".
        states: of the "optimizer", and of the "scaler" of gradients in fp16.
        progress: "step", "processes", and "ema_step", the updates of the exported average.
        path: where it was read.
    """

    tensors: dict[str, dict[str, Tensor]]
    states: dict[str, dict[str, Any]]
    progress: dict[str, Any]
    path: Path | None = None

    def write(self, folder: Path) -> None:
        """Write the files into a new folder.

        Raises:
            OSError: if the disk is full.
        """
        folder.mkdir(parents=True)
        for name, tensors in self.tensors.items():
            save_tensors(tensors, folder / f"{name}.safetensors", {})
        for name, state in self.states.items():
            _save(state, folder / f"{name}.bin")
        files = sorted(path.name for path in folder.iterdir())
        (folder / PROGRESS).write_text(json.dumps(self.progress | {"files": files}))

    @staticmethod
    def read(folder: Path) -> Checkpoint:
        """Read a folder.

        Raises:
            DamagedError: if a file is missing or damaged.
        """
        progress = _read(folder / PROGRESS)
        if not isinstance(progress, dict) or "step" not in progress:
            raise DamagedError(f"{PROGRESS} does not tell the step")
        names = progress.get("files") or [*ALWAYS, *(name for name in SOMETIMES if (folder / name).exists())]
        found = {name: _read(folder / name) for name in names if name in ALWAYS + SOMETIMES}
        return Checkpoint(
            {Path(name).stem: content for name, content in found.items() if name.endswith(".safetensors")},
            {Path(name).stem: content for name, content in found.items() if not name.endswith(".safetensors")},
            progress,
            folder,
        )


def _save(state: dict[str, Any], path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:  # what torch makes of an OSError, without its text
        raise OSError(f"{path}: could not be written to its end, the disk may be full") from error


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text())
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DamagedError(f"{path.name} is missing") from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise DamagedError(f"{path.name} cannot be read: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    return str(error).strip().split("\n")[0].split(". ")[0][:150]


class RunCheckpoints:
    """The checkpoints in ``folder``.

    Args:
        keep: how many stay.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = Path(folder), keep

    def write(self, checkpoint: Checkpoint) -> None:
        """Write under a temporary name, rename, and delete what is too old.

        Raises:
            OSError: if the disk is full; nothing half-written stays.
        """
        step = checkpoint.progress["step"]
        target, partial = self.folder / f"step-{step:06d}", self.folder / "partial"
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed while it saved
        try:
            checkpoint.write(partial)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        there = in_order(self.folder)
        # Those of later steps were damaged, or the run would have gone on from there.
        old = [path for path in there if step_of(path) <= step][: -self.keep]
        for path in old + [path for path in there if step_of(path) > step]:
            shutil.rmtree(path)

    def read_newest(self) -> Checkpoint | None:
        """The newest one that is whole; tells of those that are not. None if there is none at all.

        Raises:
            ValueError: if there are some, and all are damaged.
        """
        damaged = []
        for path in reversed(in_order(self.folder)):
            try:
                found = Checkpoint.read(path)
            except DamagedError as error:
                damaged.append(f"{path} is damaged ({error})")
                continue
            for line in damaged:
                logger.warning("%s: going on from %s, the one before", line, path.name)
            return found
        if damaged:
            raise ValueError(f"{damaged[0]} and none before it is whole: delete {self.folder} to begin anew")
        return None


def step_of(path: Path) -> int:
    return int(NAME.fullmatch(path.name)[1])


def in_order(folder: Path) -> list[Path]:
    """All checkpoints in ``folder``, the oldest first; by number, for names beyond 999999 are longer."""
    found = Path(folder).glob("step-*")
    return sorted((path for path in found if NAME.fullmatch(path.name) and path.is_dir()), key=step_of)


def newest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run's folder that was written to its end, or None."""
    found = [path for path in in_order(Path(run) / "checkpoints") if (path / PROGRESS).is_file()]
    return found[-1] if found else None


# --- weights that are shared ----------


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, each tensor once where several names share it, as safetensors wants."""
    found, seen = {}, set()
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen or not value.numel():
            found[name] = value
        seen.add(value.data_ptr())
    return found


def load_weights(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Put weights of ``weights_of`` in place.

    Raises:
        KeyError, RuntimeError: if they are of another network.
    """
    consume_prefix_in_state_dict_if_present(saved, "module.")  # older runs of several processes
    own = model.state_dict()
    loaded = {own[name].data_ptr() for name in saved}
    missing = [name for name in own if name not in saved and own[name].data_ptr() not in loaded]
    if missing:
        raise KeyError(f"no weights for {missing[0]}")
    model.load_state_dict(saved, strict=False)
