"""The face for Python: ``t2v_turbo.load``, a call, ``save``; the clips of the command line, and every mistake told."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, randomize

import t2v_turbo
from t2v_turbo.core.checkpoints.networks import save_unet
from t2v_turbo.core.device import DTYPES, usual_dtype
from t2v_turbo.core.diffusion.schedule import NoiseSchedule
from t2v_turbo.core.families import SHAPES
from t2v_turbo.core.motion.prior import MotionPrior, Origin, make_prior
from t2v_turbo.core.networks.unet import UNet3D
from t2v_turbo.core.python_api import as_loras
from t2v_turbo.core.video import VideoError, read_metadata, read_video
from t2v_turbo.nodes.runtime.models import load_model
from t2v_turbo.train.cli import main

PROMPT = "a red circle moves right"
SMALL = {"frames": 2, "height": 16, "width": 24, "progress": False}
SIZE = ["--frames", "2", "--height", "16", "--width", "24", "--device", "cpu", "--dtype", "fp32"]


@pytest.fixture(scope="module")
def mg():
    return t2v_turbo.load("shapes", student="mg", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def plain():
    return t2v_turbo.load("shapes", student="no-mg", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def teacher():
    return t2v_turbo.load("shapes", student=None, device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def prior(teacher, tmp_path_factory):
    """A motion prior of a small clip, as a file."""
    path, generator = tmp_path_factory.mktemp("prior") / "prior.safetensors", torch.Generator().manual_seed(0)
    x0, context = (torch.randn(shape, generator=generator) for shape in [(1, 4, 2, 2, 3), (1, 77, 64)])
    origin = Origin("shapes", source="clip.mp4", method="noise")
    make_prior(teacher.unet, x0, context, [999, 749], NoiseSchedule(), origin).save(path)
    return path


# --- importing ----------


def python(code: str) -> list[str]:
    """Words that a program prints, with the package as the tests have it."""
    load = (
        "import importlib.util as u\n"
        f"spec = u.spec_from_file_location('t2v_turbo', {str(ROOT / '__init__.py')!r}, "
        f"submodule_search_locations=[{str(ROOT)!r}])\n"
        "t2v_turbo = u.module_from_spec(spec); sys.modules['t2v_turbo'] = t2v_turbo\n"
        "spec.loader.exec_module(t2v_turbo)\n"
    )
    done = subprocess.run([sys.executable, "-c", "import sys\n" + load + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_import_costs_nothing_until_a_name_is_asked_for():
    heavy = "print(*[name for name in ('torch', 'diffusers', 'numpy', 'av') if name in sys.modules])\n"
    assert python(heavy) == []
    assert python("t2v_turbo.load\n" + heavy) == ["torch", "numpy", "av"]
    assert "diffusers" in python("t2v_turbo.T2VTurboPipeline\n" + heavy)


def test_names():
    assert {"load", "Pipeline", "T2VTurboPipeline", "NODE_CLASS_MAPPINGS"} <= set(dir(t2v_turbo))
    assert t2v_turbo.Pipeline.__name__ == "Pipeline"
    assert not hasattr(t2v_turbo, "comfy_entrypoint")
    with pytest.raises(AttributeError, match="no attribute 'Pipelines'"):
        _ = t2v_turbo.Pipelines


# --- the clips of the command line ----------


def test_a_clip_is_that_of_the_command_line_to_the_byte(mg, tmp_path):
    options = ["--student", "mg", "--steps", "3", "--guidance", "6", "--motion-strength", "200", "--tau", "0.8"]
    assert main(["generate", PROMPT, "--seed", "5", *options, *SIZE, "--out", str(tmp_path / "theirs.mp4")]) == 0
    frames = mg(PROMPT, steps=3, seed=5, guidance=6, motion_strength=200, tau=0.8, **SMALL)
    assert (frames.shape, frames.dtype) == ((2, 16, 24, 3), np.uint8)
    assert mg.save(frames, tmp_path / "ours.mp4") == tmp_path / "ours.mp4"
    assert (tmp_path / "ours.mp4").read_bytes() == (tmp_path / "theirs.mp4").read_bytes()


def test_the_defaults_are_those_of_the_command_line(plain, tmp_path):
    (tmp_path / "frames").mkdir()
    command = ["generate", PROMPT, "--device", "cpu", "--dtype", "fp32", "--out", str(tmp_path / "frames" / "%05d.png")]
    assert main(command) == 0
    frames = plain(PROMPT, progress=False)
    pictures = [read_video(path)[0] for path in sorted((tmp_path / "frames").iterdir())]
    assert (np.stack(pictures) == frames).all()


def test_seeds_count_up_over_prompts(plain):
    largest = 2**64 - 1
    clips = plain(["a red circle", "a blue cross"], steps=1, seed=largest, **SMALL)
    assert isinstance(clips, list) and [json.loads(clip.tags["seed"]) for clip in clips] == [largest, 0]
    assert (clips[1] == plain("a blue cross", steps=1, seed=0, **SMALL)).all()
    assert not (clips[1] == plain("a blue cross", steps=1, seed=1, **SMALL)).all()


def test_a_teacher_follows_a_prior_or_its_file(teacher, prior, tmp_path):
    options = ["--teacher", "--steps", "4", "--motion", str(prior), "--motion-strength", "1e5", "--tau", "0.6"]
    options += ["--combination", "equation8", "--device", "cpu", "--dtype", "fp32"]
    assert main(["generate", PROMPT, *options, "--out", str(tmp_path / "theirs.mp4")]) == 0
    guided = {"steps": 4, "motion_strength": 1e5, "tau": 0.6, "combination": "equation8", "progress": False}
    frames = teacher(PROMPT, prior=prior, **guided)  # at the prior's size
    teacher.save(frames, tmp_path / "ours.mp4")
    assert (tmp_path / "ours.mp4").read_bytes() == (tmp_path / "theirs.mp4").read_bytes()
    read = MotionPrior.load(prior)
    assert (teacher(PROMPT, prior=read, **guided) == frames).all()
    assert not (teacher(PROMPT, steps=4, **SMALL) == frames).all()


@pytest.mark.parametrize("setting", [{"guidance": 2.0}, {"motion_strength": 0}, {"tau": 0}, {"fps_condition": 30}])
def test_every_setting_acts(mg, setting):
    usual = mg(PROMPT, steps=2, **SMALL)
    other = mg(PROMPT, steps=2, **SMALL, **setting)
    assert not (usual == other).all()
    assert json.loads(other.tags["settings"]) == json.loads(usual.tags["settings"]) | setting


def test_a_progress_bar_that_can_be_left_out(plain, capsys):
    plain(PROMPT, steps=1, **SMALL | {"progress": True})
    assert PROMPT in capsys.readouterr().err
    plain(PROMPT, steps=1, **SMALL)
    assert capsys.readouterr().err == ""


# --- files ----------


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "%05d.png"])
def test_a_file_tells_what_made_it(mg, tmp_path, name):
    frames = mg(PROMPT, steps=1, seed=3, **SMALL)
    mg.save(frames, tmp_path / name, fps=5)
    tags = read_metadata(next(tmp_path.iterdir()))
    assert (tags["prompt"], tags["seed"]) == (PROMPT, "3")
    told = json.loads(tags["settings"])
    assert (told["steps"], told["size"], told["motion_strength"], told["tau"]) == (1, "24x16", 500, 0.5)


def test_other_frames_are_written_without_tags(mg, tmp_path):
    frames = mg(PROMPT, steps=1, **SMALL)
    for i, others in enumerate((frames[:1], np.array(frames), 255 - frames)):
        mg.save(others, tmp_path / f"{i}.mp4")
        assert "prompt" not in read_metadata(tmp_path / f"{i}.mp4")


def test_what_cannot_be_saved(mg, tmp_path):
    frames = mg(PROMPT, steps=1, **SMALL)
    with pytest.raises(ValueError, match="a list was given; save one clip"):
        mg.save([frames], tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"frames must be uint8 \(F, H, W, 3\), not float64"):
        mg.save(frames / 255, tmp_path / "a.mp4")
    with pytest.raises(VideoError, match=r"cannot write '\.avi'"):
        mg.save(frames, tmp_path / "a.avi")
    with pytest.raises(VideoError, match=r"fps=0 is outside"):
        mg.save(frames, tmp_path / "a.mp4", fps=0)
    assert list(tmp_path.iterdir()) == []


# --- what a student was distilled with ----------


@pytest.fixture
def told(tmp_path, mg):
    """The embedded student, as if it had been distilled with another lambda and tau."""
    path = tmp_path / "told.safetensors"
    settings = {"motion": True, "motion_strength": 50.0, "tau": 0.25}
    save_unet(mg.unet, path, distill=json.dumps(settings))
    return path


def test_every_host_knows_what_a_student_was_distilled_with(told, mg, tmp_path, monkeypatch):
    pipe = t2v_turbo.load("shapes", student=told, device="cpu", dtype="fp32")
    assert (pipe.motion_strength, pipe.tau) == (50, 0.25)
    noise = pipe.noise(1, torch.Generator().manual_seed(0), 2, 16, 24)

    def latents(model, **motion):
        return model.sample([PROMPT], noise, 4, generator=torch.Generator().manual_seed(0), **motion)

    assert torch.equal(latents(pipe), latents(pipe, motion=50.0, tau=0.25))
    assert torch.equal(latents(mg), latents(mg, motion=500.0, tau=0.5))
    # Not to the bit: the weights of two files lie differently in memory.
    torch.testing.assert_close(latents(pipe), latents(mg, motion=50.0, tau=0.25))
    assert (latents(pipe) - latents(mg)).abs().max() > 1e-3
    frames = pipe(PROMPT, **SMALL)
    assert (frames == pipe(PROMPT, motion_strength=50, tau=0.25, **SMALL)).all()
    assert json.loads(frames.tags["settings"])["tau"] == 0.25
    diffusers = t2v_turbo.T2VTurboPipeline.from_pretrained("shapes", student=told).model
    monkeypatch.setenv("T2V_TURBO_MODELS", str(tmp_path))
    of_comfyui = load_model(told.name)
    for model in (diffusers, of_comfyui):
        assert (model.motion_strength, model.tau) == (50, 0.25)


@pytest.mark.parametrize("student", ["mg", "no-mg", None])
def test_others_take_the_familys(student):
    pipe = t2v_turbo.load(student=student, device="cpu", dtype="fp32")
    assert (pipe.motion_strength, pipe.tau) == (SHAPES.motion_strength, SHAPES.tau) == (500, 0.5)


def test_a_file_of_nonsense_is_refused(told, mg):
    save_unet(mg.unet, told, distill='{"motion": true, "tau": 7}')
    with pytest.raises(ValueError, match=r"told\.safetensors: its settings of distillation cannot be read .*tau.*7"):
        t2v_turbo.load(student=told)


# --- loading ----------


def test_device_and_format(plain):
    auto = t2v_turbo.load()
    assert auto.dtype == DTYPES[usual_dtype(auto.device)]
    assert t2v_turbo.load(device=torch.device("cpu"), dtype=torch.bfloat16).dtype == torch.bfloat16
    assert t2v_turbo.load(device="cpu", dtype="fp16").dtype == torch.float16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "sora"}, "unknown model 'sora'; known are shapes, videocrafter2"),
        ({"student": "fast"}, "unknown student 'fast'"),
        ({"device": "tpu"}, "device=tpu cannot be used here"),
        ({"device": "cpu", "dtype": "half"}, "precision 'half' is unknown; use auto, fp32, bf16, fp16"),
        ({"device": "cpu", "dtype": torch.float64}, r"dtype=torch\.float64 is none of torch\.float32"),
        ({"folder": "/nowhere"}, "no such checkpoint file"),
        ({"loras": "none.safetensors:0.5"}, r"none\.safetensors: no such checkpoint file"),
    ],
)
def test_what_cannot_be_loaded(settings, message):
    with pytest.raises(ValueError, match=message):
        t2v_turbo.load(**settings)


def test_loras_in_every_spelling():
    half = [(Path("a.safetensors"), 0.5)]
    assert as_loras("a.safetensors:0.5") == as_loras(["a.safetensors:0.5"]) == as_loras([(half[0][0], 0.5)]) == half
    assert as_loras(Path("a.safetensors")) == [(Path("a.safetensors"), 1.0)]
    assert as_loras(()) == []


# --- mistakes ----------

OF_STUDENT = {
    "no prompt": ({"prompt": []}, "no prompt: give a text"),
    "no text": ({"prompt": 5}, "prompt 5 is no text"),
    "half a surrogate pair": ({"prompt": "a \udce9"}, r"prompt 'a \\udce9' is no text"),
    "steps": ({"steps": 0}, r"steps=0 is outside 1\.\.200"),
    "half a step": ({"steps": 2.5}, r"steps=2\.5 is outside 1\.\.200"),
    "many steps": ({"steps": 201}, r"steps=201 is outside 1\.\.200"),
    "guidance": ({"guidance": 0}, r"guidance=0 is outside 1\.\.100: 1 is no guidance"),
    "no number": ({"guidance": float("nan")}, r"guidance=nan is outside 1\.\.100"),
    "lambda": ({"motion_strength": -1}, "motion_strength=-1 is outside a number of 0 or more"),
    "infinite lambda": ({"motion_strength": float("inf")}, "motion_strength=inf is outside"),
    "tau": ({"tau": 1.5}, r"tau=1\.5 is outside 0\.\.1"),
    "fps": ({"fps_condition": 0}, "fps_condition=0 is outside a number of 1 or more"),
    "seed": ({"seed": -1}, "seed=-1 is no whole number from 0 to 18446744073709551615"),
    "seed of words": ({"seed": "7"}, "seed=7 is no whole number"),
    "size": ({"height": 20}, "height=20 is no positive multiple of 8: use 16"),
    "frames": ({"frames": 0}, "frames=0: at least 1 frame"),
    "combination without a prior": ({"combination": "released"}, "is how a motion prior is followed; there is none"),
    "unknown combination": ({"combination": "sum"}, "unknown combination 'sum'"),
    "missing prior": ({"prior": "none.safetensors"}, r"none\.safetensors: no such motion prior"),
}


@pytest.mark.parametrize(("settings", "message"), OF_STUDENT.values(), ids=OF_STUDENT)
def test_mistakes(mg, settings, message):
    with pytest.raises(ValueError, match=message):
        mg(**{"prompt": PROMPT, "steps": 1} | SMALL | settings)


def test_motion_guidance_that_cannot_be(plain, teacher, mg, prior):
    for model, settings, message in (
        (plain, {"motion_strength": 500}, "no input for it: use one that was distilled"),
        (plain, {"tau": 0.3}, r"tau=0\.3 is a part of motion guidance, which needs a student that was distilled"),
        (teacher, {"tau": 0.3}, r"tau=0\.3 is a part of motion guidance, which needs a motion prior"),
        (teacher, {"motion_strength": 500}, "to a teacher without a motion prior"),
        (mg, {"prior": prior}, "cannot follow one: sample with the teacher"),
        (teacher, {"prior": prior, "frames": 3}, "make the prior anew from as many frames"),
        (teacher, {"steps": 600}, "steps=600 would begin at timestep 599 of 999.*use 500"),
    ):
        with pytest.raises(ValueError, match=message):
            model(PROMPT, **SMALL | settings)


def test_a_clip_of_no_numbers_is_refused(random_shapes, tmp_path):
    unet = randomize(UNet3D(SHAPES.unet.as_student()), 1)
    unet.conv_out.bias.data.fill_(float("nan"))
    save_unet(unet, tmp_path / "nan.safetensors")
    pipe = t2v_turbo.load(student=tmp_path / "nan.safetensors", folder=random_shapes, device="cpu", dtype="bf16")
    with pytest.raises(ValueError, match=r"seed=4: the clip holds NaN .*try dtype='fp32', or a smaller guidance"):
        pipe(PROMPT, steps=1, seed=4, **SMALL)


# --- memory of the autoencoder ----------


@torch.no_grad()
def test_slicing_and_tiling_of_the_autoencoder(plain, monkeypatch):
    latents, sizes = plain.noise(1, torch.Generator().manual_seed(0), 3, 64, 64), []
    decoder, vae = plain.vae.model.decode, plain.vae
    whole = vae.decode(latents)
    monkeypatch.setattr(vae.model, "decode", lambda z: sizes.append(tuple(z.shape[0::2])) or decoder(z))
    vae.enable_slicing()
    torch.testing.assert_close(vae.decode(latents), whole)
    assert sizes == [(1, 8)] * 3
    vae.disable_slicing()
    sizes.clear()
    vae.enable_tiling(tile=4, overlap=2)
    assert vae.decode(latents).shape == whole.shape
    assert set(sizes) == {(3, 4)}
    vae.disable_tiling()
    assert torch.equal(vae.decode(latents), whole)
    with pytest.raises(ValueError, match="tile=0, overlap=2"):
        vae.enable_tiling(tile=0, overlap=2)


# --- the documentation ----------


def test_the_documentations_programs_run(tmp_path, monkeypatch):
    """Of the README too; diffusers' own writer of videos, which needs more than we do, is left out."""
    pages = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/PYTHON.md")]
    programs = [program for page in pages for program in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]
    assert len(programs) == 4
    monkeypatch.chdir(tmp_path)
    for program in programs:
        names = {}
        exec(compile(program.partition("export_to_video(")[0], "a page", "exec"), names)
        frames = names["frames"] if "frames" in names else names["result"].frames[0]
        assert len(frames) == 8
    assert read_video("a.mp4").shape == (8, 64, 64, 3)
