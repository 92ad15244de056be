"""Training records on disk: WebDataset shards, written whole or not at all, and read in an order that can be resumed.

A folder holds `records.json` (how the records were made, and once all are there the count of every shard), and
per shard `NNNNNN.tar` and `NNNNNN.json` (its count and the clips that were skipped). A sample of a shard is
`key.safetensors` (z, cond, uncond (C, F, H, W), context (L, D), index (), and score (C, F, H, W) if there is a motion
score) and `key.json` (caption, kind, source, …).
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice

import torch
import webdataset
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ..seeds import generator_for
from .records import DAMAGED_ARCHIVE, REMEDY, REMOTE, SHARD_NAME, TENSORS, Record, read_manifest

# --- writing ---------


# --- reading ---------


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
