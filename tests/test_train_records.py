"""Records: what is written comes back, in an order that can be resumed, and damage is told."""

import json
import tarfile
from collections import Counter
from itertools import islice, pairwise

import pytest
import torch

from t2v_turbo.train import records as R

MADE = {"family": "shapes", "weights": {}, "solver_steps": 200, "fps": 8, "seed": 0}


def record(i):
    z = torch.full((2, 1), float(i)).half()
    tensors = {"z": z, "cond": z.clone(), "uncond": z.clone(), "context": torch.zeros(3, 2), "index": torch.tensor(i)}
    return R.Record(f"{i:09d}-000", tensors, {"caption": f"clip {i}, é"})


def write_set(folder, counts, first=0, made=MADE):
    R.begin(folder, made)
    for number, count in enumerate(counts):
        with R.ShardWriter(folder, number) as writer:
            for i in range(first, first + count):
                writer.write(record(i))
            writer.skip(f"broken-{number}.mp4", "too short")
        first += count
    R.finish(folder, len(counts))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_set(tmp_path / "set", [5, 0, 7, 3, 6, 4])


def indices(stream, count):
    return [int(r.tensors["index"]) for r in islice(stream, count)]


def reader(folder, **settings):
    return R.RecordReader(R.RecordSet(str(folder)), **settings)


def test_what_is_written_comes_back(folder):
    found = list(R.read_shard(R.Shard(str(folder / "000002.tar"), 7)))
    assert [r.about["caption"] for r in found] == [f"clip {i}, é" for i in range(5, 12)]
    assert found[0].tensors["z"].dtype == torch.float16
    assert all(torch.equal(r.tensors["z"], record(i).tensors["z"]) for i, r in enumerate(found, 5))
    skipped = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
    assert skipped[1] == {"clip": "broken-1.mp4", "reason": "too short"}


def test_shards_come_in_the_order_of_their_numbers(folder):
    """Names beyond 999999 are longer, and would come first in the order of their letters."""
    manifest = json.loads((folder / R.MANIFEST).read_text())
    numbers = (999_999, 1_000_000, 200_000, 1_000_001)
    for number in numbers:
        (folder / f"{number:06d}.tar").touch()
    manifest["shards"] = {f"{number:06d}.tar": number for number in numbers}
    (folder / R.MANIFEST).write_text(json.dumps(manifest))
    assert [shard.records for shard in R.RecordSet(str(folder)).shards] == sorted(numbers)


def test_equal_records_make_equal_files(folder, tmp_path):
    again = write_set(tmp_path / "again", [5, 0, 7, 3, 6, 4])
    for path in folder.glob("*.tar"):
        assert path.read_bytes() == (again / path.name).read_bytes()


@pytest.mark.parametrize("shuffle", [1, 4, 1000])
@pytest.mark.parametrize("cache_gb", [0, 1])
def test_every_start_continues_the_same_sequence(folder, shuffle, cache_gb):
    whole = indices(reader(folder, seed=3, shuffle=shuffle, cache_gb=cache_gb).stream(), 80)
    for start in (0, 1, 4, 5, 12, 24, 25, 26, 49, 50, 63):
        fresh = reader(folder, seed=3, shuffle=shuffle, cache_gb=cache_gb)
        assert indices(fresh.stream(start), 80 - start) == whole[start:]


def test_every_epoch_holds_every_record_once_in_a_new_order(folder):
    order = indices(reader(folder, shuffle=4).stream(), 75)
    epochs = [order[:25], order[25:50], order[50:]]
    assert all(sorted(epoch) == list(range(25)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert indices(reader(folder, shuffle=4, seed=1).stream(), 25) != epochs[0]


def test_records_of_different_shards_mix_within_a_block(folder):
    order = indices(reader(folder, shuffle=1000).stream(), 25)
    neighbours = sum(abs(a - b) == 1 for a, b in pairwise(order))
    assert neighbours < 8


def test_ranks_share_an_epoch_without_overlap(folder):
    readers = [reader(folder, rank=rank, world=2, shuffle=4) for rank in (0, 1)]
    for epoch in range(3):
        shards = [shard.url for r in readers for shard in r.epoch_shards(epoch)]
        assert len(shards) == len(set(shards)) == 5
    assert Counter(indices(readers[0].stream(), 60)) != Counter(indices(readers[1].stream(), 60))


def test_a_launched_process_reads_whole_shards(folder, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert len(list(R.read_shard(R.Shard(str(folder / "000002.tar"), 7)))) == 7


def test_starting_late_opens_only_the_shards_that_are_needed(folder, monkeypatch):
    opened = []
    read = R.read_shard
    monkeypatch.setattr(R, "read_shard", lambda shard: opened.append(shard) or read(shard))
    fresh = reader(folder, shuffle=1, cache_gb=0)
    last = fresh.epoch_shards(1)[-1]
    indices(fresh.stream(49), 1)  # the last record of the second epoch
    assert opened == [last]


def test_a_cached_set_is_read_once(folder, monkeypatch):
    opened = Counter()
    read = R.read_shard
    monkeypatch.setattr(R, "read_shard", lambda shard: opened.update([shard.url]) or read(shard))
    indices(reader(folder).stream(), 100)
    assert set(opened.values()) == {1} and len(opened) == 5


@pytest.mark.parametrize("prefetch", [False, True])
def test_batches_stack_and_start_anywhere(folder, prefetch):
    whole = indices(reader(folder).stream(), 40)
    tensors, about = next(R.iterate_batches(reader(folder), 8, start=20, prefetch=prefetch))
    assert tensors["index"].tolist() == whole[20:28] and tensors["z"].shape == (8, 2, 1)
    assert [a["caption"] for a in about] == [f"clip {i}, é" for i in whole[20:28]]


def test_batches_leave_the_global_random_state_alone(folder):
    for prefetch in (False, True):
        torch.manual_seed(0)
        next(R.iterate_batches(reader(folder), 2, prefetch=prefetch))
        assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(0)))


def test_several_sets_are_read_together(folder, tmp_path):
    write_set(tmp_path / "other", [4], first=100)
    for text in (f"{folder},{tmp_path}/other", f"{tmp_path}/*"):
        found = indices(R.RecordReader(R.RecordSet(text)).stream(), 29)
        assert sorted(found) == [*range(25), *range(100, 104)]


def test_an_interrupted_shard_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), R.ShardWriter(tmp_path, 0) as writer:
        writer.write(record(0))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


# --- damage ----------


def test_a_truncated_shard_is_named(folder):
    path = folder / "000002.tar"
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(ValueError, match=r"000002\.tar"):
        indices(reader(folder).stream(), 25)


def test_a_shard_that_lost_its_end_is_named(folder):
    """Cut between two members, a tar reads without an error."""
    path = folder / "000002.tar"
    with tarfile.open(path) as tar:
        end = tar.getmembers()[6].offset
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match=r"000002\.tar: holds 3 records, the manifest says 7"):
        indices(reader(folder).stream(), 25)


def test_damaged_tensors_are_named(folder):
    path = folder / "000003.tar"
    with tarfile.open(path) as tar:
        at = tar.getmembers()[0].offset_data
    data = bytearray(path.read_bytes())
    data[at : at + 8] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"000003\.tar: broken after 0 records"):
        indices(reader(folder).stream(), 25)


def test_a_missing_shard_is_named(folder):
    (folder / "000003.tar").unlink()
    with pytest.raises(ValueError, match=r"000003\.tar is missing"):
        R.RecordSet(str(folder))


def test_an_unfinished_set_is_refused(tmp_path):
    R.begin(tmp_path / "set", MADE)
    with pytest.raises(ValueError, match="incomplete"):
        R.RecordSet(str(tmp_path / "set"))


def test_a_manifest_cannot_name_foreign_files(folder):
    manifest = json.loads((folder / R.MANIFEST).read_text())
    (folder / R.MANIFEST).write_text(json.dumps(manifest | {"shards": {"../../other/000000.tar": 1}}))
    with pytest.raises(ValueError, match="strange shard"):
        R.RecordSet(str(folder))


@pytest.mark.parametrize("place", ["pipe:touch /tmp/x", "ftp://host/records", "/no/such/folder"])
def test_places_that_are_not_read_are_refused(place):
    with pytest.raises(ValueError, match="records"):
        R.RecordSet(place)


def test_sets_of_different_teachers_do_not_mix(folder, tmp_path):
    write_set(tmp_path / "other", [4], made=MADE | {"weights": {"teacher.safetensors": "1"}})
    with pytest.raises(ValueError, match="differ in weights"):
        R.RecordSet(f"{folder},{tmp_path}/other")


def test_more_processes_than_shards_are_refused(folder):
    with pytest.raises(ValueError, match="5 shards cannot be shared by 6 processes"):
        reader(folder, world=6)
