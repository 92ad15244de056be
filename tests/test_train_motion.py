"""``t2v-turbo motion``: extract, preview, cost, sweep and transfer, on random weights and few steps.

Compare and memory have a file of their own.
"""

import json
import os
import shutil
from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from conftest import randomize
from PIL import Image

from t2v_turbo.core.checkpoints.networks import save_unet
from t2v_turbo.core.diffusion.ddim import sample_ddim
from t2v_turbo.core.diffusion.distillation import Batch, ConsistencyDistillation
from t2v_turbo.core.diffusion.guidance import cfg_model, guided_timesteps
from t2v_turbo.core.diffusion.schedule import NoiseSchedule, solver_grid
from t2v_turbo.core.families import SHAPES
from t2v_turbo.core.motion.prior import MotionPrior
from t2v_turbo.core.networks.unet import UNet3D
from t2v_turbo.core.pipeline import load
from t2v_turbo.core.tables import markdown
from t2v_turbo.core.video import to_uint8
from t2v_turbo.train.cli import main
from t2v_turbo.train.config import PreprocessConfig
from t2v_turbo.train.experiments import motion_cost, motion_sweep, motion_transfer
from t2v_turbo.train.experiments.intervals import difference, mean_interval, wilson
from t2v_turbo.train.experiments.motion_transfer import Guidance, Sampling, make_pair
from t2v_turbo.train.motion.scores import ScoreSettings, is_guided
from t2v_turbo.train.results import KeptRows
from t2v_turbo.train.seeds import generator_for
from t2v_turbo.train.shapes.world.captions import parse_prompt
from t2v_turbo.train.shapes.world.dataset import write_dataset
from t2v_turbo.train.shapes.world.oracle import measure
from t2v_turbo.train.shapes.world.scene import MOVES

# The embedded family at a sixteenth of its clips.
SMALL = replace(SHAPES, frames=4, height=32, width=32)


@pytest.fixture(scope="module")
def model(random_shapes):
    return load(SMALL, None, random_shapes)


@pytest.fixture
def motion(random_shapes, tmp_path, monkeypatch):
    """Runs an action in an empty folder; returns the exit code."""
    monkeypatch.chdir(tmp_path)
    folder = ["--checkpoints", str(random_shapes), "--device", "cpu"]

    def run(action, *options):
        return main(["motion", action, *map(str, options), *([] if action in ("preview", "memory") else folder)])

    return run


# --- extract and preview ----------


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = write_dataset(tmp_path_factory.mktemp("clips"), 1, seed=1, style="dense")
    return folder / "clip_000000.mp4"


SIZE = ["--frames", "4", "--height", "32", "--width", "32"]


@pytest.fixture(scope="module")
def prior_file(clip, random_shapes, tmp_path_factory):
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    given = ["--method", "noise", "--at", "400", "--out", str(path), "--checkpoints", str(random_shapes)]
    assert main(["motion", "extract", str(clip), *SIZE, *given, "--device", "cpu"]) == 0
    return path


def test_extract_and_preview(motion, clip, model, tmp_path, capsys):
    options = ["--caption", "a red circle moves left", "--steps", "5", "--grid", "5", "--out", "p.safetensors"]
    assert motion("extract", clip, *SIZE, *options) == 0
    prior = MotionPrior.load("p.safetensors")
    assert prior.timesteps == sorted(guided_timesteps(5, 0.5)) == [799, 999]
    assert (prior.size, prior.evaluations) == ((4, 4, 4), 5 + 2)
    origin = prior.origin
    assert (origin.caption, origin.source, origin.method, origin.grid) == (
        "a red circle moves left", "clip_000000.mp4", "ddim", 5)  # fmt: skip
    assert "4 frames of 4x4 latents, 4 layers at 2 timesteps (7 UNet evaluations)" in capsys.readouterr().out
    prior.check(model.unet)
    assert motion("preview", "p.safetensors") == 0
    with Image.open("p.png") as picture:
        assert picture.width > 4 * 64 and picture.height > 5 * 64  # a tile per frame, a row per layer and their mean
        assert np.asarray(picture).std() > 10
    assert motion("preview", "p.safetensors", "--at", "799", "--out", "other.webp") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.webp", "p.png", "p.safetensors"]


def test_extract_at_chosen_timesteps_without_an_inversion(motion, clip):
    runs = {"first": [], "again": [], "seed": ["--seed", "1"], "later": ["--start", "0.5"]}
    for name, options in runs.items():
        fixed = ["--method", "noise", "--at", "400", "--out", f"{name}.safetensors"]
        assert motion("extract", clip, *SIZE, *fixed, *options) == 0
    priors = {name: MotionPrior.load(f"{name}.safetensors") for name in runs}
    assert priors["first"].timesteps == [400] and priors["first"].evaluations == 1
    first, again, seed, later = (prior.at(400)[prior.layers[0]].value for prior in priors.values())
    assert torch.equal(first, again) and not torch.equal(first, seed) and not torch.equal(first, later)


def test_a_clip_whose_name_is_no_text(motion, clip, tmp_path):
    """Its bytes are those of another encoding, or the locale is."""
    name = os.fsdecode(b"caf\xe9.mp4")
    try:
        shutil.copy(clip, tmp_path / name)
    except OSError:
        pytest.skip("this file system takes only names that are text")
    assert motion("extract", name, *SIZE, "--method", "noise", "--at", "400", "--out", "p.safetensors") == 0
    assert MotionPrior.load("p.safetensors").origin.source == "caf\\xe9.mp4"


MISTAKES = {
    "suffix": (["extract", "{clip}", "--out", "p.pt"], "--out p.pt: cannot write '.pt'; use .safetensors"),
    "folder": (["extract", "{clip}", "--out", "none/p.safetensors"], "in one that does not exist"),
    "caption": (["extract", "{clip}", "--caption", "caf\udce9"], "--caption 'caf\\udce9' holds bytes that are no"),
    "no clip": (["extract", "none.mp4"], "none.mp4: no such video file"),
    "folder of clips": (["extract", "."], ".: is a folder; name a video file"),
    "too short": (
        ["extract", "{clip}", "--frames", "99"],
        "{clip}: too short: 8 of 99 frames at 8 fps; take a longer clip, or fewer frames",
    ),
    "start": (["extract", "{clip}", "--start", "-1"], "--start -1 is too small: it must be at least 0"),
    "size": (["extract", "{clip}", "--height", "30"], "height=30 is no positive multiple of 8"),
    "no height": (["extract", "{clip}", "--height", "0"], "--height 0 is too small: it must be at least 8"),
    "below width": (["extract", "{clip}", "--width", "-8"], "--width -8 is too small: it must be at least 8"),
    "no sampling": (["extract", "{clip}", "--steps", "0"], "--steps 0 is outside 1..1000: use"),
    "grid": (["extract", "{clip}", "--grid", "30"], "--grid 30 does not divide 1000"),
    "tau": (["extract", "{clip}", "--tau", "0"], "guides none of them: raise --tau"),
    "timestep": (["extract", "{clip}", "--at", "1000"], "timestep 1000 is outside 0..999: name others"),
    "noised": (["extract", "{clip}", "--at", "1000", "--method", "noise"], "timestep 1000 is outside 0..999"),
    "below": (["extract", "{clip}", "--at", "400", "-1", "--method", "noise"], "timestep -1 is outside 0..999"),
    "no prior": (["preview", "none"], "none: no such motion prior; check the path, or make one with `t2v-turbo motion"),
    "folder of priors": (["preview", "."], ".: is a folder; name a motion prior"),
    "clip as prior": (["preview", "{clip}"], "is no motion prior, which is a .safetensors; make one with"),
    "picture": (["preview", "{prior}", "--out", "a.bmp"], "cannot write '.bmp'; use .png or .jpg"),
    "clips": (["cost", "--clips", "0"], "--clips 0 is too small"),
    "grids": (["cost", "--grids", "30"], "--grids 30 does not divide 1000"),
    "no videos": (["cost", "--videos", "none"], "videos=none: no such folder or table"),
    "pairs": (["sweep", "--pairs", "0"], "--pairs 0 is too small"),
    "lambda": (["sweep", "--strength", "-1"], "--strength -1 is too small"),
    "no tau": (["transfer", "--tau", "0"], "--tau 0 is outside"),
    "nothing": (["transfer", "--strength", "0"], "--strength 0 guides nothing"),
    "no step": (["transfer", "--steps", "1"], "tau=0.5 of 1 steps guides none of them"),
    "no input": (["sweep", "--student", "no-mg"], "this student has no input for it"),
    "one student": (["compare", "--students", "mg"], "--students mg: name two or more different ones"),
    "twice": (["compare", "--students", "mg", "mg"], "--students mg mg: name two or more different ones"),
    "prompts": (["compare", "--prompts", "0"], "--prompts 0 is too small"),
    "student steps": (["compare", "--steps", "0"], "--steps 0 is outside 1..200"),
    "batch": (["memory", "--batch", "1"], "--batch 1 is too small"),
    "channels": (["memory", "--channels", "65"], "--channels 65 is no multiple of 10"),
    "no student": (["sweep", "--student", "mg"], "student_mg.safetensors: no such checkpoint file"),
}


@pytest.mark.parametrize(("options", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(motion, clip, prior_file, tmp_path, capsys, options, message):
    assert motion(*(option.format(clip=clip, prior=prior_file) for option in options)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("t2v-turbo motion: ") and message.format(clip=clip) in error
    assert list(tmp_path.iterdir()) == []


def test_timesteps_are_given_or_left_out(motion, clip, capsys):
    assert motion("extract", clip, "--at") == 2
    assert "--at: expected at least one argument" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [50, 200])
def test_the_guided_range_is_exact_everywhere(steps):
    """Sampling, distillation and preprocessing against fractions; in floats an edge may fall beside its grid point."""
    index, empty = torch.arange(steps), torch.zeros(steps)
    batch, grid = Batch(empty, index, empty, empty, empty, score=empty), solver_grid(steps)
    for percent in range(1, 100):
        tau, edge = percent / 100, (1 - Fraction(percent, 100)) * steps
        without, within = [i for i in range(steps) if i > edge], [i for i in range(steps) if i >= edge]
        losses = ConsistencyDistillation(NoiseSchedule(), steps, motion=1.0, tau=tau)
        assert guided_timesteps(steps, tau) == grid[without].tolist()[::-1]
        assert losses.lambdas(batch).nonzero()[:, 0].tolist() == within
        assert [i for i in range(steps) if is_guided(i, tau, losses.solver)] == within


@pytest.mark.parametrize("action", ["extract", "preview", "cost", "sweep", "transfer", "compare", "memory"])
def test_help_teaches(action, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["motion", action, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 10


# --- kept rows ----------


def test_rows_are_kept_for_what_they_were_made_from(tmp_path):
    kept, made = KeptRows(tmp_path / "new" / "rows.json"), []

    def make(value):
        return lambda: made.append(value) or {"value": value}

    assert kept.get({"a": (1, 2)}, make(1))["value"] == 1
    again = KeptRows(tmp_path / "new" / "rows.json")
    assert again.get({"a": [1, 2]}, make(2))["value"] == 1
    assert again.get({"a": [1, 3]}, make(3))["value"] == 3
    assert made == [1, 3] and [path.name for path in (tmp_path / "new").iterdir()] == ["rows.json"]
    (tmp_path / "new" / "rows.json").write_text("{")
    with pytest.raises(ValueError, match="no file of kept results"):
        again.find({"a": 1})


# --- cost ----------

SETTINGS = [ScoreSettings("ddim", 10), ScoreSettings("ddim", 5), ScoreSettings("noise")]
MADE = {"weights": "w"}


@pytest.fixture(scope="module")
def measured(model, tmp_path_factory):
    """Two clips of three draws; the scheme that the others are compared with on a small grid, for time's sake."""
    config = PreprocessConfig(videos="", records="", motion=True, records_per_clip=3, dtype="fp32")
    path = tmp_path_factory.mktemp("cost") / "cost.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(motion_cost, "EXACT", SETTINGS[0])
        clips = motion_cost.rendered_clips(model, 2, 0)
        return motion_cost.measure(model, clips, 2, SETTINGS, config, KeptRows(path), MADE), path, config


def test_cost_is_counted_and_exactness_measured(model, measured, monkeypatch):
    monkeypatch.setattr(motion_cost, "EXACT", SETTINGS[0])
    rows = motion_cost.cost_table(measured[0], SETTINGS, [1, 3], 0.5, motion_cost.DDIMSolver(model.schedule))
    found = {(row.settings.method, row.settings.grid, row.records): row for row in rows}
    exact, coarse, noise = found["ddim", 10, 1], found["ddim", 5, 1], found["noise", 25, 1]
    assert exact.cosine == pytest.approx(1) == exact.low
    assert max(coarse.cosine, noise.cosine) < 0.9999 and noise.evaluations == 3
    # By hand: every guided draw inverts for itself, or one inversion reaches the noisiest of a clip's draws.
    guided = [[i for i in row["index"] if i >= 100] for row in measured[0]]
    count = sum(map(len, guided))
    assert 2 < count < 6
    alone, shared = (sum(pick(i // 20 + 1 for i in of_clip) for of_clip in guided) for pick in (sum, max))
    assert exact.evaluations == pytest.approx(3 + alone / count)
    assert found["ddim", 10, 3].evaluations == pytest.approx(3 + shared / count)
    assert found["ddim", 10, 3].cosine == exact.cosine


def test_cost_goes_on_and_its_report_compares(model, measured, monkeypatch):
    rows, path, config = measured
    monkeypatch.setattr(motion_cost, "EXACT", SETTINGS[0])
    monkeypatch.setattr(motion_cost, "measure_clip", lambda *_: pytest.fail("measured again"))
    clips = motion_cost.rendered_clips(model, 2, 0)
    assert motion_cost.measure(model, clips, 2, SETTINGS, config, KeptRows(path), MADE) == rows
    text = motion_cost.report(rows, SETTINGS, [1, 3], 0.5)
    assert "| ddim 10 | 1 |" in text and "| noise | 3 | 3.0 |" in text and "guided records of 2 clips" in text
    with pytest.raises(ValueError, match=r"none of the draws is guided at tau=0\.001"):
        motion_cost.report(rows, SETTINGS, [1], 0.001)


def test_a_plan_of_the_cost_is_carried_out(model, measured, tmp_path, monkeypatch):
    monkeypatch.setattr(motion_cost, "EXACT", SETTINGS[0])
    plan = motion_cost.CostPlan(2, None, (10, 5), (1, 3), tau=0.5, seed=0, gradient_checkpointing=False)
    kept = KeptRows(tmp_path / "cost.json")
    table = motion_cost.report(measured[0], SETTINGS, (1, 3), 0.5)
    assert motion_cost.compare_settings(model, plan, kept, MADE) == table
    (first, _) = json.loads(kept.path.read_text())["rows"]
    assert (first["made_from"]["weights"], first["made_from"]["videos"]) == ("w", None)
    other = replace(plan, seed=1, gradient_checkpointing=True)
    assert other.config == replace(measured[2], seed=1, gradient_checkpointing=True)


def test_the_authors_scheme_takes_153_evaluations(model):
    """Each guided record inverts for itself on 200 steps; in the mean over the guided half."""
    measured = [{"index": [index]} for index in range(200)]
    solver = motion_cost.DDIMSolver(model.schedule)
    assert motion_cost.per_record(measured, motion_cost.EXACT, 1, 0.5, solver) == pytest.approx(153.5)
    generator = torch.Generator().manual_seed(0)
    default = PreprocessConfig(videos="", records="")
    groups = [{"index": torch.randint(200, (4,), generator=generator).tolist()} for _ in range(2000)]
    ours = motion_cost.per_record(groups, ScoreSettings.of(default), 4, default.tau, solver)
    assert 153.5 / ours > 10


def test_cost_reads_videos_and_tells_families_without_rendered_clips(model, clip):
    (found,) = motion_cost.read_clips(model, str(clip.parent), 5, 0)
    assert found.frames.shape == (4, 3, 32, 32) and found.caption
    wide = replace(model, family=replace(SMALL, width=64))
    with pytest.raises(ValueError, match="no clips are rendered for shapes"):
        next(motion_cost.rendered_clips(wide, 1, 0))


# --- transfer ----------

QUICK = Sampling(steps=4, scale=2.0, grid=4)


def test_pairs_say_nothing_of_the_motion():
    pairs = [make_pair(3, i) for i in range(8)]
    assert [pair.expected["direction"] for pair in pairs] == [*MOVES, *MOVES]
    for pair in pairs:
        asked, shown, seen = parse_prompt(pair.prompt), parse_prompt(pair.caption), measure(pair.frames)
        assert asked["direction"] is None and asked["color"] == pair.expected["color"] != shown["color"]
        assert asked["shape"] == pair.expected["shape"] != shown["shape"]
        assert (seen.direction, seen.color, seen.shape) == (shown["direction"], shown["color"], shown["shape"])
        assert shown["direction"] == pair.expected["direction"]
    np.testing.assert_array_equal(make_pair(3, 5).frames, pairs[5].frames)
    assert (make_pair(4, 5).frames != pairs[5].frames).any()


@pytest.fixture(scope="module")
def pairs():
    return [make_pair(0, i, SMALL.frames, SMALL.height) for i in range(2)]


@pytest.fixture(scope="module")
def prior(model, pairs):
    return motion_transfer.read_pairs(model, pairs, QUICK, 1.0)


def test_every_pair_has_its_own_reference(model, pairs, prior):
    alone = motion_transfer.read_pairs(model, pairs[1:], QUICK, 1.0)
    assert prior.timesteps == alone.timesteps == sorted(guided_timesteps(4, 1.0))
    for t, layer in product(prior.timesteps, prior.layers):
        assert len(prior.at(t)[layer].value) == 2
        torch.testing.assert_close(prior.at(t)[layer].value[1:], alone.at(t)[layer].value, rtol=1e-4, atol=1e-5)


def test_guidance_lowers_the_energy_of_the_plain_teacher(model, pairs):
    """On steps short enough for a gradient to tell their end."""
    sampling = replace(QUICK, steps=10, grid=10)
    prior = motion_transfer.read_pairs(model, pairs, sampling, 0.5)
    clips, energies = {}, {}
    for strength in (0.0, 1000.0):
        guidance = Guidance(strength, 0.5)
        clips[strength], energies[strength] = motion_transfer.sample_pairs(model, pairs, prior, guidance, sampling)
        assert energies[strength].shape == (4, 2)
    assert (energies[1000.0][1:] < 0.98 * energies[0.0][1:]).all(), energies
    context, empty = (model.text.encode(prompts) for prompts in ([pair.prompt for pair in pairs], [""]))
    noise = model.noise(2, [generator_for("noise", 0, pair.number) for pair in pairs])
    with torch.no_grad():
        plain = model.decode(sample_ddim(cfg_model(model.unet, context, empty, 2.0), noise, model.schedule, 10))
    np.testing.assert_allclose(np.float32(clips[0.0]), np.float32([to_uint8(frames) for frames in plain]), atol=1)


def test_the_oracle_judges_against_the_reference(pairs):
    pair = make_pair(0, 2)
    assert motion_transfer.judge(pair.frames, {"direction": pair.expected["direction"]})["direction"] is True
    against = motion_transfer.judge(pair.frames, pair.expected)  # the reference itself has another colour and shape
    assert (against["direction"], against["color"], against["shape"]) == (True, False, False)
    json.dumps(against)


def test_intervals():
    low, high = wilson(80, 100)
    assert (low, high) == (pytest.approx(0.7112, abs=1e-4), pytest.approx(0.8666, abs=1e-4))
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1 and wilson(0, 10)[1] > 0.2
    gain, low, high = difference([True, True, False, True], [False, True, False, False])
    assert gain == 0.5 and high - gain == pytest.approx(gain - low) == pytest.approx(1.96 * (1 / 3) ** 0.5 / 2)
    assert not difference([True, True, False, True], [False, True, False, False]).excludes_zero
    assert mean_interval([1.0, 2.0, 3.0]).excludes_zero and mean_interval([-1.0, -2.0, -3.0]).excludes_zero
    assert not mean_interval([5.0]).excludes_zero  # one sample tells nothing


@pytest.fixture(scope="module")
def swept(model, tmp_path_factory):
    """Three pairs in batches of two, with rows kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(motion_transfer, "BATCH", 2)
        kept = KeptRows(tmp_path_factory.mktemp("sweep") / "rows.json")
        guidances = motion_sweep.grid([100.0, 0.0], [1.0, 0.5])
        return motion_transfer.run_pairs(model, guidances, 3, QUICK, kept, MADE), kept


def test_a_sweep_goes_on_and_a_longer_one_reuses_its_batches(model, swept, monkeypatch):
    results, kept = swept
    monkeypatch.setattr(motion_transfer, "BATCH", 2)
    calls, judge_part = [], motion_transfer._judge_part

    def counted(model, part, *rest):
        calls.append(len(part))
        return judge_part(model, part, *rest)

    monkeypatch.setattr(motion_transfer, "_judge_part", counted)
    guidances = list(results)
    assert motion_transfer.run_pairs(model, guidances, 3, QUICK, kept, MADE) == results and calls == []
    longer = motion_transfer.run_pairs(model, guidances[:1], 4, QUICK, kept, MADE)
    assert calls == [2] and longer[guidances[0]][:2] == results[guidances[0]][:2]  # the batch of one was of one
    motion_transfer.run_pairs(model, guidances[:1], 2, QUICK, kept, {"weights": "others"})
    motion_transfer.run_pairs(model, guidances[:1], 2, replace(QUICK, seed=1), kept, MADE)
    assert calls == [2, 2, 2]


def test_pairs_do_not_depend_on_their_batch(swept, model, tmp_path):
    results, _ = swept
    guidance = Guidance(100.0, 0.5)
    whole = motion_transfer.run_pairs(model, [guidance], 3, QUICK, KeptRows(tmp_path / "rows.json"), MADE)
    for one, other in zip(whole[guidance], results[guidance]):
        assert list(one["energy"]) == ["999"]
        assert one["energy"]["999"] == pytest.approx(other["energy"]["999"], rel=1e-3)


def test_the_tables_and_the_page(swept, tmp_path):
    results, _ = swept
    table = motion_sweep.sweep_table(results)
    assert [row[:2] for row in table[1:]] == [["0", "1"], ["100", "0.5"], ["100", "1"]]
    energies = [row[table[0].index("energy")] for row in table[1:]]
    before, after = (sum(one["energy"]["499"] for one in results[Guidance(s, 1.0)]) for s in (0.0, 100.0))
    assert energies[0] == 100 and energies[2] == pytest.approx(100 * after / before, abs=0.06)
    assert energies[1] == pytest.approx(100, abs=0.06)  # before its first step guidance has moved nothing
    assert markdown(table).splitlines()[0].startswith("| lambda | tau | direction | 95 % interval | color |")
    page = motion_sweep.write_sweep(tmp_path / "sweep.html", results).read_text()
    assert page.count("<svg") == 4 and "Energy during the sampling, tau 0.5" in page
    assert motion_sweep.best(results) in results


def test_scores_by_lambda_begin_without_guidance():
    totals = {(0.0, 0.7): 0.5, (500.0, 0.3): 0.9, (100.0, 0.3): 0.6, (100.0, 0.7): 0.7}
    results = {Guidance(*pair): [{"total": total}] for pair, total in totals.items()}
    assert motion_sweep.scores_by_tau(results, "total") == {
        "tau 0.3": ([0.0, 100.0, 500.0], [0.5, 0.6, 0.9]),
        "tau 0.7": ([0.0, 100.0], [0.5, 0.7]),
    }
    assert motion_sweep.best(results) == Guidance(500.0, 0.3)


# --- the commands ----------


def test_transfer_and_sweep_commands(motion, tmp_path, capsys):
    assert motion("transfer", "--pairs", 1, "--steps", 3, "--grid", 2, "--guidance", 1, "--out", "out") == 0
    told = capsys.readouterr().out
    assert "| 500 | 0.5 |" in told and "direction: guidance adds" in told
    rows = json.loads((tmp_path / "out" / "rows.json").read_text())["rows"]
    assert [row["made_from"]["strength"] for row in rows] == [0, 500]
    assert "teacher.safetensors" in rows[0]["made_from"]["weights"]
    sweep = ["--strength", 0, 500, "--pairs", 1, "--steps", 3, "--grid", 2, "--guidance", 1, "--out", "out"]
    assert motion("sweep", *sweep) == 0
    assert len(json.loads((tmp_path / "out" / "rows.json").read_text())["rows"]) == 2  # the experiment is the same
    assert "highest total: lambda" in capsys.readouterr().out and (tmp_path / "out" / "sweep.html").exists()


def test_sweep_of_a_student(motion, random_shapes, tmp_path, capsys):
    save_unet(randomize(UNet3D(SHAPES.unet.as_student(motion=True)), 5), tmp_path / "mg.safetensors")
    sweep = ["--student", tmp_path / "mg.safetensors", "--strength", 0, 500, "--pairs", 2, "--steps", 1]
    assert motion("sweep", *sweep, "--out", "out") == 0
    assert "| 500 | 0.5 |" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "rows.json").read_text())["rows"]
    assert len(rows) == 2 and rows[0]["results"] != rows[1]["results"] and rows[0]["made_from"]["student"]
    save_unet(randomize(UNet3D(SHAPES.unet.as_student(motion=True)), 6), tmp_path / "mg.safetensors")
    assert motion("sweep", *sweep, "--out", "out") == 0  # other weights begin anew
    assert len(json.loads((tmp_path / "out" / "rows.json").read_text())["rows"]) == 4
