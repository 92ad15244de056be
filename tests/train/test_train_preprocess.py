"""Preprocessing: rendered clips to records whose numbers are the teacher's, through interruptions and broken files."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from t2v_turbo.core.diffusion.ddim import DDIMSolver
from t2v_turbo.core.diffusion.guidance import cfg_model
from t2v_turbo.core.diffusion.schedule import NoiseSchedule
from t2v_turbo.core.motion.energies import ENERGIES
from t2v_turbo.core.motion.inversion import prior_latents
from t2v_turbo.core.motion.probe import read_reference
from t2v_turbo.core.motion.score import motion_score
from t2v_turbo.core.networks.unet import UNet3D
from t2v_turbo.core.pipeline import load
from t2v_turbo.core.video import resize_and_crop
from t2v_turbo.train import cli, preprocess
from t2v_turbo.train.config import PreprocessConfig, load_config
from t2v_turbo.train.data import clips as clip_loading
from t2v_turbo.train.data.clips import ClipDataset, DecodedClip, read_frames
from t2v_turbo.train.data.reader import Shard, read_shard
from t2v_turbo.train.data.records import read_manifest
from t2v_turbo.train.data.sources import list_clips
from t2v_turbo.train.seeds import generator_for
from t2v_turbo.train.shapes.world.dataset import write_dataset


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("clips"), 7, seed=1, style="dense")


@pytest.fixture
def config(clips, random_shapes, tmp_path):
    return load_config(
        "preprocess",
        None,
        [f"videos={clips}", f"records={tmp_path}/records", f"model.folder={random_shapes}", "records_per_clip=2",
         "clips_per_shard=3", "batch_size=4", "model.device=cpu"],
    )  # fmt: skip


def contents(config):
    """Every record of a finished set by key."""
    folder, manifest = config.records, read_manifest(config.records)
    shards = [Shard(f"{folder}/{name}", count) for name, count in manifest["shards"].items()]
    return {record.key: record for shard in shards for record in read_shard(shard)}


def files(config, pattern="*"):
    return {path.name: path.read_bytes() for path in Path(config.records).glob(pattern)}


def test_a_record_is_what_the_teacher_says_at_a_noised_clip(config, random_shapes, clips):
    summary = preprocess.preprocess(config)
    assert (summary.records, summary.clips, summary.skipped, summary.evaluations) == (14, 7, 0, 28)
    records, model = contents(config), load("shapes", None, random_shapes)
    assert len(records) == 14 and summary.total == (14, 0)
    for record in list(records.values())[::3]:
        x, about = record.tensors, record.about
        assert {name: value.dtype for name, value in x.items()} == {
            "z": torch.float16, "cond": torch.float16, "uncond": torch.float16, "context": torch.float16,
            "index": torch.int64}  # fmt: skip
        captions = json.loads((clips / about["clip"]).with_suffix(".json").read_text())
        assert about["caption"] == captions[about["kind"]] and about["index"] == int(x["index"])
        assert about["start"] == 0  # these clips are just as long as a record
        t = 5 * x["index"][None] + 4
        with torch.no_grad():
            context, empty = model.text.encode([about["caption"]]), model.text.encode([""])
            for name, prompt in (("cond", context), ("uncond", empty)):
                eps = model.unet(x["z"][None].float(), t, prompt, fps=8)[0]
                torch.testing.assert_close(x[name].float(), eps, rtol=5e-3, atol=5e-3)
        torch.testing.assert_close(x["context"].float(), context[0], rtol=1e-3, atol=1e-3)


def test_z_is_a_posterior_sample_with_unit_noise(config, random_shapes, clips):
    preprocess.preprocess(replace(config, records_per_clip=8, limit=3))
    model = load("shapes", None, random_shapes)
    residues, latents = [], {}
    for record in contents(config).values():
        if record.about["clip"] not in latents:
            generator = generator_for("posterior", 0, int(record.key[:9]))
            frames = read_frames(clips / record.about["clip"], 8, 8, 64, 64)
            with torch.no_grad():
                latents[record.about["clip"]] = model.vae.encode(frames[None] / 255, generator)[0]
        t = DDIMSolver(NoiseSchedule()).timesteps[record.tensors["index"]]
        alpha, sigma = (c.item() for c in model.schedule.coefficients(t[None], torch.zeros(1)))
        residues.append((record.tensors["z"].float() - alpha * latents[record.about["clip"]]) / sigma)
    noise = torch.stack(residues)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert torch.corrcoef(noise.flatten(1)).fill_diagonal_(0).abs().max() < 0.15  # draws are independent


def test_every_grid_point_is_drawn(config, clips):
    """The noisiest and the cleanest too, as often as the others."""
    preprocess.preprocess(replace(config, solver_steps=4, records_per_clip=16, clips_per_shard=7, batch_size=56))
    drawn = torch.tensor([int(record.tensors["index"]) for record in contents(config).values()])
    counts = torch.bincount(drawn)
    assert len(counts) == 4 and (counts > 112 / 4 / 2).all()


def test_indices_cover_the_grid(config, random_shapes):
    maker = preprocess.RecordMaker(config, load("shapes", None, random_shapes))
    clips = [DecodedClip(i, None) for i in range(500)]
    index = torch.tensor([maker._draw(clip, 0, 0).index for clip in clips]).float()
    assert index.min() < 5 and index.max() > 194 and abs(index.mean() - 99.5) < 8


def test_what_is_drawn_does_not_depend_on_the_batch(config, tmp_path):
    preprocess.preprocess(config)
    other = replace(config, records=str(tmp_path / "other"), batch_size=1)
    preprocess.preprocess(other)
    first, second = contents(config), contents(other)
    for key, record in first.items():
        assert torch.equal(record.tensors["z"], second[key].tensors["z"])
        assert torch.equal(record.tensors["index"], second[key].tensors["index"])


# --- motion scores ----------


@pytest.fixture(scope="module")
def motion_config(clips, random_shapes, tmp_path_factory):
    """Finished records with motion scores: three clips of four draws, and what one call said of them."""
    root = tmp_path_factory.mktemp("motion")
    config = load_config(
        "preprocess",
        None,
        [f"videos={clips}", f"records={root}/records", f"model.folder={random_shapes}", "model.device=cpu", "limit=3",
         "motion=true", "motion_grid=10", "records_per_clip=4", "batch_size=5", "clips_per_shard=2", "motion_batch=2",
         "dtype=fp32"],
    )  # fmt: skip
    return config, preprocess.preprocess(config)


def test_guided_draws_have_a_score_and_the_others_none(motion_config):
    config, summary = motion_config
    records = contents(config)
    guided = {key for key, record in records.items() if record.about["index"] >= 100}
    assert {key for key, record in records.items() if "score" in record.tensors} == guided
    assert 0 < len(guided) == summary.guided < len(records) == 12
    for key in guided:
        score = records[key].tensors["score"]
        assert score.shape == records[key].tensors["z"].shape and score.abs().max() > 0
    made = read_manifest(config.records)["made_from"]
    assert made["motion"] == {"tau": 0.5, "method": "ddim", "grid": 10, "energy": "mean"}


def test_a_score_is_the_cores_for_the_clips_own_inversion(motion_config, random_shapes, clips):
    """Each draw alone, from an inversion of its own: what is shared among the draws of a clip changes nothing."""
    config, _ = motion_config
    model = load("shapes", None, random_shapes)
    record = next(record for record in contents(config).values() if "score" in record.tensors)
    x, about = record.tensors, record.about
    frames = read_frames(clips / about["clip"], 8, 8, 64, 64, about["start"])
    generator = generator_for("posterior", 0, int(record.key[:9]))
    t, context = 5 * x["index"][None] + 4, model.text.encode([about["caption"]]).detach()
    with torch.no_grad():
        x0 = model.vae.encode(frames[None].float() / 255, generator)
    found = prior_latents(cfg_model(model.unet, context, context, 1), x0, [int(t)], model.schedule, grid=10)
    reference = read_reference(model.unet, found.latents[int(t)], t, context)
    score = motion_score(model.unet, x["z"][None], t, context, reference)
    torch.testing.assert_close(x["score"], score.score[0], rtol=1e-3, atol=1e-3 * score.score.abs().max().item())
    with torch.no_grad():
        torch.testing.assert_close(x["cond"], model.unet(x["z"][None], t, context, fps=8)[0], rtol=1e-4, atol=1e-4)


def test_motion_changes_nothing_else_of_a_record(motion_config, tmp_path):
    config, _ = motion_config
    plain = replace(config, motion=False, records=str(tmp_path / "plain"))
    preprocess.preprocess(plain)
    guided = contents(config)
    for key, record in contents(plain).items():
        assert "score" not in record.tensors
        for name, value in record.tensors.items():
            torch.testing.assert_close(value, guided[key].tensors[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method, grid", [("ddim", 10), ("noise", 10)])
def test_evaluations_are_counted_and_an_inversion_serves_all_draws(motion_config, tmp_path, monkeypatch, method, grid):
    config, _ = motion_config
    config = replace(config, records=str(tmp_path / "counted"), motion_method=method, motion_grid=grid)
    samples, forward = [], UNet3D.forward
    monkeypatch.setattr(UNet3D, "forward", lambda self, x, *a, **k: samples.append(len(x)) or forward(self, x, *a, **k))
    summary = preprocess.preprocess(config)
    assert sum(samples) == summary.evaluations
    indices = {}
    for record in contents(config).values():
        if "score" in record.tensors:
            indices.setdefault(record.about["clip"], []).append(record.about["index"])
    # A grid point of the inversion spans 20 of the solver's; each guided record adds three: A(z_ref), A(z), no prompt.
    inversions = sum(max(of_clip) // 20 + 1 for of_clip in indices.values()) if method == "ddim" else 0
    assert summary.guided_evaluations == inversions + 3 * summary.guided
    assert summary.evaluations == summary.guided_evaluations + 2 * (12 - summary.guided)


def test_a_clip_that_is_flagged_is_not_guided(motion_config, clips, tmp_path, capsys):
    config, _ = motion_config
    table = tmp_path / "flags.csv"
    table.write_text("relpath,text,use_motion_guide\nclip_000000.mp4,one,1\nclip_000001.mp4,two,0\n")
    arguments = [f"videos={table}", f"video_root={clips}", f"records={tmp_path}/flagged", "motion=true", "tau=1",
                 f"model.folder={config.model.folder}", "motion_method=noise", "records_per_clip=2"]  # fmt: skip
    assert cli.main(["preprocess", "--config", "shapes", *arguments, "model.device=cpu"]) == 0
    records = contents(replace(config, records=str(tmp_path / "flagged"))).values()
    assert {(record.about["clip"], "score" in record.tensors) for record in records} == {
        ("clip_000000.mp4", True), ("clip_000001.mp4", False)}  # fmt: skip
    assert "2 of them have a motion score (3 UNet evaluations per guided record)" in capsys.readouterr().out


def test_scores_go_on_after_an_interruption(motion_config, tmp_path, monkeypatch):
    config, _ = motion_config
    again = replace(config, records=str(tmp_path / "again"))
    read, calls = read_frames, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(*args)

    monkeypatch.setattr(clip_loading, "read_frames", interrupted)
    with pytest.raises(KeyboardInterrupt):
        preprocess.preprocess(again)
    monkeypatch.setattr(clip_loading, "read_frames", read)
    assert preprocess.preprocess(again).clips == 1
    assert files(again) == files(config)
    for change in ({"motion_grid": 20}, {"tau": 0.4}, {"motion_energy": "squared-norm"}, {"motion": False}):
        with pytest.raises(ValueError, match=r"made from something else \(motion:"):
            preprocess.preprocess(replace(again, **change))


@dataclass
class Steep:
    """An energy whose gradient is beyond fp16."""

    keep: int = 1

    def __call__(self, attention, reference):
        return 1e9 * ENERGIES["mean"](attention, reference)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_scores_that_half_precision_cannot_hold_are_refused(motion_config, random_shapes, dtype):
    config = replace(motion_config[0], dtype=dtype, motion_method="noise", records_per_clip=1, tau=1.0)
    maker = preprocess.RecordMaker(config, load("shapes", None, random_shapes))
    maker.scorer.energy = Steep()
    clip = ClipDataset(list_clips(config), config, 8, (8, 64, 64))[0]
    if dtype == "bf16":
        assert maker([clip])[0].tensors["score"].abs().max() > 65504
        return
    with pytest.raises(ValueError, match="dtype=fp16 is too narrow for these motion scores: use bf16 or fp32"):
        maker([clip])


def test_settings_of_motion_are_checked():
    for change, told in (({"motion_grid": 30}, "motion_grid=30 does not divide 1000"), ({"tau": 1.5}, "tau=1.5")):
        with pytest.raises(ValueError, match=told):
            PreprocessConfig(videos="v", records="r", **change)


# --- interruption ----------


def test_an_interrupted_run_goes_on_and_ends_with_the_same_files(config, tmp_path, monkeypatch):
    whole = replace(config, records=str(tmp_path / "whole"))
    preprocess.preprocess(whole)
    read, calls = read_frames, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return read(*args)

    monkeypatch.setattr(clip_loading, "read_frames", interrupted)
    with pytest.raises(KeyboardInterrupt):
        preprocess.preprocess(config)
    assert sorted(files(config)) == ["000000.json", "000000.tar", "records.json"]
    monkeypatch.setattr(clip_loading, "read_frames", read)
    summary = preprocess.preprocess(config)
    assert summary.clips == 4  # the first shard of three was there
    assert files(config) == files(whole)


def test_a_lost_shard_and_a_torn_file_are_made_again(config, tmp_path):
    preprocess.preprocess(config)
    whole = files(config)
    (tmp_path / "records" / "000002.tar").unlink()
    (tmp_path / "records" / ".000002.tar.part").write_bytes(b"torn")  # as a killed process leaves it
    assert preprocess.preprocess(config).clips == 1
    assert files(config) == whole
    assert preprocess.preprocess(config).clips == 0


def test_processes_share_the_shards(config, tmp_path):
    whole = replace(config, records=str(tmp_path / "whole"))
    preprocess.preprocess(whole)
    first = preprocess.preprocess(config, 0, 2)
    assert first.clips == 4 and first.total is None
    second = preprocess.preprocess(config, 1, 2)
    assert second.clips == 3 and second.total == (14, 0)
    assert files(config) == files(whole)


def test_the_launcher_tells_the_share_of_work(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert preprocess.share_of_work(None, None) == (2, 3)
    assert preprocess.share_of_work(0, 1) == (0, 1)
    with pytest.raises(ValueError, match=r"--rank 4 is outside 0\.\.2"):
        preprocess.share_of_work(4, None)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"records_per_clip": 3}, {"start": "first"}, {"dtype": "bf16"}, {"limit": 6}]
)
def test_other_settings_do_not_continue_a_set(config, change):
    preprocess.preprocess(config)
    before = files(config)
    with pytest.raises(ValueError, match="made from something else"):
        preprocess.preprocess(replace(config, **change))
    assert files(config) == before


# --- input ----------


@pytest.fixture
def mixed(clips, tmp_path):
    """Three good clips and one of every kind that cannot be used."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for i in range(7):
        for suffix in (".mp4", ".json"):
            shutil.copy(clips / f"clip_{i:06d}{suffix}", folder)
    content = (folder / "clip_000001.mp4").read_bytes()
    (folder / "clip_000001.mp4").write_bytes(content[: len(content) // 2])
    (folder / "clip_000003.json").unlink()
    (folder / "clip_000005.json").write_text("{")
    (folder / "notes.mp4").write_text("not a video")
    (folder / "notes.txt").write_text("a caption")
    write_clip(folder / "short.mp4", 5, 64, 64)
    (folder / "short.txt").write_text("a caption")
    return folder


def write_clip(path, frames, height, width, fps=8):
    """A clip whose frame i is grey level 20·i, its left half inverted."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps, options={"crf": "0"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv444p"
        for i in range(frames):
            image = np.full((height, width, 3), 20 * i % 256, np.uint8)
            image[:, : width // 2] = 255 - image[:, : width // 2]
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())


def test_broken_clips_are_skipped_and_named(config, mixed, capsys):
    arguments = [f"videos={mixed}", f"records={config.records}", f"model.folder={config.model.folder}"]
    assert cli.main(["preprocess", *arguments, "records_per_clip=1", "clips_per_shard=4"]) == 0
    lines = files(config)["skipped.jsonl"].decode().splitlines()
    reasons = {line["clip"]: line["reason"] for line in map(json.loads, lines)}
    assert set(reasons) == {"clip_000001.mp4", "clip_000003.mp4", "clip_000005.mp4", "notes.mp4", "short.mp4"}
    assert f"{mixed}/short.mp4: too short: 5 of 8 frames" in reasons["short.mp4"]
    assert "no caption" in reasons["clip_000003.mp4"] and "JSON" in reasons["clip_000005.mp4"]
    used = {record.about["clip"] for record in contents(config).values()}
    assert used == {f"clip_{i:06d}.mp4" for i in (0, 2, 4, 6)}
    assert "wrote 4 records of 4 clips, skipped 5 clips (2 UNet evaluations per record)" in capsys.readouterr().out


def test_a_set_without_a_usable_clip_is_an_error(config, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.mp4").write_text("no")
    with pytest.raises(ValueError, match="none of its clips"):
        preprocess.preprocess(replace(config, videos=str(tmp_path / "bad")))


def captions_of(config):
    origins = [record.about for record in contents(config).values()]
    return {about["clip"]: (about["kind"], about["caption"]) for about in origins}


@pytest.mark.parametrize("wanted", ["short", "dense", "random"])
def test_the_kind_of_caption_is_chosen_and_recorded(config, clips, wanted):
    preprocess.preprocess(replace(config, caption=wanted, records_per_clip=1))
    found = captions_of(config)
    for clip, (kind, caption) in found.items():
        assert caption == json.loads((clips / clip).with_suffix(".json").read_text())[kind]
    assert {kind for kind, _ in found.values()} == ({"short", "dense"} if wanted == "random" else {wanted})


def test_a_table_in_the_authors_form(config, clips, tmp_path):
    table = tmp_path / "train.csv"
    table.write_text(
        "relpath,text,short_text,use_motion_guide\n"
        'clip_000000.mp4,"a long, dense caption",short one,True\n'
        "clip_000001.mp4,only one,,False\n"
        "./clip_000002.mp4,,,True\n"
        "gone.mp4,a caption,,1\n"
        "../clip_000003.mp4,a caption,,1\n"
        f"{clips}/clip_000004.mp4,an absolute path,,1\n"
    )
    config = replace(config, videos=str(table), video_root=str(clips), caption="random", records_per_clip=1)
    assert preprocess.preprocess(config).total == (3, 3)
    skipped = [json.loads(line) for line in files(config)["skipped.jsonl"].splitlines()]
    reasons = {line["clip"]: line["reason"] for line in skipped}
    assert set(reasons) == {"clip_000002.mp4", "gone.mp4", "row 5"}
    assert reasons["clip_000002.mp4"] == "no caption: its row has none"
    left = f"the path ../clip_000003.mp4 leaves the folder {clips}; set video_root to a folder above both"
    assert reasons["row 5"] == left
    found = captions_of(config)
    assert found["clip_000000.mp4"] in [("dense", "a long, dense caption"), ("short", "short one")]
    assert found["clip_000001.mp4"] == ("short", "only one")
    assert found["clip_000004.mp4"] == ("short", "an absolute path")
    flags = {record.about["clip"]: record.about["use_motion_guide"] for record in contents(config).values()}
    assert flags == {"clip_000000.mp4": True, "clip_000001.mp4": False, "clip_000004.mp4": True}


@pytest.mark.parametrize(
    "name, text, settings",
    [
        ("webvid.csv", "videoid,page_dir,name\nclip_000003,.,a caption\n",
         {"video_column": "{page_dir}/{videoid}.mp4", "text_column": "name"}),
        ("vidgen.json", '[{"vid": "clip_000003", "caption": "a caption"}]',
         {"video_column": "{vid}.mp4", "text_column": "caption"}),
        ("openvid.csv", "video,caption,fps\nclip_000003.mp4,a caption,24\n",
         {"video_column": "video", "text_column": "caption"}),
    ],
)  # fmt: skip
def test_tables_with_other_columns(clips, tmp_path, name, text, settings):
    (tmp_path / name).write_text(text)
    config = PreprocessConfig(videos=str(tmp_path / name), records="r", video_root=str(clips), **settings)
    (clip,) = list_clips(config)
    assert clip.path.exists() and clip.captions == {"short": "a caption"}


@pytest.mark.parametrize("path", ["../secret.mp4", "/etc/secret.mp4", "a/../../secret.mp4"])
def test_a_table_cannot_leave_its_folder(tmp_path, path):
    (tmp_path / "t.csv").write_text(f"relpath,text\n{path},a\n")
    with pytest.raises(ValueError, match="leaves the folder"):
        list_clips(PreprocessConfig(videos=str(tmp_path / "t.csv"), records="r"))


@pytest.mark.parametrize(
    "text, told", [("path,text\na,b\n", "video_column=relpath"), ("relpath,t\na,b\n", "text_column=text")]
)
def test_a_missing_column_is_named(tmp_path, text, told):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=told):
        list_clips(PreprocessConfig(videos=str(tmp_path / "t.csv"), records="r"))


def test_input_that_is_not_there_is_named(tmp_path):
    for videos in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match=f"videos={videos}"):
            list_clips(PreprocessConfig(videos=str(videos), records="r"))


def test_frames_are_sampled_at_the_familys_rate(tmp_path):
    write_clip(tmp_path / "fast.mp4", 13, 64, 64, fps=24)
    frames = read_frames(tmp_path / "fast.mp4", 4, 8, 64, 64)
    assert frames.dtype == torch.uint8 and frames.shape == (4, 3, 64, 64)
    np.testing.assert_allclose(frames[:, 0, 32, 60].float(), [0, 60, 120, 180], atol=3)


@pytest.mark.parametrize("height, width", [(48, 96), (96, 48), (128, 128), (40, 60)])
def test_clips_are_scaled_to_cover_and_cropped_to_the_centre(tmp_path, height, width):
    write_clip(tmp_path / "clip.mp4", 2, height, width)
    frames = read_frames(tmp_path / "clip.mp4", 2, 8, 64, 64).float()
    assert frames.shape == (2, 3, 64, 64)
    # The border between the halves is in the middle, as it was.
    assert (frames[0, :, :, :30] > 245).all() and (frames[0, :, :, 34:] < 10).all()


def test_resizing_keeps_proportions():
    y, x = torch.meshgrid(torch.arange(120), torch.arange(200), indexing="ij")
    disc = (((x - 99.5) ** 2 + (y - 59.5) ** 2) < 30**2).float().expand(1, 3, -1, -1)
    resized = resize_and_crop(disc, 60, 60)[0, 0]
    assert abs(resized.amax(0).round().sum() - 30) <= 1 and abs(resized.amax(1).round().sum() - 30) <= 1
