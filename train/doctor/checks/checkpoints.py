"""Checkpoints: which files are there, and whether they are whole and of the right model.

Files are opened with the loaders that every command uses, onto the device "meta": names and shapes of all weights are
compared, and the weights themselves are not read. Of the embedded files the check sums are compared too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ....core.checkpoints.locations import BASE_FILES, STUDENT_FILES, family_folder
from ....core.checkpoints.networks import CheckpointError, load_text, load_unet, load_vae
from ....core.families import SHAPES, VIDEOCRAFTER2
from ....core.rewards import PAPER_WEIGHTS, REWARDS, load_reward, reward_path
from ...download import Published, open_unet, published_places
from ..findings import Finding, Options, attempt, failure, readable
from ..reference import FILE, altered

LIBRARY = "it is a library that failed, not the file: install those again that stand among the versions"
PACKAGE_AGAIN = "install the package again; in a checkout, `git checkout weights`"


def examine(options: Options) -> Iterator[Finding]:
    folder = options.weights or family_folder(SHAPES.name)
    changed = []
    try:
        changed = altered(folder)
    except CheckpointError as error:
        yield failure(FILE, error, PACKAGE_AGAIN)
    for name in embedded_files():
        yield attempt(name, partial(embedded, folder / name, name in changed), partial(remedy_for, PACKAGE_AGAIN))
    try:
        places = published_places(options.folder)
    except ValueError:
        yield Finding("published files", "skip", "not looked for without a models folder, see the folders")
        return
    for name, published, path in places:
        title = f"{name}: {published.file}"
        remedy = f"`t2v-turbo download {name}`" + (f" --folder {options.folder}" if options.folder else "")
        find = partial(downloaded, title, name, published, path, remedy)
        yield attempt(title, find, partial(remedy_for, f"delete the file, then {remedy}"))


def remedy_for(usual: str, error: Exception) -> str:
    """The usual remedy, unless it was not the file that failed."""
    return usual if isinstance(error, ValueError | OSError) else LIBRARY


# --- the embedded family ----------


def embedded_files() -> list[str]:
    rewards = [reward_path(name, SHAPES.name).name for name in PAPER_WEIGHTS]
    return [*BASE_FILES[SHAPES.name], *STUDENT_FILES[SHAPES.name].values(), *rewards]


def embedded(path: Path, changed: bool) -> Finding:
    """Raises: CheckpointError: if the file cannot be loaded."""
    open_embedded(path)
    data = {"path": str(path), "bytes": path.stat().st_size}
    if changed:
        return Finding(path.name, "fail", "differs from the file that was shipped", PACKAGE_AGAIN, data)
    return Finding(path.name, "ok", f"embedded, {readable(path.stat().st_size)}", data=data)


def open_embedded(path: Path) -> None:
    teacher, vae, text = BASE_FILES[SHAPES.name]
    students = STUDENT_FILES[SHAPES.name].values()
    if path.name in (teacher, *students):
        if load_unet(path, SHAPES.unet, "meta").takes_guidance != (path.name in students):
            raise CheckpointError(f"{path}: a student lies in the place of the teacher, or the other way round")
    elif path.name == vae:
        load_vae(path, SHAPES.vae, "meta")
    elif path.name == text:
        load_text(path, SHAPES.text, "meta").tokenize(["a red circle"])  # which reads the merges list
    else:
        load_reward(path.stem.removeprefix("reward_"), path, SHAPES.name, "meta")


# --- the published files ----------


def downloaded(title: str, name: str, published: Published, path: Path, remedy: str) -> Finding:
    """Raises: CheckpointError: if the file is there and cannot be loaded."""
    if not os.path.isfile(path):  # Path.is_file would raise in a home folder that is closed to this user
        return missing(title, path, remedy)
    open_published(name, published, path)
    size = path.stat().st_size
    return Finding(title, "ok", f"whole, {readable(size)}", data={"path": str(path), "bytes": size})


def missing(title: str, path: Path, remedy: str) -> Finding:
    """A file that is not there; a part of it may have arrived."""
    parts = sorted(path.parent.glob(f".{path.name}.*.part*")) if os.path.isdir(path.parent) else []
    data = {"path": str(path)}
    if not parts:
        return Finding(title, "skip", "not downloaded", remedy, data)
    size = sum(part.stat().st_size for part in parts)
    data |= {"parts": [str(part) for part in parts], "bytes": size}
    return Finding(title, "warn", f"downloaded in part, {readable(size)} so far", f"{remedy} goes on from there", data)


def open_published(name: str, published: Published, path: Path) -> None:
    """Open a file as commands would, without reading its weights."""
    family = VIDEOCRAFTER2
    if name in REWARDS and path == path.with_name(REWARDS[name].files[0][1]):
        load_reward(name, path, family.name, "meta")
    elif published.opens is not open_unet:
        published.opens(path)
    elif load_unet(path, family.unet, "meta").takes_guidance == (name == "teacher"):
        raise CheckpointError(f"{path}: a student lies in the place of the teacher, or the other way round")
    if path.name in BASE_FILES[family.name]:
        load_vae(path, family.vae, "meta")
        load_text(path, family.text, "meta")
