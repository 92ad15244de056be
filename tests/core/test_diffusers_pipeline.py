"""The diffusers pipeline as its users drive it: the core's latents, its files, callbacks, memory, and every mistake."""

import json
import shutil
from collections import defaultdict

import numpy as np
import pytest
import torch
from conftest import randomize
from diffusers import DiffusionPipeline
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.utils import export_to_gif, export_to_video
from published import SMALL as PUBLISHED
from published import UNET, published_keys, published_parts, published_unet, same

import t2v_turbo
from t2v_turbo.core.checkpoints.locations import PACKAGED_WEIGHTS, family_folder
from t2v_turbo.core.checkpoints.networks import CheckpointError, save_unet
from t2v_turbo.core.diffusion.schedule import NoiseSchedule
from t2v_turbo.core.families import FAMILIES, SHAPES
from t2v_turbo.core.motion.prior import Origin, make_prior
from t2v_turbo.core.networks.unet import UNet3D
from t2v_turbo.core.pipeline import load

PROMPT = "a red circle moves right"
SIZE = {"num_frames": 2, "height": 16, "width": 24}
LATENTS = {"output_type": "latent", "num_inference_steps": 2}


def pipeline(student):
    pipe = t2v_turbo.T2VTurboPipeline.from_pretrained("shapes", student=student)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def networks():
    return {student: pipeline(student) for student in ("mg", "no-mg", None)}


@pytest.fixture
def pipes(networks):
    """The three UNets in fresh pipelines: what a test sets on one is gone for the next."""
    fresh = {}
    for student, pipe in networks.items():
        fresh[student] = t2v_turbo.T2VTurboPipeline(**pipe.components, family="shapes")
        fresh[student].set_progress_bar_config(disable=True)
    yield fresh
    for pipe in networks.values():
        pipe.vae.disable_slicing(), pipe.vae.disable_tiling()


@pytest.fixture
def mg(pipes):
    return pipes["mg"]


@pytest.fixture
def teacher(pipes):
    return pipes[None]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def difference(one, other):
    return (one - other).abs().max()


# --- the same clips as the core ----------


@pytest.mark.parametrize("student", ["mg", "no-mg", None])
def test_latents_are_those_of_the_core(pipes, student):
    pipe, core = pipes[student], load("shapes", student)
    prompts, settings = [PROMPT, "a blue cross"], {"fps_condition": 12}
    if student == "mg":
        settings |= {"motion": 100.0, "tau": 0.25}
    generator = seeded()
    noise = core.noise(2, generator, 2, 16, 24)
    expected = core.sample(prompts, noise, 3, 6.0, generator, **settings)
    ours = {"motion_strength": settings.get("motion"), "tau": settings.get("tau"), "fps": 12, "guidance_scale": 6}
    found = pipe(prompts, 3, generator=seeded(), output_type="latent", **ours, **SIZE).frames
    assert torch.equal(found, expected)
    # Given noise: the generator then draws what is between the steps.
    generator = seeded(5)
    expected = core.sample(prompts, noise, 3, 6.0, generator, **settings)
    found = pipe(prompts, 3, latents=noise, generator=seeded(5), output_type="latent", **ours).frames
    assert torch.equal(found, expected)


def test_the_clip_of_a_seed_is_that_of_the_other_face(mg):
    frames = t2v_turbo.load("shapes", "mg", device="cpu", dtype="fp32")(PROMPT, seed=7, progress=False)
    found = mg(PROMPT, generator=seeded(7)).frames
    assert isinstance(mg, DiffusionPipeline) and len(found) == 1 and found[0][0].size == (64, 64)
    assert (np.stack([np.asarray(picture) for picture in found[0]]) == frames).all()


def test_a_teacher_follows_a_prior(teacher, tmp_path):
    x0, context = (torch.randn(shape, generator=seeded()) for shape in [(1, 4, 2, 2, 3), (1, 77, 64)])
    origin = Origin("shapes", method="noise")
    prior = make_prior(teacher.unet, x0, context, [999, 749], NoiseSchedule(), origin)
    prior.save(tmp_path / "prior.safetensors")
    core, noise = load("shapes", None), torch.randn(1, 4, 2, 2, 3, generator=seeded(1))
    expected = core.sample([PROMPT], noise, 4, 7.5, motion=1e5, tau=0.6, prior=prior, combination="equation8")
    guided = {"motion_strength": 1e5, "tau": 0.6, "combination": "equation8", "prior": tmp_path / "prior.safetensors"}
    found = teacher(PROMPT, 4, latents=noise, output_type="latent", **guided).frames
    assert torch.equal(found, expected)
    assert teacher(PROMPT, 1, prior=prior, output_type="latent").frames.shape == noise.shape  # at the prior's size
    plain = teacher(PROMPT, 4, latents=noise, output_type="latent").frames
    assert difference(found, plain) > 1e-3


# --- what a call takes and gives ----------


def test_outputs(mg):
    def frames(kind, **more):
        return mg(PROMPT, 1, generator=seeded(), output_type=kind, **SIZE, **more)

    pt, array, pil = frames("pt").frames, frames("np").frames, frames("pil").frames
    assert pt.shape == (1, 2, 3, 16, 24) and array.shape == (1, 2, 16, 24, 3) and array.dtype == np.float32
    assert (pt.permute(0, 1, 3, 4, 2).numpy() == array).all() and 0 <= array.min() < array.max() <= 1
    assert (np.stack([np.asarray(picture) for picture in pil[0]]) == (array[0] * 255).round()).all()
    assert frames("latent").frames.shape == (1, 4, 2, 2, 3)
    assert isinstance(frames("pt", return_dict=False), tuple)
    assert torch.equal(frames("pt", return_dict=False)[0], pt)


def test_several_prompts_and_videos_of_each(mg):
    """Clip i is made of prompt i // 2, from its own generator."""
    seeds = [3, 4, 5, 6]
    found = mg(
        [PROMPT, "a blue cross"], num_videos_per_prompt=2, generator=[seeded(seed) for seed in seeds], **LATENTS, **SIZE
    ).frames
    for clip, prompt, seed in zip(found, [PROMPT, PROMPT, "a blue cross", "a blue cross"], seeds):
        torch.testing.assert_close(clip[None], mg(prompt, generator=seeded(seed), **LATENTS, **SIZE).frames)
    assert difference(found[0], found[1]) > 0.1


def test_without_a_generator_noise_is_torchs(mg):
    torch.manual_seed(0)
    first, second = (mg(PROMPT, **LATENTS, **SIZE).frames for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(mg(PROMPT, **LATENTS, **SIZE).frames, first) and not torch.equal(first, second)


def test_defaults_are_the_models_own(mg, teacher):
    told = mg(PROMPT, generator=seeded(), output_type="latent").frames
    assert (mg.num_timesteps, mg.guidance_scale, told.shape) == (4, 7.5, (1, 4, 8, 8, 8))
    steps = []
    teacher(PROMPT, callback_on_step_end=lambda pipe, i, t, _: steps.append(t) or end(pipe, i == 1), **SIZE)
    assert (teacher.num_timesteps, steps) == (50, [999, 979])


def end(pipe, now):
    pipe._interrupt = now


def test_a_negative_prompt_is_for_teachers(teacher, mg, pipes):
    core, avoided = load("shapes", None), ["a green square", "a yellow ring"]
    noise = torch.randn(2, 4, 2, 2, 3, generator=seeded())
    given = {"latents": noise, **LATENTS, "guidance_scale": 4}
    plain = teacher([PROMPT, "a blue cross"], **given).frames
    both = teacher([PROMPT, "a blue cross"], negative_prompt=avoided, **given).frames
    settings = core.filled(t2v_turbo.core.sampling.SamplingSettings(2, 4))
    with torch.no_grad():
        contexts = core.encode([PROMPT, "a blue cross"]), core.encode(avoided)
        *_, last = core.iterate(contexts[0], noise, settings, negative=contexts[1])
    assert torch.equal(both, last["latents"]) and difference(both, plain) > 1e-3
    one = teacher([PROMPT, "a blue cross"], negative_prompt=avoided[0], **given).frames
    torch.testing.assert_close(one[0], both[0])
    assert difference(one[1], both[1]) > 1e-3
    for pipe, settings, message in (
        (mg, {}, "was given to a student, whose guidance is built in: leave it out, or load the teacher"),
        (teacher, {"guidance_scale": 1}, "has no effect with guidance_scale=1"),
        (teacher, {"negative_prompt": ["a"] * 3}, "holds 3 texts for 2 prompts"),
    ):
        with pytest.raises(ValueError, match=f"negative_prompt {message}"):
            pipe([PROMPT, "a blue cross"], **given | {"negative_prompt": "a ring"} | settings)


MISTAKES = {
    "prompt": ({"prompt": None}, "prompt None is no text"),
    "steps": ({"num_inference_steps": 0}, r"num_inference_steps=0 is outside 1\.\.200"),
    "guidance": ({"guidance_scale": 0.5}, r"guidance_scale=0\.5 is outside 1\.\.100"),
    "fps": ({"fps": -8}, "fps=-8 is outside"),
    "lambda": ({"motion_strength": -1.0}, r"motion_strength=-1\.0 is outside"),
    "tau": ({"tau": 2}, r"tau=2 is outside 0\.\.1"),
    "size": ({"width": 30}, "width=30 is no positive multiple of 8"),
    "videos": ({"num_videos_per_prompt": 0}, "num_videos_per_prompt=0 must be a whole number"),
    "generators": ({"generator": [None, None]}, "generator: 2 were given for 1 clips"),
    "output": ({"output_type": "mp4"}, "output_type='mp4' is unknown; use pil, np, pt, latent"),
    "latents": ({"latents": torch.zeros(1, 4, 8, 8)}, r"latents: \(1, 4, 8, 8\) were given, \(1, 4, F, h, w\)"),
    "batch of latents": ({"latents": torch.zeros(2, 4, 2, 2, 3)}, r"\(2, 4, 2, 2, 3\) were given, \(1, 4"),
    "size of latents": (
        {"latents": torch.zeros(1, 4, 2, 2, 3), "width": 32},
        "width=32 was given, but the latents are of 24",
    ),
    "callback's tensors": (
        {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]},
        "callback_on_step_end_tensor_inputs='prompt_embeds' is unknown; use latents, denoised",
    ),
    "a callback of diffusers": (
        {"callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=0.5)},
        "callback_on_step_end_tensor_inputs='prompt_embeds' is unknown",
    ),
    "combination": ({"combination": "released"}, "is how a motion prior is followed; there is none"),
}


@pytest.mark.parametrize(("settings", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(mg, settings, message):
    with pytest.raises(ValueError, match=message):
        mg(**{"prompt": PROMPT, "num_inference_steps": 1, **SIZE} | settings)


def test_a_clip_of_no_numbers_is_refused(mg):
    mg.vae = randomize(type(mg.vae)(SHAPES.vae), 0)
    mg.vae.model.decoder.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="a clip holds NaN or infinite numbers; try a smaller guidance_scale"):
        mg(PROMPT, 1, **SIZE)


# --- in the middle of a sampling ----------


@pytest.mark.parametrize(("student", "timesteps"), [("mg", [999, 669, 339]), (None, [998, 665, 332])])
def test_a_callback_sees_every_step_and_may_change_the_latents(pipes, student, timesteps):
    pipe, seen = pipes[student], []

    def watch(passed, i, timestep, tensors):
        assert passed is pipe and set(tensors) == {"latents", "denoised"}
        seen.append((i, timestep, tensors))
        return tensors

    both = {"callback_on_step_end": watch, "callback_on_step_end_tensor_inputs": ["latents", "denoised"]}
    call = {"num_inference_steps": 3, "output_type": "latent", **SIZE}
    found = pipe(PROMPT, generator=seeded(), **both, **call).frames
    assert [(i, t) for i, t, _ in seen] == list(enumerate(timesteps))
    assert torch.equal(found, pipe(PROMPT, generator=seeded(), **call).frames)
    assert torch.equal(seen[-1][2]["latents"], found) and torch.equal(seen[-1][2]["denoised"], found)
    assert difference(seen[0][2]["latents"], seen[0][2]["denoised"]) > 0.1  # noised again for the next step

    for changed in range(3):

        def change(_, i, __, tensors, at=changed):
            return {"latents": tensors["latents"] * (0.5 if i == at else 1)}

        other = pipe(PROMPT, generator=seeded(), callback_on_step_end=change, **call).frames
        assert difference(other, found) > 1e-3


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"denoised": torch.zeros(1)}, "returned another 'denoised': only latents can be replaced"),
        ({"prompt_embeds": torch.zeros(1)}, "returned another 'prompt_embeds'"),
        ({"latents": torch.zeros(1, 4, 2, 2, 2)}, r"the shape \(1, 4, 2, 2, 2\); they are \(1, 4, 2, 2, 3\)"),
    ],
)
def test_what_a_callback_may_not_change(mg, returned, message):
    with pytest.raises(ValueError, match=message):
        mg(PROMPT, 2, callback_on_step_end=lambda *_: returned, **SIZE)


@pytest.mark.parametrize("student", ["mg", None])
def test_an_interrupted_sampling_gives_what_it_has(pipes, student):
    pipe, seen = pipes[student], []

    def stop(pipe, i, _, tensors):
        seen.append(tensors["denoised"])
        end(pipe, i == 1)

    call = {"output_type": "latent", "num_inference_steps": 4, **SIZE}
    stopped = pipe(
        PROMPT, generator=seeded(), callback_on_step_end=stop, callback_on_step_end_tensor_inputs=["denoised"], **call
    ).frames
    assert len(seen) == 2 and pipe.interrupt and torch.equal(stopped, seen[1])
    whole = pipe(PROMPT, generator=seeded(), **call).frames  # the next call begins anew
    assert not pipe.interrupt and difference(whole, stopped) > 1e-3


def test_the_progress_bar(mg, capsys):
    mg(PROMPT, 2, **SIZE)
    assert capsys.readouterr().err == ""
    mg.set_progress_bar_config(desc="drawing circles")
    mg(PROMPT, 2, **SIZE)
    told = capsys.readouterr().err
    assert "drawing circles" in told and "2/2" in told


# --- devices and memory ----------


def test_precision_and_device_move_all_three_networks(pipes, mg):
    pipe = pipeline("mg")
    assert pipe.to("cpu", torch.bfloat16) is pipe
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype, pipe.dtype} == {torch.bfloat16}
    near = pipe(PROMPT, 2, generator=seeded(), output_type="np").frames
    assert np.abs(near - mg(PROMPT, 2, generator=seeded(), output_type="np").frames).mean() < 0.02
    loaded = t2v_turbo.T2VTurboPipeline.from_pretrained("shapes", torch_dtype=torch.float16)
    assert loaded.unet.dtype == loaded.dtype == torch.float16


def test_offloading_brings_one_network_after_the_other(monkeypatch):
    """Onto the CPU, as there may be no other device: each network is called for, in the order it is said to be."""
    from accelerate.hooks import CpuOffload

    pipe, order, bring = pipeline("mg"), [], CpuOffload.pre_forward
    names = {id(module): name for name, module in pipe.components.items()}

    def watch(hook, module, *args, **kwargs):
        order.append(names[id(module)])
        return bring(hook, module, *args, **kwargs)

    before = pipe(PROMPT, 2, generator=seeded(), output_type="pt", **SIZE).frames
    monkeypatch.setattr(CpuOffload, "pre_forward", watch)
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        order.clear()
        hooks = pipe._all_hooks
        torch.testing.assert_close(pipe(PROMPT, 2, generator=seeded(), output_type="pt", **SIZE).frames, before)
        assert "->".join(dict.fromkeys(order)) == pipe.model_cpu_offload_seq == "text_encoder->unet->vae"
        # All were brought back after the call, and hooked anew for the next.
        assert len(pipe._all_hooks) == 3 and pipe._all_hooks[0] is not hooks[0]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("enable_sequential_cpu_offload", (), "layer by layer; use enable_model_cpu_offload"),
        ("enable_group_offload", ("cuda",), "group by group; use enable_model_cpu_offload"),
        ("enable_attention_slicing", (), "nothing to slice: attention is torch's own"),
        ("enable_xformers_memory_efficient_attention", (), "nothing to replace: attention is torch's own"),
    ],
)
def test_savings_without_an_effect_are_refused(mg, name, arguments, message):
    with pytest.raises(ValueError, match=f"{name} .*{message}"):
        getattr(mg, name)(*arguments)
    mg.disable_attention_slicing()


def test_slicing_and_tiling_by_either_name(mg, monkeypatch):
    sizes, decode = [], mg.vae.model.decode
    monkeypatch.setattr(mg.vae.model, "decode", lambda z: sizes.append(tuple(z.shape[0::2])) or decode(z))

    def decoded():
        sizes.clear()
        mg(PROMPT, 1, num_frames=2, height=16, width=16)
        return list(sizes)

    assert decoded() == [(2, 2)]
    for slicing, plain in (
        (mg.enable_vae_slicing, mg.disable_vae_slicing),
        (mg.vae.enable_slicing, mg.vae.disable_slicing),
    ):
        slicing()
        assert decoded() == [(1, 2), (1, 2)]
        plain()
        assert decoded() == [(2, 2)]
    mg.enable_vae_tiling()
    assert (mg.vae.tile, mg.vae.overlap) == (64, 16)
    mg.vae.enable_tiling(tile=1, overlap=0)
    assert decoded() == [(2, 1)] * 4
    mg.disable_vae_tiling()
    assert decoded() == [(2, 2)]


# --- files ----------


def test_a_saved_pipeline_comes_back(tmp_path):
    told = tmp_path / "told.safetensors"
    save_unet(randomize(UNet3D(SHAPES.unet.as_student(motion=True)), 5), told, distill=json.dumps(
        {"motion": True, "motion_strength": 50.0, "tau": 0.25}))  # fmt: skip
    pipe = t2v_turbo.T2VTurboPipeline.from_pretrained("shapes", student=told, torch_dtype=torch.bfloat16)
    pipe.save_pretrained(tmp_path / "saved")
    pipe.save_pretrained(tmp_path / "saved", variant=None, push_to_hub=False)  # over itself, as diffusers' hub does
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {
        "model_index.json", "unet.safetensors", "vae.safetensors", "text_encoder.safetensors", "merges.txt.gz"
    }  # fmt: skip
    again = t2v_turbo.T2VTurboPipeline.from_pretrained(tmp_path / "saved", torch_dtype=torch.bfloat16)
    assert (again.model.motion_strength, again.model.tau, again.model.family) == (50, 0.25, SHAPES)
    for name in ("unet", "vae", "text_encoder"):
        assert same(getattr(again, name).state_dict(), getattr(pipe, name).state_dict())
    assert torch.equal(again.text_encoder.tokenize([PROMPT]), pipe.text_encoder.tokenize([PROMPT]))
    assert again.unet.dtype == torch.bfloat16
    assert load("shapes", tmp_path / "saved" / "unet.safetensors").tau == 0.25


def test_a_saved_teacher_comes_back(teacher, tmp_path):
    teacher.save_pretrained(tmp_path)
    again = t2v_turbo.T2VTurboPipeline.from_pretrained(tmp_path)
    assert not again.model.is_student and same(again.unet.state_dict(), teacher.unet.state_dict())


def test_what_is_not_saved_and_not_read(mg, tmp_path, monkeypatch):
    for settings, message in (
        ({"safe_serialization": False}, "safe_serialization=False would write a pickle"),
        ({"variant": "fp16"}, "variant: unknown to T2VTurboPipeline.save_pretrained"),
        ({"push_to_hub": True, "repo_id": "a/b"}, "push_to_hub, repo_id: unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            mg.save_pretrained(tmp_path / "no", **settings)
    assert not (tmp_path / "no").exists()
    mg.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="is a saved pipeline with one UNet in it; leave student and loras out"):
        t2v_turbo.T2VTurboPipeline.from_pretrained(tmp_path / "saved", student="mg")
    # A saving that was broken off is told from a whole one.
    monkeypatch.setattr("t2v_turbo.core.diffusers_pipeline.save_vae", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mg.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="saved: holds no model"):
        t2v_turbo.T2VTurboPipeline.from_pretrained(tmp_path / "saved")


def test_a_pipeline_of_another_class_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(CheckpointError, match="holds a StableDiffusionPipeline, not a T2VTurboPipeline"):
        t2v_turbo.T2VTurboPipeline.from_pretrained(tmp_path)


def test_folders_of_the_embedded_family(tmp_path, mg):
    for folder, student in ((PACKAGED_WEIGHTS / "shapes", "mg"), (PACKAGED_WEIGHTS, "mg")):
        pipe = t2v_turbo.T2VTurboPipeline.from_pretrained(folder, student=student)
        assert same(pipe.unet.state_dict(), mg.unet.state_dict())
    assert not t2v_turbo.T2VTurboPipeline.from_pretrained(family_folder("shapes"), student=None).unet.takes_guidance


def test_folders_of_published_files(tmp_path, monkeypatch):
    """As they are published, of a small size; the students by their names."""
    monkeypatch.setitem(FAMILIES, "videocrafter2", PUBLISHED)
    folder = tmp_path / "videocrafter2"
    folder.mkdir()
    torch.save({"state_dict": published_keys(published_parts()[1])}, folder / "model.ckpt")
    torch.save(published_unet(UNET.as_student(motion=True))[1], folder / "unet_mg.pt")
    torch.save(published_unet(UNET.as_student())[1], folder / "unet_no_mg.pt")
    for place in (folder, tmp_path):
        takes = defaultdict(list)
        for student in ("mg", "no-mg", "default", None):
            pipe = t2v_turbo.T2VTurboPipeline.from_pretrained(place, student=student)
            takes[pipe.unet.takes_guidance, pipe.unet.takes_motion].append(student)
        assert takes == {(True, True): ["mg", "default"], (True, False): ["no-mg"], (False, False): [None]}
    monkeypatch.setenv("T2V_TURBO_MODELS", str(tmp_path))
    pipe = t2v_turbo.T2VTurboPipeline.from_pretrained("videocrafter2", student="mg")
    pipe.set_progress_bar_config(disable=True)
    assert pipe(PROMPT, 1, output_type="np").frames.shape == (1, 2, 16, 16, 3)
    shutil.copytree(PACKAGED_WEIGHTS / "shapes", tmp_path / "shapes")
    with pytest.raises(ValueError, match="holds shapes and videocrafter2; name the folder of one"):
        t2v_turbo.T2VTurboPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ali-vilab/text-to-video-ms-1.7b",), "is neither a model's name nor a folder; use shapes or"),
        (("shapes", "fast"), "unknown student 'fast'"),
        (("shapes", "mg", torch.float64), r"dtype=torch\.float64 is none of"),
    ],
)
def test_what_cannot_be_loaded(arguments, message):
    with pytest.raises(ValueError, match=message):
        t2v_turbo.T2VTurboPipeline.from_pretrained(*arguments)


def test_settings_that_mean_nothing_here_are_refused():
    with pytest.raises(ValueError, match=r"device_map, variant: unknown to T2VTurboPipeline\.from_pretrained"):
        t2v_turbo.T2VTurboPipeline.from_pretrained("shapes", device_map="balanced", variant="fp16")
    pipe = t2v_turbo.T2VTurboPipeline.from_pretrained("shapes", variant=None, dtype=torch.bfloat16)
    assert pipe.dtype == torch.bfloat16


def test_a_pipeline_of_the_same_networks(mg):
    again = t2v_turbo.T2VTurboPipeline.from_pipe(mg, torch_dtype=torch.float32)
    again.set_progress_bar_config(disable=True)
    assert again.unet is mg.unet and again.model.family == SHAPES
    first, second = (pipe(PROMPT, generator=seeded(), **LATENTS, **SIZE).frames for pipe in (mg, again))
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", ["pil", "np"])
def test_clips_are_exported_by_diffusers(mg, tmp_path, kind):
    frames = mg(PROMPT, 1, num_frames=3, output_type=kind).frames[0]
    if kind == "pil":
        export_to_gif(frames, str(tmp_path / "a.gif"))
        assert t2v_turbo.core.video.read_video(tmp_path / "a.gif").shape == (3, 64, 64, 3)
    try:
        export_to_video(frames, str(tmp_path / "a.mp4"), fps=8)
    except (ImportError, AttributeError):  # needs OpenCV, or FFmpeg for imageio, by diffusers' version
        pytest.skip("diffusers' writer of videos is not installed")
    assert t2v_turbo.core.video.read_video(tmp_path / "a.mp4").shape == (3, 64, 64, 3)
