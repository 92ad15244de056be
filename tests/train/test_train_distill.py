"""Distillation end to end: clips to records to a student, exactly resumable, on one process and on two."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import load_file

from t2v_turbo.core.checkpoints.networks import load_unet
from t2v_turbo.core.diffusion.distillation import Batch, ConsistencyDistillation
from t2v_turbo.core.diffusion.guidance import equation8
from t2v_turbo.core.diffusion.schedule import NoiseSchedule
from t2v_turbo.core.families import SHAPES
from t2v_turbo.core.pipeline import load
from t2v_turbo.train import cli, distill
from t2v_turbo.train.config import load_config
from t2v_turbo.train.data.reader import RecordReader, RecordSet, iterate_batches
from t2v_turbo.train.shapes.world.dataset import write_dataset
from t2v_turbo.train.training.trainer import DivergedError, newest_checkpoint, read_stats, step_generator

# The grid that the tests reckon with, in a precision that they can compare, whatever the packaged file says.
EXACT = ["solver_steps=200", "precision=no", "model.device=cpu"]
TRAINED = ["precision=no", "export_dtype=fp32", "omega_min=5", "omega_max=15", "model.device=cpu"]


@pytest.fixture(scope="module")
def records(tmp_path_factory, random_shapes):
    """Records of 12 rendered clips, through the command line."""
    root = tmp_path_factory.mktemp("records")
    clips = write_dataset(root / "clips", 12, seed=0, style="short")
    arguments = [f"videos={clips}", f"records={root}/set", f"model.folder={random_shapes}", "clips_per_shard=4"]
    assert cli.main(["preprocess", *arguments, "records_per_clip=2", *EXACT]) == 0
    return root / "set"


@pytest.fixture
def config(records, random_shapes, tmp_path):
    return load_config(
        "distill",
        "shapes",
        [f"records={records}", f"out={tmp_path}/run", f"model.folder={random_shapes}", "steps=6", "batch_size=4",
         "warmup=2", "log_every=1", "save_every=3", "shuffle=10", "ema_decay=0.9", "lr=2e-4", "decay=0.2", *TRAINED],
    )  # fmt: skip


def weights(out):
    return load_file(newest_checkpoint(Path(out)) / "model.safetensors")


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_records_to_a_student_that_samples(records, random_shapes, tmp_path, capsys):
    out = tmp_path / "run"
    settings = [f"records={records}", f"out={out}", f"model.folder={random_shapes}", *TRAINED]
    assert cli.main(["distill", *settings, "steps=3", "batch_size=4", "warmup=0", "log_every=1"]) == 0
    assert str(out / "student.safetensors") in capsys.readouterr().out
    with safe_open(out / "student.safetensors", "pt") as file:
        about = file.metadata()
    assert about["step"] == "3" and json.loads(about["records"])["solver_steps"] == 200
    assert json.loads(about["distill"])["omega_max"] == 15
    assert str(tmp_path) not in str(about) and str(random_shapes) not in str(about)  # weights travel, folders do not
    lines = read_stats(out)
    assert len(lines) == 3 and all({"loss", "cd", "grad_norm", "lr", "seconds_per_step"} <= set(line) for line in lines)
    assert list((out / "tensorboard").iterdir())
    model = load("shapes", out / "student.safetensors", random_shapes)
    assert model.unet.takes_guidance and not model.unet.takes_motion
    noise = model.noise(1, torch.Generator().manual_seed(0))
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    low, high = (model.sample(["a red circle"], noise, 2, g, r) for g, r in zip((6.0, 12.0), generators))
    assert low.isfinite().all() and not torch.equal(low, high)


@pytest.mark.parametrize("motion", [False, True])
def test_the_student_starts_as_the_teacher(random_shapes, motion):
    teacher = load_unet(random_shapes / "teacher.safetensors", SHAPES.unet)
    student = distill.student_from_teacher(teacher, motion)
    generator = torch.Generator().manual_seed(0)
    x, context = (torch.randn(shape, generator=generator) for shape in [(2, 4, 8, 8, 8), (2, 77, 64)])
    t, scales = torch.tensor([900, 10]), {"omega": torch.tensor([5.0, 15.0])}
    scales |= {"motion": torch.tensor([0.0, 500.0])} if motion else {}
    with torch.no_grad():
        torch.testing.assert_close(student(x, t, context, **scales), teacher(x, t, context))
    student(x, t, context, **scales).square().mean().backward()
    assert (student.combine_proj if motion else student.guidance_proj).weight.grad.abs().sum() > 0


def test_the_first_loss_is_the_cores_on_the_first_records(config, random_shapes, records):
    """The trainer adds nothing: same records, same omega, the loss of ``core.distillation``."""
    distill.distill(replace(config, steps=1, target="ema"))
    reader = RecordReader(RecordSet(str(records)), shuffle=config.shuffle)
    tensors, _ = next(iterate_batches(reader, 4))
    student = distill.build_student(config, SHAPES)
    losses = distill.DistillLosses(config, RecordSet(str(records)), None)
    losses.trainer = type("T", (), {"device": torch.device("cpu")})
    generator = step_generator(config.seed, 0, 0)
    torch.randint(2**62, (1,), generator=generator)
    omega = losses.draw_omega(4, generator)
    assert ((omega >= 5) & (omega <= 15)).all() and len(set(omega.tolist())) == 4
    batch = Batch(**{name: x.float() if x.is_floating_point() else x for name, x in tensors.items()})
    loss = ConsistencyDistillation(NoiseSchedule(), 200)(student, batch, omega).loss
    assert read_stats(config.out)[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_omega_is_drawn_from_all_of_its_range(config, records):
    losses = distill.DistillLosses(replace(config, omega_min=5.0, omega_max=15.0), RecordSet(str(records)), None)
    losses.trainer = type("T", (), {"device": torch.device("cpu")})
    omega = losses.draw_omega(10_000, torch.Generator().manual_seed(0))
    assert 5 <= omega.min() < 5.01 and 14.99 < omega.max() <= 15
    shares = torch.histc(omega, 10, 5, 15) / len(omega)
    assert ((shares - 0.1).abs() < 0.02).all()  # uniform


def test_the_loss_falls(config):
    distill.distill(replace(config, steps=20, batch_size=2, lr=1e-3, save_every=20, omega_max=5.0))
    losses = [line["loss"] for line in read_stats(config.out)]
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])


# --- motion guidance ----------


@pytest.fixture(scope="module")
def motion_records(tmp_path_factory, random_shapes):
    """Records of four rendered clips with motion scores for the noisier half, the last clip without."""
    root = tmp_path_factory.mktemp("motion")
    clips = write_dataset(root / "clips", 4, seed=3, style="dense")
    rows = [f"clip_{i:06d}.mp4,a caption,{int(i < 3)}" for i in range(4)]
    (root / "flags.csv").write_text("\n".join(["relpath,text,use_motion_guide", *rows]))
    arguments = [f"videos={root}/flags.csv", f"video_root={clips}", f"records={root}/set", "motion=true",
                 f"model.folder={random_shapes}", "motion_method=noise"]  # fmt: skip
    assert cli.main(["preprocess", *arguments, "records_per_clip=3", *EXACT]) == 0
    return root / "set"


@pytest.fixture
def motion_config(config, motion_records):
    return replace(config, records=str(motion_records), motion=True, batch_size=12, shuffle=100)


def first_step(config, records, monkeypatch):
    """The batch, omega and output of the first step of a run."""
    seen, original = [], ConsistencyDistillation.__call__

    def watched(self, student, batch, omega, target=None):
        seen.append((self, batch, omega, original(self, student, batch, omega, target)))
        return seen[-1][-1]

    monkeypatch.setattr(ConsistencyDistillation, "__call__", watched)
    distill.distill(replace(config, steps=1))
    return seen[0]


def test_lambda_is_a_condition_where_there_is_a_score(motion_config, motion_records, monkeypatch):
    losses, batch, omega, output = first_step(motion_config, motion_records, monkeypatch)
    scored = batch.score.flatten(1).abs().amax(1) > 0
    assert 0 < scored.sum() < 12 and torch.equal(scored, batch.use_motion_guide)
    assert (batch.index[scored] >= 100).all()
    assert torch.equal(losses.lambdas(batch), 500.0 * scored)
    # The solution is moved by the score there, and nowhere else.
    batch.score = None
    moved = (losses.solve(batch, omega) - output.solution).flatten(1).abs().amax(1)
    assert (moved[scored] > 0).all() and (moved[~scored] == 0).all()
    assert distill.load_unet(f"{motion_config.out}/student.safetensors", SHAPES.unet).takes_motion
    with safe_open(f"{motion_config.out}/student.safetensors", "pt") as file:
        settings, made = (json.loads(file.metadata()[name]) for name in ("distill", "records"))
    assert (settings["motion_strength"], settings["tau"]) == (500.0, 0.5) and made["motion"][0]["method"] == "noise"


def test_strength_tau_and_combination_reach_the_loss(motion_config, motion_records, monkeypatch):
    config = replace(motion_config, motion_strength=120.0, tau=0.25, combination="equation8")
    losses, batch, _, _ = first_step(config, motion_records, monkeypatch)
    assert set(losses.lambdas(batch).tolist()) <= {0.0, 120.0} and losses.lambdas(batch).max() == 120
    assert torch.equal(losses.lambdas(batch) > 0, batch.use_motion_guide & (batch.index >= 150))
    assert losses.combine is equation8


def test_the_same_records_make_the_variant_without_motion(motion_config, motion_records, monkeypatch):
    _, batch, _, _ = first_step(replace(motion_config, motion=False), motion_records, monkeypatch)
    assert batch.score is None and batch.use_motion_guide is None
    assert not distill.load_unet(f"{motion_config.out}/student.safetensors", SHAPES.unet).takes_motion


def test_a_student_with_lambda_samples_with_it(motion_config, random_shapes):
    distill.distill(replace(motion_config, steps=2, lr=1e-2, warmup=0, ema_decay=None))
    model = load("shapes", f"{motion_config.out}/student.safetensors", random_shapes)
    noise = model.noise(1, torch.Generator().manual_seed(0))

    def sample(**settings):
        return model.sample(["a red circle"], noise, 2, generator=torch.Generator().manual_seed(0), **settings)

    assert torch.equal(sample(), sample(motion=500.0))  # the family's
    assert not torch.equal(sample(), sample(motion=0.0))
    assert torch.equal(sample(tau=0.0), sample(motion=0.0))


def test_records_with_and_without_scores_mix(motion_records, records):
    both = RecordSet(f"{motion_records},{records}")
    assert both.tau == 0.5 and len(both) == 36
    tensors, about = next(iterate_batches(RecordReader(both, shuffle=100), 36))
    assert torch.equal(tensors["use_motion_guide"], tensors["score"].flatten(1).float().abs().amax(1) > 0)
    of_plain = torch.tensor(["draw" in one and one["caption"] != "a caption" for one in about])
    assert of_plain.sum() == 24 and not tensors["use_motion_guide"][of_plain].any()


def test_motion_wants_scores(config, motion_config):
    with pytest.raises(ValueError, match=r"have no motion scores; make them with `t2v-turbo preprocess … motion=true`"):
        distill.distill(replace(config, motion=True))
    with pytest.raises(ValueError, match=r"tau=0\.8: the records have motion scores for tau=0\.5 only"):
        distill.distill(replace(motion_config, tau=0.8))
    assert not Path(config.out).exists()


def test_scores_of_different_energies_do_not_mix(motion_records, tmp_path):
    shutil.copytree(motion_records, tmp_path / "other")
    manifest = json.loads((tmp_path / "other" / "records.json").read_text())
    manifest["made_from"]["motion"]["energy"] = "squared-norm"
    (tmp_path / "other" / "records.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="scores of different energies"):
        RecordSet(f"{motion_records},{tmp_path}/other")


# --- resuming ----------


def die(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"target": "ema", "accumulate": 2, "cache_gb": 0.0, "ema_decay": None},
        {"motion": True, "target": "ema", "batch_size": 3},
    ],
)
def test_a_stopped_run_ends_with_the_same_weights(config, tmp_path, change, request, monkeypatch):
    whole = replace(config, **change)
    if whole.motion:
        whole = replace(whole, records=str(request.getfixturevalue("motion_records")))
    distill.distill(whole)
    stopped = replace(whole, out=str(tmp_path / "stopped"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(distill, "save_unet", die)
        distill.distill(stopped)
    (Path(stopped.out) / "checkpoints" / "partial").mkdir()
    (Path(stopped.out) / "checkpoints" / "partial" / "model.safetensors").write_bytes(b"torn")
    assert newest_checkpoint(Path(stopped.out)).name == "step-000003"
    distill.distill(stopped)
    assert_same(weights(whole.out), weights(stopped.out))
    assert_same(load_file(f"{whole.out}/student.safetensors"), load_file(f"{stopped.out}/student.safetensors"))
    lines = [[{**line, "seconds_per_step": 0} for line in read_stats(c.out)] for c in (whole, stopped)]
    assert lines[0] == lines[1] and len(lines[0]) == 6
    assert not (Path(stopped.out) / "checkpoints" / "partial").exists()


def test_the_weights_depend_on_the_seed_and_move(config, tmp_path):
    distill.distill(replace(config, steps=2))
    other = replace(config, steps=2, seed=1, out=str(tmp_path / "other"))
    distill.distill(other)
    first, second, start = weights(config.out), weights(other.out), distill.build_student(config, SHAPES).state_dict()
    assert not torch.equal(first["conv_in.weight"], second["conv_in.weight"])
    assert sum(not torch.equal(first[name], start[name]) for name in first) > 0.9 * len(first)


def test_accumulation_equals_a_larger_batch(config, tmp_path):
    """Two passes of 2 see the records of one of 4, and with one omega the same loss."""
    fixed = replace(config, steps=1, omega_max=5.0)
    distill.distill(fixed)
    halves = replace(fixed, batch_size=2, accumulate=2, out=str(tmp_path / "halves"))
    distill.distill(halves)
    one, two = read_stats(fixed.out)[0], read_stats(halves.out)[0]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("change", [{"batch_size": 2}, {"seed": 4}, {"motion": True}, {"target": "ema"}])
def test_a_run_does_not_go_on_with_other_fixed_settings(config, change):
    distill.distill(replace(config, steps=1))
    with pytest.raises(ValueError, match=rf"was begun with {next(iter(change))}="):
        distill.distill(replace(config, **change))


def test_a_change_of_the_rest_is_told(config, caplog):
    distill.distill(replace(config, steps=1))
    distill.distill(replace(config, steps=2, lr=1e-5))
    assert "other settings than it was begun with: steps, lr" in caplog.text.replace("lr, steps", "steps, lr")


# --- mistakes ----------


@pytest.mark.parametrize(
    "settings, told",
    [
        (["model.family=videocrafter2"], "model.family=shapes"),
        (["records=/nowhere"], "/nowhere"),
        (["model.device=cuda:1"], "CUDA_VISIBLE_DEVICES"),
        (["stepz=3"], "did you mean steps"),
        (["model.family=sora"], "unknown model 'sora'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(config, capsys, settings, told):
    given = [f"records={config.records}", f"out={config.out}", f"model.folder={config.model.folder}"]
    assert cli.main(["distill", *given, *settings]) == 2
    error = capsys.readouterr().err.strip()
    assert told in error and len(error.splitlines()) == 1
    assert not Path(config.out).exists()


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(config, capfd):
    resource = pytest.importorskip("resource")
    given = [f"records={config.records}", f"out={config.out}", f"model.folder={config.model.folder}", "batch_size=1",
             "log_every=1", "save_every=1", *TRAINED]  # fmt: skip
    assert cli.main(["distill", *given, "steps=1"]) == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15 * 2**20, before[1]))  # the weights fit, AdamW's state does not
    try:
        assert cli.main(["distill", *given, "steps=2"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("t2v-turbo distill: ")]
    assert len(told) == 1 and "optimizer.bin" in told[0] and "step-000001 is whole, the same command" in told[0]
    assert not (Path(config.out) / "checkpoints" / "partial").exists()
    assert cli.main(["distill", *given, "steps=2"]) == 0
    assert newest_checkpoint(Path(config.out)).name == "step-000002"


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(config):
    with pytest.raises(DivergedError, match="lower lr"):
        distill.distill(replace(config, lr=1e30, max_grad_norm=None, warmup=0))
    assert newest_checkpoint(Path(config.out)) is None or "step-000003" in str(newest_checkpoint(Path(config.out)))


# --- two processes ----------

LAUNCHED = """
import sys
sys.path.insert(0, {tests!r})
import conftest
from t2v_turbo.train.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_two_processes_train_one_student(config, tmp_path):
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED.format(tests=str(ROOT / "tests")))
    settings = [f"records={config.records}", f"model.folder={config.model.folder}", "batch_size=2", "warmup=0",
                "log_every=1", "steps=2", *TRAINED]  # fmt: skip
    # What `accelerate launch` runs on GPUs; on CPUs it would want MPI.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(script), "distill", *settings, f"out={tmp_path}/two"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    progress = json.loads((newest_checkpoint(tmp_path / "two") / "progress.json").read_text())
    assert progress["processes"] == 2
    assert load_unet(tmp_path / "two" / "student.safetensors", SHAPES.unet).takes_guidance
    # The gradient is the mean over both processes' records, so it is not what the first would have seen alone.
    alone = replace(config, steps=1, batch_size=2, warmup=0, out=str(tmp_path / "alone"))
    distill.distill(alone)
    two, one = read_stats(tmp_path / "two")[0], read_stats(tmp_path / "alone")[0]
    assert abs(two["grad_norm"] - one["grad_norm"]) > 1e-3
