"""Where the files of the model families lie, and what they are called."""

from __future__ import annotations

import os
from pathlib import Path

from ..files import file_hash
from .lora import split_strength

PACKAGED_WEIGHTS = Path(__file__).parents[2] / "weights"
# Students by the name that `load` takes; the first that exists is the default.
STUDENT_FILES = {
    "shapes": {"no-mg": "student.safetensors", "mg": "student_mg.safetensors"},
    "videocrafter2": {"mg": "unet_mg.pt", "no-mg": "unet_no_mg.pt", "v1": "unet_lora.pt"},
}
# The file of the teacher, the autoencoder and the text tower.
BASE_FILES = {
    "shapes": ("teacher.safetensors", "vae.safetensors", "text.safetensors"),
    "videocrafter2": ("model.ckpt", "model.ckpt", "model.ckpt"),
}


def models_folder() -> Path:
    """Where downloaded checkpoints lie: ``T2V_TURBO_MODELS``, or a folder in the user's cache.

    Raises:
        ValueError: if that is not set, and the system knows no home folder of this user.
    """
    if chosen := os.environ.get("T2V_TURBO_MODELS"):
        return Path(chosen)
    try:
        return Path.home() / ".cache" / "t2v-turbo"
    except RuntimeError as error:
        raise ValueError("this user has no home folder, so none of models: set T2V_TURBO_MODELS to one") from error


def family_folder(name: str) -> Path:
    """The folder of a family's files: in the package for the embedded one, else below the models folder."""
    return PACKAGED_WEIGHTS / name if (PACKAGED_WEIGHTS / name).is_dir() else models_folder() / name


def find_family(place: str | Path) -> tuple[str, Path]:
    """The family that ``place`` names or holds the files of, and their folder.

    Args:
        place: the name of a family, a folder with its files, or a folder of such folders.

    Raises:
        ValueError: if it is none of them, or holds several families.
    """
    if str(place) in BASE_FILES:
        return str(place), family_folder(str(place))
    place = Path(place)
    for folders in ({name: place for name in BASE_FILES}, {name: place / name for name in BASE_FILES}):
        found = {name: there for name, there in folders.items() if _holds(there, name)}
        if len(found) > 1:
            raise ValueError(f"{place}: holds {' and '.join(found)}; name the folder of one")
        if found:
            return next(iter(found.items()))
    files = "; ".join(f"{', '.join(dict.fromkeys(names[1:]))} of {name}" for name, names in BASE_FILES.items())
    what = "holds no model" if place.is_dir() else "is neither a model's name nor a folder"
    raise ValueError(
        f"{place}: {what}; use {' or '.join(BASE_FILES)}, or a folder with {files} "
        "(`t2v-turbo download` fetches the published files)"
    )


def _holds(folder: Path, family: str) -> bool:
    """Whether a folder has the autoencoder and the text tower of a family."""
    return all((folder / name).is_file() for name in BASE_FILES[family][1:])


def student_path(family: str, student: str | Path, folder: Path) -> Path:
    """The checkpoint that ``student`` names: a known name, or a path, whose strength, if any, is taken off."""
    known, student = STUDENT_FILES[family], str(split_strength(student)[0])
    if student == "default":
        present = [name for name in known if (folder / known[name]).exists()]
        student = present[0] if present else next(iter(known))
    if student in known:
        return folder / known[student]
    if "." in Path(student).name or os.sep in student:
        return Path(student)
    raise ValueError(f"unknown student '{student}'; use {', '.join(known)} or the path of a checkpoint")


def weights_of(family: str, folder: str | Path | None) -> dict[str, str]:
    """Hashes of the teacher's, the autoencoder's and the text tower's files, by name."""
    folder = Path(folder) if folder else family_folder(family)
    return {name: file_hash(folder / name) for name in sorted(set(BASE_FILES[family]))}
