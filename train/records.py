"""Training records on disk: WebDataset shards, written whole or not at all, and read in an order that can be resumed.

A folder holds `records.json` (how the records were made, and once all are there the count of every shard), and
per shard `NNNNNN.tar` and `NNNNNN.json` (its count and the clips that were skipped). A sample of a shard is
`key.safetensors` (z, cond, uncond (C, F, H, W), context (L, D), index (), and score (C, F, H, W) if there is a motion
score) and `key.json` (caption, kind, source, …).
"""

from __future__ import annotations

import glob
import io
import json
import lzma
import os
import re
import tarfile
import urllib.request
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
import webdataset
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ..core.text_files import TextError, read_json, write_json, write_text
from .data import generator_for

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


# --- writing ---------


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


# --- reading ---------


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


def find_places(text: str) -> list[str]:
    """Folders and URLs out of a comma-separated list of folders, URLs and globs.

    Raises:
        ValueError: if a glob matches no folder, or a URL is of a kind that is not read.
    """
    places = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if REMOTE.match(part):
            places.append(part)
        elif "://" in part or part.startswith("pipe:"):
            raise ValueError(f"records {part}: cannot be read from there; use http(s)://, gs://, hf:// or a folder")
        else:
            found = sorted(path for path in glob.glob(part) if os.path.isdir(path))
            if not found:
                raise ValueError(f"records {part}: no such folder; make it with `t2v-turbo preprocess`")
            places += found
    return places


@dataclass(frozen=True)
class Shard:
    """Where a shard is, and how many records it must hold."""

    url: str
    records: int


class RecordSet:
    """The shards of one or several places, which must have been made by the same teacher on the same grid.

    Args:
        text: see ``find_places``.

    Attributes:
        made_from: the part of the manifests that all places share.
        motion: how the motion scores were made, per kind of place that has them; [] = no scores anywhere.

    Raises:
        ValueError: if a place is incomplete, or the places do not go together.
    """

    SAME = ("family", "weights", "solver_steps", "fps", "frames", "height", "width", "dtype")

    def __init__(self, text: str):
        places = find_places(text)
        if not places:
            raise ValueError("records: name at least one folder")
        manifests = [read_manifest(place) for place in places]
        self.made_from = {name: manifests[0]["made_from"].get(name) for name in self.SAME}
        self.motion = _distinct(manifest["made_from"].get("motion") for manifest in manifests)
        if len({made["energy"] for made in self.motion}) > 1:
            raise ValueError(f"records {text}: have motion scores of different energies; use one of the sets")
        self.shards, self.bytes = [], 0
        for place, manifest in zip(places, manifests):
            self._check(place, manifest, places[0])
            self.bytes += manifest["bytes"]
            base = place.rstrip("/")
            # By number: names beyond 999999 are longer.
            ordered = sorted(manifest["shards"].items(), key=lambda shard: int(shard[0].removesuffix(".tar")))
            self.shards += [Shard(f"{base}/{name}", number) for name, number in ordered]

    @property
    def tau(self) -> float:
        """The fraction of the timesteps in which every place with motion scores has them; 0 = no scores anywhere."""
        return min((made["tau"] for made in self.motion), default=0.0)

    def __len__(self) -> int:
        return sum(shard.records for shard in self.shards)

    def _check(self, place: str, manifest: dict, first: str) -> None:
        if "shards" not in manifest:
            raise ValueError(f"records {place}: are incomplete; run the same `t2v-turbo preprocess` command to its end")
        for name in self.SAME:
            if manifest["made_from"].get(name) != self.made_from[name]:
                raise ValueError(f"records {place} and {first} do not go together: they differ in {name}")
        for name, number in manifest["shards"].items():
            if not SHARD_NAME.fullmatch(name) or type(number) is not int or number < 0:
                raise ValueError(f"records {place}: the manifest names a strange shard {name!r} of {number!r} records")
            if not REMOTE.match(place) and not os.path.exists(f"{place}/{name}"):
                raise ValueError(f"records {place}: {name} is missing; run the same `t2v-turbo preprocess` again")


def _distinct(found: Iterable[dict | None]) -> list[dict]:
    """Those that there are, each once."""
    kinds = []
    for one in found:
        if one and one not in kinds:
            kinds.append(one)
    return kinds


def read_shard(shard: Shard) -> Iterator[Record]:
    """The records of a shard, in the order they were written.

    Raises:
        ValueError: if it cannot be read to its end or holds another number of records than the manifest says.
    """
    found = 0
    # Not webdataset.WebDataset, which would share out the shards once more among the processes.
    samples = webdataset.DataPipeline(webdataset.SimpleShardList([shard.url]), webdataset.tarfile_to_samples())
    try:
        for sample in samples:
            yield _read_record(sample)
            found += 1
    except (SafetensorError, OSError, ValueError, KeyError, EOFError, *DAMAGED_ARCHIVE) as error:
        raise ValueError(f"{shard.url}: broken after {found} records ({error}); {REMEDY}") from error
    if found != shard.records:
        raise ValueError(f"{shard.url}: holds {found} records, the manifest says {shard.records}; {REMEDY}")


def _read_record(sample: dict) -> Record:
    """Raises: KeyError, ValueError: for a sample that is no record."""
    tensors, about = load_tensors(sample["safetensors"]), json.loads(sample["json"])
    shapes = {tensors[name].shape for name in tensors.keys() - {"index", "context"}}
    if not TENSORS <= tensors.keys() <= TENSORS | {"score"} or len(shapes) > 1 or not isinstance(about, dict):
        raise ValueError(f"{sample['__key__']} is no record: it holds {', '.join(sorted(tensors))}")
    return Record(sample["__key__"], tensors, about)


class RecordReader:
    """An endless, shuffled, resumable sequence of records.

    The order is a pure function of (seed, rank, world): per epoch the shards are shuffled and dealt out to the
    ranks, then the records are shuffled within blocks of ``shuffle``. So sample k is found without reading what comes
    before its block: whole shards are skipped by their count.

    Args:
        shuffle: records of a block, all of which are in memory at once.
        cache_gb: a set up to this size stays in memory once read.

    Raises:
        ValueError: if there are more processes than shards.
    """

    def __init__(
        self,
        records: RecordSet,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle: int = 1024,
        cache_gb: float = 2.0,
    ):
        self.shards = [shard for shard in records.shards if shard.records]
        if len(self.shards) < world:
            raise ValueError(
                f"records: {len(self.shards)} shards cannot be shared by {world} processes; "
                "preprocess with fewer clips_per_shard, or train on fewer processes"
            )
        self.seed, self.rank, self.world, self.shuffle = seed, rank, world, shuffle
        self.grid = records.made_from["solver_steps"]
        self._cache: dict[str, list[Record]] | None = {} if records.bytes <= cache_gb * 2**30 else None

    def stream(self, start: int = 0) -> Iterator[Record]:
        """The endless sequence from sample ``start`` of this rank on."""
        for epoch in count():
            shards = self.epoch_shards(epoch)
            length = sum(shard.records for shard in shards)
            if start < length:
                yield from self._epoch(epoch, shards, start)
            start = max(0, start - length)

    def epoch_shards(self, epoch: int) -> list[Shard]:
        """This rank's shards in one epoch, in order."""
        order = torch.randperm(len(self.shards), generator=generator_for("shards", self.seed, epoch))
        return [self.shards[i] for i in order[self.rank :: self.world].tolist()]

    def _epoch(self, epoch: int, shards: list[Shard], start: int) -> Iterator[Record]:
        block, inside = divmod(start, self.shuffle)
        records = self._read(shards, block * self.shuffle)
        while chunk := list(islice(records, self.shuffle)):
            key = ("block", self.seed, epoch, self.rank, block)
            order = torch.randperm(len(chunk), generator=generator_for(*key)).tolist()
            yield from (chunk[i] for i in order[inside:])
            block, inside = block + 1, 0

    def _read(self, shards: list[Shard], skip: int) -> Iterator[Record]:
        """The records of ``shards`` without the first ``skip``."""
        for shard in shards:
            if skip < shard.records:
                for record in islice(self._records(shard), skip, None):
                    yield self._checked(record, shard)
            skip = max(0, skip - shard.records)

    def _checked(self, record: Record, shard: Shard) -> Record:
        index = record.tensors["index"]
        if index.shape or not 0 <= int(index) < self.grid:
            raise ValueError(f"{shard.url}: {record.key} lies at {index.tolist()} of {self.grid} grid points; {REMEDY}")
        return record

    def _records(self, shard: Shard) -> Iterator[Record] | list[Record]:
        if self._cache is None:
            return read_shard(shard)
        if shard.url not in self._cache:
            self._cache[shard.url] = list(read_shard(shard))
        return self._cache[shard.url]


class RecordBatches(IterableDataset):
    """Batches from sample ``start`` of a reader on: tensors with a batch axis, and where the records come from."""

    def __init__(self, reader: RecordReader, batch_size: int, start: int):
        self.reader, self.batch_size, self.start = reader, batch_size, start

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], list[dict]]]:
        stream = self.reader.stream(self.start)
        while True:
            records = list(islice(stream, self.batch_size))
            yield collate(records), [record.about for record in records]


def collate(records: list[Record]) -> dict[str, Tensor]:
    """Tensors with a batch axis. Where some have a motion score, the others get zeros and a flag against guidance."""
    tensors = [record.tensors for record in records]
    for name in TENSORS & tensors[0].keys():
        if len({one[name].shape for one in tensors}) > 1:
            keys = ", ".join(record.key for record in records)
            raise ValueError(f"records {keys}: differ in the shape of {name}; use sets of one size")
    scored = torch.tensor(["score" in one for one in tensors])
    if not scored.any():
        return {name: torch.stack([one[name] for one in tensors]) for name in tensors[0]}
    tensors = [{"score": torch.zeros_like(one["z"])} | one for one in tensors]
    return {name: torch.stack([one[name] for one in tensors]) for name in tensors[0]} | {"use_motion_guide": scored}


def iterate_batches(
    reader: RecordReader, batch_size: int, start: int = 0, prefetch: bool = False
) -> Iterator[tuple[dict[str, Tensor], list[dict]]]:
    """Endless batches from sample ``start`` on; with ``prefetch`` a process of its own reads ahead."""
    batches = RecordBatches(reader, batch_size, start)
    if not prefetch:
        return iter(batches)
    # One process: several would interleave their streams. A generator of its own: the loader draws a seed from it.
    return iter(DataLoader(batches, batch_size=None, num_workers=1, generator=torch.Generator()))
