"""Training records on disk: WebDataset shards, written whole or not at all."""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import tarfile
import urllib.request
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import webdataset
from safetensors.torch import save as dump_tensors
from torch import Tensor

from ...core.text_files import TextError, read_json, write_json, write_text

FORMAT = "t2v-turbo records 1"
MANIFEST = "records.json"
# What a shard may be called; anything else in a manifest is refused, for it becomes a path or a URL.
SHARD_NAME = re.compile(r"\d{6,}\.tar")
# Of a record; "score" may be there too.
TENSORS = {"z", "cond", "uncond", "context", "index"}
# What reading a tar raises, which may be compressed.
DAMAGED_ARCHIVE = (tarfile.TarError, zlib.error, lzma.LZMAError, RecursionError)
# Remote places that WebDataset reads; "pipe:" would run a command.
REMOTE = re.compile(r"(https?|gs|hf|ais)://")
REMEDY = "delete it and run the same `t2v-turbo preprocess` command again, or fetch it again"


@dataclass
class Record:
    """One sample of Algorithm 1: the tensors of ``core.distillation.Batch`` without the batch axis, and its origin."""

    key: str
    tensors: dict[str, Tensor]
    about: dict[str, Any]


def use_reward(about: dict[str, Any]) -> bool:
    """Whether rewards may score a sample: its flag; of records without one, whether its caption is a short one.

    The paper's rule: reward models cut dense captions off.
    """
    return bool(about.get("use_reward", about.get("kind") == "short"))


class ShardWriter:
    """Writes one shard; used as a context manager. Nothing is left where the block fails or is interrupted."""

    def __init__(self, folder: Path, number: int):
        self.path = shard_path(folder, number)
        self.partial = self.path.with_name(f".{self.path.name}.part")
        self.records, self.skipped = 0, []

    def __enter__(self) -> ShardWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.partial.open("wb")
        # A fixed time makes equal records equal files.
        self._tar = webdataset.TarWriter(self._file, encoder=False, mtime=0)
        return self

    def write(self, record: Record) -> None:
        # A file name of bytes that are no UTF-8 is written by its escapes, which JSON reads back.
        about = json.dumps(record.about, ensure_ascii=False).encode(errors="backslashreplace")
        tensors = dump_tensors({name: value.contiguous() for name, value in record.tensors.items()})
        self._tar.write({"__key__": record.key, "safetensors": tensors, "json": about})
        self.records += 1

    def skip(self, clip: str, reason: str) -> None:
        self.skipped.append({"clip": clip, "reason": reason})

    def __exit__(self, kind, *_) -> None:
        try:
            with self._file:  # a full disk may show when the tar or the file is closed
                self._tar.close()
            if kind is None:
                summary = {"records": self.records, "bytes": self.partial.stat().st_size, "skipped": self.skipped}
                write_json(self.path.with_suffix(".json"), summary)
                os.replace(self.partial, self.path)  # last: the tar's name says that the shard is done
        finally:
            self.partial.unlink(missing_ok=True)


def shard_path(folder: Path, number: int) -> Path:
    return Path(folder) / f"{number:06d}.tar"


def begin(folder: Path, made_from: dict) -> None:
    """Start or continue a folder of records that are made from ``made_from`` (JSON values).

    Raises:
        ValueError: if the folder holds records that were made differently.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MANIFEST
    if not path.exists():
        write_json(path, {"format": FORMAT, "made_from": made_from})
        return
    before = read_manifest(str(folder))["made_from"]
    changed = sorted(key for key in before.keys() | made_from.keys() if before.get(key) != made_from.get(key))
    if changed:
        told = "; ".join(f"{key}: {before.get(key)} there, {made_from.get(key)} now" for key in changed)
        raise ValueError(f"records={folder}: was made from something else ({told}); choose an empty folder")


def finish(folder: Path, shards: int) -> tuple[int, int] | None:
    """If all shards are there, complete the manifest, list the skipped clips, and return (records, skipped clips)."""
    if not all(shard_path(folder, i).exists() for i in range(shards)):
        return None
    summaries = [_read_summary(shard_path(folder, i)) for i in range(shards)]
    counts = {shard_path(folder, i).name: summary["records"] for i, summary in enumerate(summaries)}
    skipped = [line for summary in summaries for line in summary["skipped"]]
    write_text(folder / "skipped.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in skipped))
    total = {"records": sum(counts.values()), "bytes": sum(summary["bytes"] for summary in summaries)}
    write_json(folder / MANIFEST, read_manifest(str(folder)) | total | {"shards": counts})
    return total["records"], len(skipped)


def _read_summary(shard: Path) -> dict:
    """What was written beside a shard.

    Raises:
        ValueError: if it is missing or damaged.
    """
    path = shard.with_suffix(".json")
    try:
        summary = read_json(path)
        return {name: summary[name] for name in ("records", "bytes", "skipped")}
    except (OSError, TextError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: tells nothing of its shard ({error}); delete {shard} and run again") from error


def read_manifest(place: str) -> dict:
    """The manifest of a folder or URL.

    Raises:
        ValueError: if there is none, or it is not ours.
    """
    where = f"{place.rstrip('/')}/{MANIFEST}"
    try:
        with _open(where) as file:
            manifest = json.load(file)
    except (OSError, ValueError, RecursionError, HTTPException) as error:
        raise ValueError(
            f"records {place}: no readable {MANIFEST} ({error}); make it with `t2v-turbo preprocess`"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not _is_sound(manifest):
        raise ValueError(f"{where}: is not the manifest of '{FORMAT}', or damaged")
    return manifest


def _is_sound(manifest: dict) -> bool:
    """Whether the parts that are read are of their types; the names of the shards are checked where they are used."""
    made, shards = manifest.get("made_from"), manifest.get("shards", {})
    if not isinstance(made, dict) or not isinstance(shards, dict):
        return False
    if "shards" in manifest and not isinstance(manifest.get("bytes"), int):
        return False
    if not all(type(made.get(name)) is kind for name, kind in (("family", str), ("solver_steps", int), ("fps", int))):
        return False
    motion = made.get("motion")
    if motion is None:
        return True
    return isinstance(motion, dict) and isinstance(motion.get("tau"), int | float) and "energy" in motion


def _open(where: str) -> io.BufferedIOBase:
    if where.startswith(("http://", "https://")):
        return urllib.request.urlopen(where, timeout=60)
    return webdataset.gopen(where) if REMOTE.match(where) else open(where, "rb")
