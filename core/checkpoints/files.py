"""Checkpoint files as they lie on a disk: torch's and safetensors, whole or in shards.

Files come from strangers: nothing is unpickled beyond tensors, no path leaves the folder of an index, and every failure
names the file, what was found and what to do.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
INDEX_SUFFIX = ".index.json"
# Larger than the index of any model; what is larger is none.
LARGEST_JSON = 64 << 20
_SHARD = re.compile(r"-(\d+)-of-(\d+)$")
# Classes that hold settings, as trainers keep them beside the weights: modules, and full names.
_SETTINGS_MODULES = (
    *("collections.", "numpy.", "pathlib.", "typing."),
    *("lightning.", "lightning_fabric.", "pytorch_lightning.", "omegaconf."),
)
_SETTINGS = {
    "argparse.Namespace",
    "_codecs.encode",
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "set", "str", "tuple")),
}
# How files of other kinds begin, in lower case, and what to say of them.
_OTHER_KINDS = {
    b"<!doctype": "is a web page, not a checkpoint: the link led to a page; fetch the file itself",
    b"<html": "is a web page, not a checkpoint: the link led to a page; fetch the file itself",
    b"<?xml": "is an XML page, not a checkpoint: the link led to a page; fetch the file itself",
    b"version https://git-lfs": "is a git-lfs pointer, not the file itself; run `git lfs pull`, or download the file",
    b"gguf": "is a GGUF file, which is not supported; use the .safetensors or .pt that it was made from",
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, what was expected and what to do."""


def read_file(path: str | Path) -> tuple[Any, dict[str, str]]:
    """What a checkpoint holds, on the CPU, memory-mapped where the format allows, and its metadata.

    Args:
        path: a file, an index of shards (``*.index.json``), one of its shards, or a folder that holds one of these.

    Returns:
        A dictionary (of tensors, or nested), a list or whatever else was saved; and text metadata, {} for torch files.

    Raises:
        CheckpointError: if it is missing, empty, damaged, of another kind, or holds objects that could run code.
    """
    path = _in_folder(Path(path))
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file; check the path, or fetch it with `t2v-turbo download`")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty (0 bytes); delete it and fetch it again")
    _refuse_other_kinds(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path), {}
    part = _SHARD.search(path.stem)
    if part and int(part[2]) > 1:
        return _read_shards(_index_of(path, *part.groups())), {}
    return _read_whole(path)


def read_json(path: Path) -> dict:
    """A JSON object out of a small file.

    Raises:
        CheckpointError: if it is none.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"{path.stat().st_size} bytes are too many")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({first_line(error)}); fetch it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds no JSON object; fetch it again")
    return values


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def _in_folder(path: Path) -> Path:
    """The checkpoint in a folder: the index of shards, or the only file; any other path as it is."""
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"*{INDEX_SUFFIX}")) or sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in found[:5])
    what = f"holds {len(found)} checkpoints ({names})" if found else "is a folder without a checkpoint"
    raise CheckpointError(f"{path}: {what}; name one file")


def _refuse_other_kinds(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    for begin, what in _OTHER_KINDS.items():
        if start.startswith(begin):
            raise CheckpointError(f"{path}: {what}")


def _read_whole(path: Path) -> tuple[Any, dict[str, str]]:
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _read_safetensors(path)
    if suffix in TORCH_SUFFIXES:
        return _read_torch(path), {}
    raise CheckpointError(f"{path}: unknown kind of file '{path.suffix}'; use {', '.join(SUFFIXES)}")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: not a complete safetensors file ({error}); it is truncated or of another kind: fetch it again"
        ) from error


# --- torch's files ----------


class _StandIn:
    """In place of an object that holds settings: it is neither built nor imported, and forgets what it is given."""

    def __new__(cls, *_, **__):
        return object.__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _):
        pass


class _DictStandIn:
    """In place of a class derived from dict, which torch fills item by item."""

    def __new__(cls, *_, **__):
        return OrderedDict()


def _read_torch(path: Path) -> Any:
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        _check_archive(path)
    stand_ins = _stand_ins(path) if is_zip else []
    try:
        with torch.serialization.safe_globals(stand_ins):
            # Files of before torch 1.6 are not zip archives and cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(_refusal(path, [named[1]] if named else [])) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path}: damaged or truncated ({first_line(error)}); fetch it again") from error


def _check_archive(path: Path) -> None:
    """Refuse zip archives that are no checkpoint of torch."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [Path(name) for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(f"{path}: damaged or truncated ({first_line(error)}); fetch it again") from error
    files = {name.name for name in names}
    if "data.pkl" not in files:
        held = ", ".join(sorted(files)[:3]) or "nothing"
        raise CheckpointError(
            f"{path}: is a zip archive of {held}, which torch did not write; unpack it and name the checkpoint inside"
        )
    if "constants.pkl" in files:
        raise CheckpointError(f"{path}: is a TorchScript program, not weights; save its state_dict() as .safetensors")


def _stand_ins(path: Path) -> list[tuple[type, str]]:
    """Stand-ins for the classes of settings that a file mentions.

    Raises:
        CheckpointError: naming the first classes that are no settings.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except (RuntimeError, ValueError, pickle.UnpicklingError):
        return []  # torch.load will say what is wrong
    foreign = sorted(name for name in names if name not in _SETTINGS and not name.startswith(_SETTINGS_MODULES))
    if foreign:
        raise CheckpointError(_refusal(path, foreign))
    return [(_DictStandIn if name.lower().endswith("dict") else _StandIn, name) for name in names]


def _refusal(path: Path, classes: list[str]) -> str:
    what = f" ({', '.join(classes[:3])})" if classes else ", or is no checkpoint"
    return (
        f"{path}: holds objects other than tensors{what}; it was not loaded, because such a file can run code. Where "
        "you trust it, save its weights alone as .safetensors"
    )


# --- shards ----------


def _index_of(shard: Path, number: str, count: str) -> Path:
    """The index that shard ``number`` of ``count`` belongs to, out of its own folder."""
    name = _SHARD.sub("", shard.stem)
    index = shard.with_name(f"{name}{shard.suffix}{INDEX_SUFFIX}")
    if not index.is_file():
        raise CheckpointError(
            f"{shard}: is part {int(number)} of {int(count)} of a checkpoint, and its index {index.name} is not there; "
            "fetch the index and all parts into one folder"
        )
    return index


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors that an index names, out of the shards beside it."""
    shards = _shards(index)
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index}: {len(missing)} of its {len(shards)} parts are missing (first: {missing[0]}); fetch them into "
            "the same folder"
        )
    state = {}
    for name, keys in shards.items():
        held, _ = _read_whole(index.parent / name)
        lost = [key for key in keys if not isinstance(held, dict) or key not in held]
        if lost:
            raise CheckpointError(
                f"{index.parent / name}: lacks {len(lost)} of the {len(keys)} weights that {index.name} names there "
                f"(first: '{lost[0]}'); the parts are of different checkpoints: fetch all of them again"
            )
        state |= {key: held[key] for key in keys}
    return state


def _shards(index: Path) -> dict[str, list[str]]:
    """Keys by file name; every file lies beside the index."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map, so it is no index of a checkpoint; name the checkpoint")
    shards: dict[str, list[str]] = {}
    for key, name in weight_map.items():
        # A name with a folder or a drive in it could reach any file of the computer.
        if not isinstance(name, str) or not name.lower().endswith(SUFFIXES) or re.search(r"[/\\:\0]", name):
            raise CheckpointError(f"{index}: names {name!r}, which is no checkpoint beside it; fetch the index again")
        shards.setdefault(name, []).append(key)
    return shards
