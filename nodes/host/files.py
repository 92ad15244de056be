"""Which folders and files both hosts offer."""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

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


def is_reward_file(name: str) -> bool:
    """Whether a file of the models folder, by its relative name, is a reward model."""
    return PurePath(name).parts[0] == REWARD_FOLDER


def named_dtype(precision: str) -> torch.dtype:
    """The dtype of a precision out of the loader's list, other than "auto"."""
    from ...core.device import DTYPES

    return DTYPES[precision]


def listed(folders: list[Path], suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The files of these suffixes in folders and their subfolders, by relative name; the first of a name counts.

    A folder that is missing or cannot be read, such as one in another user's home, has none.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(Path(place, name) for place, _, names in os.walk(folder) for name in names):
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
