"""Records: what is written comes back, in an order that can be resumed, and damage is told."""

import json
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise

import pytest
import torch
from conftest import ROOT

from t2v_turbo.train.data import reader, records

MADE = {"family": "shapes", "weights": {}, "solver_steps": 200, "fps": 8, "seed": 0}


def record(i):
    z = torch.full((2, 1), float(i)).half()
    tensors = {"z": z, "cond": z.clone(), "uncond": z.clone(), "context": torch.zeros(3, 2), "index": torch.tensor(i)}
    return records.Record(f"{i:09d}-000", tensors, {"caption": f"clip {i}, é"})


def write_set(folder, counts, first=0, made=MADE):
    records.begin(folder, made)
    for number, count in enumerate(counts):
        with records.ShardWriter(folder, number) as writer:
            for i in range(first, first + count):
                writer.write(record(i))
            writer.skip(f"broken-{number}.mp4", "too short")
        first += count
    records.finish(folder, len(counts))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_set(tmp_path / "set", [5, 0, 7, 3, 6, 4])


def indices(stream, count):
    return [int(r.tensors["index"]) for r in islice(stream, count)]


def read_records(folder, **settings):
    return reader.RecordReader(reader.RecordSet(str(folder)), **settings)


def test_what_is_written_comes_back(folder):
    found = list(reader.read_shard(reader.Shard(str(folder / "000002.tar"), 7)))
    assert [r.about["caption"] for r in found] == [f"clip {i}, é" for i in range(5, 12)]
    assert found[0].tensors["z"].dtype == torch.float16
    assert all(torch.equal(r.tensors["z"], record(i).tensors["z"]) for i, r in enumerate(found, 5))
    skipped = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
    assert skipped[1] == {"clip": "broken-1.mp4", "reason": "too short"}


def test_shards_come_in_the_order_of_their_numbers(folder):
    """Names beyond 999999 are longer, and would come first in the order of their letters."""
    manifest = json.loads((folder / records.MANIFEST).read_text())
    numbers = (999_999, 1_000_000, 200_000, 1_000_001)
    for number in numbers:
        (folder / f"{number:06d}.tar").touch()
    manifest["shards"] = {f"{number:06d}.tar": number for number in numbers}
    (folder / records.MANIFEST).write_text(json.dumps(manifest))
    assert [shard.records for shard in reader.RecordSet(str(folder)).shards] == sorted(numbers)


def test_equal_records_make_equal_files(folder, tmp_path):
    again = write_set(tmp_path / "again", [5, 0, 7, 3, 6, 4])
    for path in folder.glob("*.tar"):
        assert path.read_bytes() == (again / path.name).read_bytes()


@pytest.mark.parametrize("shuffle", [1, 4, 1000])
@pytest.mark.parametrize("cache_gb", [0, 1])
def test_every_start_continues_the_same_sequence(folder, shuffle, cache_gb):
    whole = indices(read_records(folder, seed=3, shuffle=shuffle, cache_gb=cache_gb).stream(), 80)
    for start in (0, 1, 4, 5, 12, 24, 25, 26, 49, 50, 63):
        fresh = read_records(folder, seed=3, shuffle=shuffle, cache_gb=cache_gb)
        assert indices(fresh.stream(start), 80 - start) == whole[start:]


def test_every_epoch_holds_every_record_once_in_a_new_order(folder):
    order = indices(read_records(folder, shuffle=4).stream(), 75)
    epochs = [order[:25], order[25:50], order[50:]]
    assert all(sorted(epoch) == list(range(25)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert indices(read_records(folder, shuffle=4, seed=1).stream(), 25) != epochs[0]


def test_records_of_different_shards_mix_within_a_block(folder):
    order = indices(read_records(folder, shuffle=1000).stream(), 25)
    neighbours = sum(abs(a - b) == 1 for a, b in pairwise(order))
    assert neighbours < 8


def test_ranks_share_an_epoch_without_overlap(folder):
    readers = [read_records(folder, rank=rank, world=2, shuffle=4) for rank in (0, 1)]
    for epoch in range(3):
        shards = [shard.url for r in readers for shard in r.epoch_shards(epoch)]
        assert len(shards) == len(set(shards)) == 5
    assert Counter(indices(readers[0].stream(), 60)) != Counter(indices(readers[1].stream(), 60))


def test_a_launched_process_reads_whole_shards(folder, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert len(list(reader.read_shard(reader.Shard(str(folder / "000002.tar"), 7)))) == 7


def test_starting_late_opens_only_the_shards_that_are_needed(folder, monkeypatch):
    opened = []
    read = reader.read_shard
    monkeypatch.setattr(reader, "read_shard", lambda shard: opened.append(shard) or read(shard))
    fresh = read_records(folder, shuffle=1, cache_gb=0)
    last = fresh.epoch_shards(1)[-1]
    indices(fresh.stream(49), 1)  # the last record of the second epoch
    assert opened == [last]


def test_a_cached_set_is_read_once(folder, monkeypatch):
    opened = Counter()
    read = reader.read_shard
    monkeypatch.setattr(reader, "read_shard", lambda shard: opened.update([shard.url]) or read(shard))
    indices(read_records(folder).stream(), 100)
    assert set(opened.values()) == {1} and len(opened) == 5


@pytest.mark.parametrize("prefetch", [False, True])
def test_batches_stack_and_start_anywhere(folder, prefetch):
    whole = indices(read_records(folder).stream(), 40)
    tensors, about = next(reader.iterate_batches(read_records(folder), 8, start=20, prefetch=prefetch))
    assert tensors["index"].tolist() == whole[20:28] and tensors["z"].shape == (8, 2, 1)
    assert [a["caption"] for a in about] == [f"clip {i}, é" for i in whole[20:28]]


def test_batches_leave_the_global_random_state_alone(folder):
    for prefetch in (False, True):
        torch.manual_seed(0)
        next(reader.iterate_batches(read_records(folder), 2, prefetch=prefetch))
        assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(0)))


def test_several_sets_are_read_together(folder, tmp_path):
    write_set(tmp_path / "other", [4], first=100)
    for text in (f"{folder},{tmp_path}/other", f"{tmp_path}/*"):
        found = indices(reader.RecordReader(reader.RecordSet(text)).stream(), 29)
        assert sorted(found) == [*range(25), *range(100, 104)]


def test_an_interrupted_shard_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), records.ShardWriter(tmp_path, 0) as writer:
        writer.write(record(0))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path):
    """The system's own limit of a file's size, in a process of its own."""
    code = (
        "import sys, resource, signal; sys.path.insert(0, sys.argv[1]); import torch, conftest\n"
        "from pathlib import Path\n"
        "from t2v_turbo.train.data import records\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
        "with records.ShardWriter(Path('set'), 0) as writer:\n"
        "    for i in range(int(sys.argv[2])): writer.write(records.Record(str(i), {'z': torch.zeros(1000)}, {}))\n"
    )
    # The disk is full while a record is written, or when the tar is closed.
    for count in (20, 4):
        command = [sys.executable, "-c", code, str(ROOT / "tests"), str(count)]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "OSError: [Errno 27] File too large" in result.stderr and result.returncode == 1
        assert list((tmp_path / "set").iterdir()) == []


def test_names_of_any_bytes_come_back(tmp_path):
    """A file name that is no UTF-8, as old archives have them."""
    name = "caf\udce9.mp4"
    records.begin(tmp_path, MADE)
    with records.ShardWriter(tmp_path, 0) as writer:
        writer.write(replace(record(0), about={"clip": name, "caption": "é"}))
        writer.skip(name, f"{name}: too short")
    assert records.finish(tmp_path, 1) == (1, 1)
    (found,) = reader.read_shard(reader.Shard(str(tmp_path / "000000.tar"), 1))
    assert found.about == {"clip": name, "caption": "é"}
    (line,) = (tmp_path / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"clip": name, "reason": f"{name}: too short"}


# --- damage ----------


def test_a_truncated_shard_is_named(folder):
    path = folder / "000002.tar"
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(ValueError, match=r"000002\.tar"):
        indices(read_records(folder).stream(), 25)


def test_a_shard_that_lost_its_end_is_named(folder):
    """Cut between two members, a tar reads without an error."""
    path = folder / "000002.tar"
    with tarfile.open(path) as tar:
        end = tar.getmembers()[6].offset
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match=r"000002\.tar: holds 3 records, the manifest says 7"):
        indices(read_records(folder).stream(), 25)


def test_damaged_tensors_are_named(folder):
    path = folder / "000003.tar"
    with tarfile.open(path) as tar:
        at = tar.getmembers()[0].offset_data
    data = bytearray(path.read_bytes())
    data[at : at + 8] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"000003\.tar: broken after 0 records"):
        indices(read_records(folder).stream(), 25)


def test_a_missing_shard_is_named(folder):
    (folder / "000003.tar").unlink()
    with pytest.raises(ValueError, match=r"000003\.tar is missing"):
        reader.RecordSet(str(folder))


def test_an_unfinished_set_is_refused(tmp_path):
    records.begin(tmp_path / "set", MADE)
    with pytest.raises(ValueError, match="incomplete"):
        reader.RecordSet(str(tmp_path / "set"))


def test_a_manifest_cannot_name_foreign_files(folder):
    manifest = json.loads((folder / records.MANIFEST).read_text())
    (folder / records.MANIFEST).write_text(json.dumps(manifest | {"shards": {"../../other/000000.tar": 1}}))
    with pytest.raises(ValueError, match="strange shard"):
        reader.RecordSet(str(folder))


@pytest.mark.parametrize(
    "change",
    [
        {"made_from": []}, {"made_from": {}}, {"made_from": MADE | {"solver_steps": "many"}}, {"shards": [1]},
        {"made_from": MADE | {"motion": []}}, {"made_from": MADE | {"motion": {"tau": 0.5}}}, {"bytes": "many"},
        {"made_from": MADE | {"motion": {"tau": "x", "energy": "mean"}}}, {"shards": {"000000.tar": -1}},
        {"shards": {"000000.tar": True}}, {"made_from": MADE | {"fps": None}},
    ],
)  # fmt: skip
def test_a_manifest_of_nonsense_is_refused(folder, change):
    path = folder / records.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"is not the manifest of 't2v-turbo records 1', or damaged|a strange shard"):
        reader.RecordSet(str(folder))
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="no readable"):
        reader.RecordSet(str(folder))


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"records": 1}'])
def test_a_shard_whose_summary_is_damaged_is_named(folder, content):
    path = folder / "000002.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ValueError, match=r"000002\.json: tells nothing of its shard .*; delete .*000002\.tar and run"):
        records.finish(folder, 6)


def changed(**tensors):
    return replace(record(0), tensors=record(0).tensors | tensors)


HOSTILE = {
    "no z": (replace(record(0), tensors={"index": torch.tensor(0)}), "is no record: it holds index"),
    "more": (changed(z2=torch.zeros(1)), "is no record"),
    "sizes": (changed(cond=torch.zeros(3)), "is no record"),
    "beyond the grid": (changed(index=torch.tensor(200)), "lies at 200 of 200 grid points"),
    "before the grid": (changed(index=torch.tensor(-1)), "lies at -1 of 200 grid points"),
    "many points": (changed(index=torch.zeros(2).long()), r"lies at \[0, 0\] of 200"),
    "no origin": (replace(record(0), about=[1]), "is no record"),
}


@pytest.mark.parametrize(("hostile", "told"), HOSTILE.values(), ids=HOSTILE)
def test_a_sample_that_is_no_record_is_named(tmp_path, hostile, told):
    records.begin(tmp_path, MADE)
    with records.ShardWriter(tmp_path, 0) as writer:
        writer.write(hostile)
    records.finish(tmp_path, 1)
    with pytest.raises(ValueError, match=rf"000000\.tar: .*{told}"):
        indices(read_records(tmp_path).stream(), 1)


def test_records_of_different_sizes_do_not_mix():
    with pytest.raises(ValueError, match=r"records 0, 1: differ in the shape of context"):
        reader.collate([replace(record(0), key="0"), replace(changed(context=torch.zeros(4, 2)), key="1")])


@pytest.mark.parametrize("magic", [b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\x00", b""])
def test_a_shard_of_other_bytes_is_named(folder, magic):
    (folder / "000002.tar").write_bytes(magic + b"\x5a" * 5000)
    with pytest.raises(ValueError, match=r"000002\.tar: broken after 0 records|holds 0 records"):
        indices(read_records(folder).stream(), 25)


@pytest.mark.parametrize("place", ["pipe:touch /tmp/x", "ftp://host/records", "/no/such/folder"])
def test_places_that_are_not_read_are_refused(place):
    with pytest.raises(ValueError, match="records"):
        reader.RecordSet(place)


def test_sets_of_different_teachers_do_not_mix(folder, tmp_path):
    write_set(tmp_path / "other", [4], made=MADE | {"weights": {"teacher.safetensors": "1"}})
    with pytest.raises(ValueError, match="differ in weights"):
        reader.RecordSet(f"{folder},{tmp_path}/other")


def test_more_processes_than_shards_are_refused(folder):
    with pytest.raises(ValueError, match="5 shards cannot be shared by 6 processes"):
        read_records(folder, world=6)
