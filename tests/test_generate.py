"""``t2v-turbo generate`` as a user calls it: files, metadata, reproducibility, and every mistake in one line."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, randomize

from t2v_turbo.core import video
from t2v_turbo.core.checkpoints.distilled import distilled_motion
from t2v_turbo.core.checkpoints.networks import load_unet, save_unet
from t2v_turbo.core.diffusion.schedule import NoiseSchedule
from t2v_turbo.core.families import SHAPES
from t2v_turbo.core.motion.prior import Origin, make_prior
from t2v_turbo.core.networks.unet import UNet3D
from t2v_turbo.train.cli import main
from t2v_turbo.train.generation.request import check_grid

PROMPT = "a red circle moves right"


@pytest.fixture
def generate(random_shapes, tmp_path, monkeypatch):
    """Runs the command in an empty folder with a small clip; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*options, checkpoints=random_shapes):
        small = ["--frames", "2", "--height", "16", "--width", "24"]
        sizes = [] if {"--height", "--frames"} & set(options) else small
        folder = ["--checkpoints", str(checkpoints)]
        return main(["generate", "--device", "cpu", *sizes, *folder, *map(str, options)])

    return run


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_mp4_with_metadata(generate, tmp_path):
    assert generate(PROMPT, "--steps", "2", "--seed", "5", "--out", "out.mp4") == 0
    assert files(tmp_path) == ["out.mp4"]
    assert video.read_video("out.mp4").shape == (2, 16, 24, 3)
    tags = video.read_metadata("out.mp4")
    assert (tags["prompt"], tags["seed"]) == (PROMPT, "5")
    settings = json.loads(tags["settings"])
    assert settings["model"] == "shapes"
    assert settings["unet"] == "student"
    assert (settings["steps"], settings["size"], settings["frames"]) == (2, "24x16", 2)


def test_a_seed_is_a_video(generate, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert generate(PROMPT, "--steps", "2", "--seed", seed, "--out", f"{name}.mp4") == 0
    a, b, c = ((tmp_path / f"{name}.mp4").read_bytes() for name in "abc")
    assert a == b != c


def test_guidance_reaches_the_student(generate, tmp_path):
    for scale in (2, 9):
        generate(PROMPT, "--steps", "1", "--guidance", scale, "--out", f"{scale}.mp4")
    assert (video.read_video("2.mp4") != video.read_video("9.mp4")).any()


def test_several_prompts_and_a_file(generate, tmp_path):
    (tmp_path / "prompts.txt").write_text("a blue cross\n\n  ../a/b  \n")
    assert generate(PROMPT, "--prompts", "prompts.txt", "--steps", "1", "--out", "clips", "--format", "gif") == 0
    assert files(tmp_path / "clips") == ["000-a-red-circle-moves-right.gif", "001-a-blue-cross.gif", "002-a-b.gif"]


def test_prompts_of_any_encoding(generate, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_bytes("\ufeffa café\r\n\r\na\u2028cat\r\n".encode("utf-16-le"))
    assert generate("--prompts", "prompts.txt", "--steps", "1", "--out", "clips") == 0
    assert files(tmp_path / "clips") == ["000-a-caf.mp4", "001-a-cat.mp4"]
    assert video.read_metadata("clips/000-a-caf.mp4")["prompt"] == "a café"
    (tmp_path / "prompts.txt").write_bytes("a café".encode("latin-1"))
    assert generate("--prompts", "prompts.txt", "--out", "no") == 2
    assert "prompts.txt: is no UTF-8 text" in capsys.readouterr().err
    assert generate("--prompts", "prompts.txt", "--encoding", "latin-1", "--steps", "1", "--out", "one.mp4") == 0
    assert video.read_metadata("one.mp4")["prompt"] == "a café"


def test_the_largest_seed_and_the_one_after_it(generate, tmp_path):
    assert generate(PROMPT, PROMPT, "--steps", "1", "--seed", 2**64 - 1, "--out", "clips") == 0
    seeds = [video.read_metadata(tmp_path / "clips" / name)["seed"] for name in files(tmp_path / "clips")]
    assert seeds == [str(2**64 - 1), "0"]


@pytest.mark.parametrize(
    ("out", "prompts", "expected"),
    [
        ("new.v1.5/", 1, "new.v1.5/000-a-red-circle-moves-right.mp4"),
        ("out.mp4/", 1, "out.mp4/000-a-red-circle-moves-right.mp4"),
        ("new.v1.5", 2, "new.v1.5/001-a-red-circle-moves-right.mp4"),
        ("deep/er/new", 1, "deep/er/new/000-a-red-circle-moves-right.mp4"),
        ("new.v1.5.gif", 1, "new.v1.5.gif"),
        ("there.v2", 1, "there.v2/000-a-red-circle-moves-right.mp4"),
    ],
)
def test_what_is_a_folder(generate, tmp_path, out, prompts, expected):
    (tmp_path / "there.v2").mkdir()
    assert generate(*[PROMPT] * prompts, "--steps", "1", "--out", out) == 0
    assert files(tmp_path)[-1] == expected


def test_teacher(generate, tmp_path):
    assert generate(PROMPT, "--teacher", "--steps", "2", "--out", "out.mp4") == 0
    assert json.loads(video.read_metadata("out.mp4")["settings"])["unet"] == "teacher"


# --- motion guidance ----------


@pytest.fixture(scope="module")
def with_motion(random_shapes, tmp_path_factory):
    """The family's files with a student that has the input lambda, and a motion prior of a small clip."""
    folder = tmp_path_factory.mktemp("motion")
    for path in random_shapes.iterdir():
        (folder / path.name).symlink_to(path)
    save_unet(randomize(UNet3D(SHAPES.unet.as_student(motion=True)), 5), folder / "student_mg.safetensors")
    teacher, generator = load_unet(folder / "teacher.safetensors", SHAPES.unet), torch.Generator().manual_seed(0)
    x0, context = (torch.randn(shape, generator=generator) for shape in [(1, 4, 2, 2, 3), (1, 77, 64)])
    origin = Origin("shapes", source="clip.mp4", method="noise")
    make_prior(teacher, x0, context, [999, 749], NoiseSchedule(), origin).save(folder / "prior.safetensors")
    return folder


def test_the_teacher_follows_a_prior(generate, with_motion, tmp_path):
    """At the prior's size, unless another is asked for; in the first part of the sampling alone."""
    prior, fixed = with_motion / "prior.safetensors", ["--teacher", "--steps", "4", "--guidance", "2"]
    for name, options in {
        "plain": [],
        "zero": ["--motion", prior, "--motion-strength", "0"],
        "none": ["--motion", prior, "--motion-strength", "1e5", "--tau", "0.25"],  # the edge itself is unguided
        "guided": ["--motion", prior, "--motion-strength", "1e5"],
    }.items():
        assert generate(PROMPT, *fixed, *options, "--out", f"{name}.mp4") == 0
    clips = {name: video.read_video(f"{name}.mp4") for name in ("plain", "zero", "none", "guided")}
    assert (clips["zero"] == clips["plain"]).all() and (clips["none"] == clips["plain"]).all()
    assert (clips["guided"] != clips["plain"]).any()
    settings = json.loads(video.read_metadata("guided.mp4")["settings"])
    assert (settings["motion_strength"], settings["tau"], settings["motion"]) == (1e5, 0.5, "prior.safetensors")
    assert settings["motion_source"] == "clip.mp4"
    assert main(["generate", PROMPT, *fixed, "--motion", str(prior), "--checkpoints", str(with_motion), "--device",
                 "cpu", "--out", "sized.mp4"]) == 0  # fmt: skip
    assert video.read_video("sized.mp4").shape == (2, 16, 24, 3)
    assert json.loads(video.read_metadata("sized.mp4")["settings"])["motion_strength"] == 500


def test_how_a_prior_enters_a_step_can_be_chosen(generate, with_motion, tmp_path):
    guided = ["--teacher", "--steps", "4", "--motion", with_motion / "prior.safetensors", "--motion-strength", "1e5"]
    for name, options in {"usual": [], **{one: ["--combination", one] for one in ("released", "equation8")}}.items():
        assert generate(PROMPT, *guided, *options, "--out", f"{name}.mp4") == 0
        told = json.loads(video.read_metadata(f"{name}.mp4")["settings"])["combination"]
        assert told == ("released" if name == "usual" else name)
    usual, released, equation8 = (video.read_video(f"{n}.mp4") for n in ("usual", "released", "equation8"))
    assert (usual == released).all() and (usual != equation8).any()


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ([], "try --motion-strength below 1e+30"),
        (["--dtype", "bf16"], "try --dtype fp32, or --motion-strength below 1e+30"),
    ],
)
def test_a_clip_of_no_numbers_is_not_written(generate, with_motion, tmp_path, capsys, options, remedy):
    guided = ["--teacher", "--steps", "4", "--motion", with_motion / "prior.safetensors", "--motion-strength", "1e30"]
    assert generate(PROMPT, *guided, *options, "--seed", "7") == 2
    assert f"seed 7: the clip holds NaN or infinite numbers; {remedy}" in capsys.readouterr().err
    assert files(tmp_path) == []


def test_a_broken_network_writes_nothing_either(generate, with_motion, tmp_path, capsys):
    student = UNet3D(SHAPES.unet.as_student())
    next(student.parameters()).data.fill_(torch.nan)
    save_unet(student, with_motion / "nan.safetensors")
    assert generate(PROMPT, "--student", with_motion / "nan.safetensors", "--steps", "1") == 2
    assert "seed 0: the clip holds NaN or infinite numbers; try a smaller --guidance" in capsys.readouterr().err
    assert files(tmp_path) == []


def test_a_student_with_motion_guidance_takes_lambda_and_tau(generate, with_motion, tmp_path):
    runs = {"own": [], "500": ["--motion-strength", "500"], "0": ["--motion-strength", "0"], "tau": ["--tau", "0"]}
    for name, options in runs.items():
        mg = ["--student", "mg", "--steps", "2", *options, "--out", f"{name}.mp4"]
        assert generate(PROMPT, *mg, checkpoints=with_motion) == 0
    clips = {name: video.read_video(f"{name}.mp4") for name in runs}
    assert (clips["own"] == clips["500"]).all() and (clips["own"] != clips["0"]).any()
    assert (clips["tau"] == clips["0"]).all()
    assert json.loads(video.read_metadata("own.mp4")["settings"])["motion_strength"] == 500


def student_that_tells(path, **distill):
    """A student with the input lambda whose file tells settings of its distillation."""
    save_unet(randomize(UNet3D(SHAPES.unet.as_student(motion=True)), 5), path, distill=json.dumps(distill))
    return path


def test_a_student_knows_its_own_lambda_and_tau(generate, with_motion, tmp_path):
    """They are the default where the file tells them; an option goes before."""
    told = student_that_tells(with_motion / "told.safetensors", motion=True, motion_strength=50.0, tau=0.25)
    runs = {
        "own": [told],
        "same": [with_motion / "student_mg.safetensors", "--motion-strength", "50", "--tau", "0.25"],
        "given": [told, "--motion-strength", "500", "--tau", "0.5"],
        "usual": [with_motion / "student_mg.safetensors"],
    }
    for name, options in runs.items():
        student = ["--student", *options, "--steps", "4", "--out", f"{name}.mp4"]
        assert generate(PROMPT, *student, checkpoints=with_motion) == 0
    clips = {name: video.read_video(f"{name}.mp4") for name in runs}
    assert (clips["own"] == clips["same"]).all() and (clips["given"] == clips["usual"]).all()
    assert (clips["own"] != clips["usual"]).any()
    settings = [json.loads(video.read_metadata(f"{name}.mp4")["settings"]) for name in ("own", "given")]
    assert [(one["motion_strength"], one["tau"]) for one in settings] == [(50, 0.25), (500, 0.5)]


@pytest.mark.parametrize(
    ("distill", "expected"),
    [
        ({"motion": True, "motion_strength": None, "tau": 0.3}, {"tau": 0.3}),  # null = the family's
        ({"motion": False, "motion_strength": 5.0, "tau": 0.3}, {}),
        ({"steps": 10}, {}),
    ],
    ids=["the family's lambda", "without motion", "of before there was motion"],
)
def test_what_a_student_tells(tmp_path, distill, expected):
    assert distilled_motion(student_that_tells(tmp_path / "s.safetensors", **distill)) == expected


@pytest.mark.parametrize("distill", [{"motion": True, "tau": 2.0}, {"motion": True, "motion_strength": "much"}])
def test_a_student_that_tells_nonsense(generate, with_motion, capsys, distill):
    student = student_that_tells(with_motion / "nonsense.safetensors", **distill)
    assert generate(PROMPT, "--student", student, checkpoints=with_motion) == 2
    assert "nonsense.safetensors: its settings of distillation cannot be read" in capsys.readouterr().err


def test_the_default_student_is_the_one_without(generate, with_motion):
    assert generate(PROMPT, "--steps", "1", "--out", "a.mp4", checkpoints=with_motion) == 0
    assert "motion_strength" not in json.loads(video.read_metadata("a.mp4")["settings"])


# --- mistakes: one clear line, exit code 2, nothing written ----------

MISTAKES = {
    "no prompt": ([], "no prompt: write one"),
    "steps 0": ([PROMPT, "--steps", "0"], "--steps 0 is outside 1..200"),
    "steps of a student": ([PROMPT, "--steps", "300"], "--steps 300 is outside 1..200"),
    "guidance": ([PROMPT, "--guidance", "0"], "--guidance 0 is outside"),
    "fps": ([PROMPT, "--fps", "0"], "--fps 0 is outside"),
    "size": ([PROMPT, "--height", "60"], "height=60 is no positive multiple of 8: use 64"),
    "size 0": ([PROMPT, "--height", "0"], "height=0 is no positive multiple of 8: use 8"),
    "frames": ([PROMPT, "--frames", "0"], "frames=0: at least 1 frame"),
    "unknown model": ([PROMPT, "--model", "sora"], "unknown model 'sora'; known are shapes, videocrafter2"),
    "unknown student": ([PROMPT, "--student", "fast"], "unknown student 'fast'"),
    "missing student": ([PROMPT, "--student", "none.pt"], "none.pt: no such checkpoint file"),
    "unknown device": ([PROMPT, "--device", "abacus"], "--device abacus cannot be used here"),
    "missing folder": ([PROMPT, "--out", "none/out.mp4"], "the folder none does not exist"),
    "unknown format": ([PROMPT, "--out", "out.xyz"], "cannot write '.xyz'"),
    "missing prompts": (["--prompts", "none.txt"], "none.txt"),
    "a reference for a student": ([PROMPT, "--motion", "p.safetensors"], "p.safetensors needs --teacher"),
    "lambda without a prior": ([PROMPT, "--teacher", "--motion-strength", "500"], "needs --motion and a prior"),
    "lambda without an input": ([PROMPT, "--motion-strength", "500"], "no input for it: use one that was distilled"),
    "negative lambda": ([PROMPT, "--motion-strength", "-1"], "--motion-strength -1 must be 0 or more"),
    "tau": ([PROMPT, "--tau", "1.5"], "--tau 1.5 is outside 0..1"),
    "tau for a plain teacher": ([PROMPT, "--teacher", "--tau", "0.3"], "--tau 0.3 with --teacher needs --motion"),
    "tau without an input": ([PROMPT, "--tau", "0.3"], "--tau 0.3 needs a student that was distilled with motion"),
    "combination": ([PROMPT, "--teacher", "--combination", "equation8"], "--combination equation8 needs --teacher"),
    "steps 600": ([PROMPT, "--teacher", "--steps", "600"], "would begin at timestep 599 of 999"),
    "steps 300": ([PROMPT, "--teacher", "--steps", "300"], "use 250, which divides 1000"),
    "missing prior": ([PROMPT, "--teacher", "--motion", "none.safetensors"], "none.safetensors: no such"),
    "seed below 0": ([PROMPT, "--seed", "-1"], f"--seed: -1 is no whole number from 0 to {2**64 - 1}"),
    "seed beyond 64 bits": ([PROMPT, "--seed", 2**64], f"{2**64} is no whole number from 0 to {2**64 - 1}"),
    "seed of words": ([PROMPT, "--seed", "red"], "--seed: red is no whole number"),
    "prompt of other bytes": (["a caf\udce9"], "prompt 'a caf\\udce9' holds bytes that are no text here"),
    "encoding without a file": ([PROMPT, "--encoding", "latin-1"], "--encoding latin-1 is that of a file of prompts"),
    "unknown option": ([PROMPT, "--stepps", "1"], "unrecognized arguments: --stepps 1; see `t2v-turbo --help`"),
    "dotted folder or file": ([PROMPT, "--out", "new.v1.5"], "or new.v1.5/ for a folder"),
    "one file for two": ([PROMPT, PROMPT, "--out", "out.mp4"], "names one file for 2 prompts: name a folder"),
}


@pytest.mark.parametrize(("options", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(generate, tmp_path, capsys, options, message):
    assert generate(*options) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith("t2v-turbo generate: ")
    assert message in error[0]
    assert files(tmp_path) == []


def test_a_teachers_usual_steps_begin_in_noise():
    for steps in (*range(4, 65), 100, 200, 250, 500, 1000):
        check_grid(steps)


def test_a_prior_of_another_size_is_refused(generate, with_motion, capsys):
    options = ["--teacher", "--motion", with_motion / "prior.safetensors", "--steps", "2"]
    assert generate(PROMPT, *options, "--frames", "3", "--height", "16", "--width", "24") == 2
    assert "is of 2 frames of 3x2 latents, the video of 3 frames" in capsys.readouterr().err


def test_missing_weights(generate, tmp_path, capsys):
    assert generate(PROMPT, checkpoints=tmp_path / "none") == 2
    assert "no such checkpoint file" in capsys.readouterr().err


def test_empty_weights(generate, tmp_path, capsys):
    (tmp_path / "unet.pt").touch()
    assert generate(PROMPT, "--student", "unet.pt") == 2
    assert "unet.pt: the file is empty (0 bytes)" in capsys.readouterr().err
    assert files(tmp_path) == ["unet.pt"]


def test_unwritable_output(generate, tmp_path, capsys):
    (tmp_path / "taken").touch()
    assert generate(PROMPT, "--out", "taken/out.mp4") == 2
    (tmp_path / "folder.mp4").mkdir()
    assert generate(PROMPT, "--out", "folder.mp4", "--steps", "1") == 0  # an existing folder takes a numbered file
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):
        return  # an administrator may write anywhere
    assert generate(PROMPT, "--out", "locked/out.mp4") == 2
    assert "cannot write here" in capsys.readouterr().err


def test_no_traceback_from_the_shell(tmp_path):
    """The installed command's own process, with a checkpoint that cannot be loaded."""
    (tmp_path / "broken.safetensors").write_bytes(b"\0" * 100)
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); import conftest; from t2v_turbo.train.cli import main; "
    command = ["generate", PROMPT, "--student", "broken.safetensors", "--device", "cpu"]
    result = subprocess.run(
        [sys.executable, "-c", code + "sys.exit(main())", str(ROOT / "tests"), *command],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "broken.safetensors: not a complete safetensors file" in result.stderr
    assert files(tmp_path) == ["broken.safetensors"]


@pytest.mark.parametrize(
    "command", ["generate", "demo", "preprocess", "distill", "download", "score", "motion", "shapes"]
)
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 10
