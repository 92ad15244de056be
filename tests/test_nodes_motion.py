"""The motion nodes as plain classes, under inference mode as ComfyUI runs them, on random weights of embedded sizes."""

import json

import pytest
import test_nodes
import torch
from conftest import ROOT, randomize
from safetensors.torch import save_file
from test_nodes import PROMPT, STUDENT, TEACHER, comfy_call, empty, encode, load, run

from t2v_turbo.core import pipeline
from t2v_turbo.core.checkpoints.networks import CheckpointError, load_unet
from t2v_turbo.core.diffusion.consistency import student_model
from t2v_turbo.core.diffusion.ddim import DDIMSolver, sample_ddim
from t2v_turbo.core.diffusion.guidance import cfg_model, guided_timesteps
from t2v_turbo.core.diffusion.schedule import NoiseSchedule, draw_noise, solver_grid
from t2v_turbo.core.families import SHAPES
from t2v_turbo.core.motion.energies import ENERGIES
from t2v_turbo.core.motion.guidance import motion_model
from t2v_turbo.core.motion.preview import preview
from t2v_turbo.core.motion.prior import MotionPrior, Origin, make_prior
from t2v_turbo.core.motion.probe import by_sample, probe_attention
from t2v_turbo.core.networks.layers import fold_frames, unfold_frames
from t2v_turbo.core.networks.unet import UNet3D
from t2v_turbo.core.video import read_video, write_video
from t2v_turbo.nodes.graph import cli as headless
from t2v_turbo.nodes.graph.execution import run_graph
from t2v_turbo.nodes.graph.native import load_video, video_components
from t2v_turbo.nodes.host.plain import Folders, using_folders
from t2v_turbo.nodes.runtime.motion_guidance import next_sigma, timestep_of
from t2v_turbo.nodes.runtime.motion_reading import fit_frames
from t2v_turbo.nodes.runtime.wrappers import SETTINGS, native_parts

embedded = test_nodes.embedded

STEPS = 5
# Random weights hardly attend, so that their energy has a small gradient.
STRENGTH = 3000.0
REFERENCE = torch.rand(8, 64, 64, 3, generator=torch.Generator().manual_seed(9))
CAPTION = "a blue square moves up"


@pytest.fixture
def teacher():
    """MODEL, CLIP and VAE."""
    return load(TEACHER)


def read(parts, **changes):
    """Motion and preview; of few evaluations unless told otherwise."""
    model, clip, vae = parts
    inputs = {"model": model, "vae": vae, "positive": encode(clip, CAPTION), "images": REFERENCE, "latent": empty()}
    inputs |= {"method": "inversion", "inversion_steps": "25", "steps": STEPS, "tau": 0.5, "timestep": -1, "seed": 0}
    return run("T2VTurboMotionPrior", **inputs | changes)


@pytest.fixture(scope="module")
def motion(random_shapes):
    """A motion at the sampler's guided steps, made under inference mode."""
    unet = load_unet(random_shapes / "teacher.safetensors", SHAPES.unet)
    generator, origin = torch.Generator().manual_seed(1), Origin("shapes", method="noise")
    with torch.inference_mode():
        x0, context = torch.randn(1, 4, 8, 8, 8, generator=generator), torch.randn(1, 77, 64, generator=generator)
        return make_prior(unet, x0, context, guided_timesteps(STEPS), NoiseSchedule(), origin, generator=generator)


def sample(parts, **changes):
    """Samples (F, 4, h, w) of the teacher sampler."""
    model, clip, _ = parts
    inputs = {"model": model, "positive": encode(clip), "negative": encode(clip, ""), "latent": empty(), "seed": 3}
    inputs |= {"steps": STEPS, "cfg": 7.5, "fps": 0}
    return run("T2VTurboTeacherSampler", **inputs | changes)[0]["samples"]


def unet_of(parts):
    return parts[0].get_model_object("diffusion_model").unet


def attention_energy(parts, x, t, prior):
    """Energy of latents (1, 4, F, h, w) at timestep ``t``."""
    unet = unet_of(parts)
    with torch.no_grad(), probe_attention(unet) as found:
        unet(x, torch.tensor([t]), encode(parts[1])[0][0], fps=SHAPES.fps_condition)
    return float(ENERGIES["mean"]({name: by_sample(p, 1) for name, p in found.items()}, prior.at(t)))


# --- reading ----------


def test_the_node_reads_what_the_core_reads(teacher):
    _, clip, vae = teacher
    prior, picture = read(teacher)
    x0 = unfold_frames(vae.encode(REFERENCE), 8) * SHAPES.vae.scale_factor
    origin = Origin("shapes", grid=25, fps=SHAPES.fps_condition)
    timesteps = guided_timesteps(STEPS, 0.5)
    expected = make_prior(unet_of(teacher), x0, encode(clip, CAPTION)[0][0], timesteps, NoiseSchedule(), origin)
    assert prior.timesteps == sorted(timesteps) and prior.origin == origin and prior.size == (8, 8, 8)
    for t in timesteps:
        for layer, top in expected.references[t].items():
            assert torch.equal(prior.references[t][layer].index, top.index)
            torch.testing.assert_close(prior.references[t][layer].value, top.value)
    assert torch.equal(picture, preview(prior)[None])


def test_one_reading_without_inversion(teacher):
    prior, _ = read(teacher, method="noise", timestep=400)
    assert prior.timesteps == [400] and prior.evaluations == 1
    again, other = (read(teacher, method="noise", timestep=400, seed=seed)[0] for seed in (0, 1))
    layer = prior.layers[0]
    same, differs = (torch.equal(prior.at(400)[layer].value, p.at(400)[layer].value) for p in (again, other))
    assert same and not differs


def test_frames_are_spread_evenly_and_cropped_to_the_middle():
    images = torch.linspace(0, 1, 16)[:, None, None, None].expand(16, 32, 96, 3).clone()
    images[:, :, :32], images[:, :, 64:] = 1, 1
    fitted = fit_frames(images, 8, 64, 64)
    assert fitted.shape == (8, 64, 64, 3)
    torch.testing.assert_close(fitted[:, 32, 32, 0], images[::2, 16, 48, 0])
    assert torch.equal(fit_frames(REFERENCE, 8, 64, 64), REFERENCE)
    assert fit_frames(REFERENCE[..., :1].expand(-1, -1, -1, 4), 3, 40, 72).shape == (3, 40, 72, 3)


# --- the teacher's sampler ----------


def test_the_sampler_is_the_cores_ddim_with_and_without_motion(teacher, motion):
    clip = teacher[1]
    context, negative = encode(clip)[0][0], encode(clip, "")[0][0]
    noise = draw_noise((1, 4, 8, 8, 8), torch.Generator().manual_seed(3))
    schedule, unet = NoiseSchedule(), unet_of(teacher)
    plain = sample_ddim(cfg_model(unet, context, negative, 7.5, 8), noise, schedule, STEPS)
    guided = motion_model(unet, motion, context, negative, 7.5, schedule, STEPS, STRENGTH, 0.5, fps=8)
    guided = sample_ddim(guided, noise, schedule, STEPS)
    for expected, changes in ((plain, {}), (guided, {"motion": motion, "motion_strength": STRENGTH})):
        found = unfold_frames(sample(teacher, **changes), 8) * SHAPES.vae.scale_factor
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (guided - plain).norm() / plain.norm() > 0.01


def test_every_input_of_the_sampler_changes_the_clip(teacher, motion):
    usual = {"motion": motion, "motion_strength": STRENGTH, "tau": 1.0, "steps": 3}
    base = sample(teacher, **usual)
    assert torch.equal(base, sample(teacher, **usual))
    negative = encode(teacher[1], "a red circle")
    changes = ({"seed": 4}, {"steps": 2}, {"cfg": 3.0}, {"fps": 30}, {"negative": negative}, {"motion": None})
    for change in (*changes, {"motion_strength": 2 * STRENGTH}, {"tau": 0.5}):
        assert not torch.allclose(base, sample(teacher, **usual | change), atol=1e-4), change


def test_no_strength_or_no_tau_is_no_guidance(teacher, motion):
    plain = sample(teacher, steps=3)
    assert torch.equal(sample(teacher, motion=motion, steps=3, motion_strength=0.0), plain)
    assert torch.equal(sample(teacher, motion=motion, steps=3, tau=0.0), plain)


def test_weights_from_inside_inference_mode_do_not_matter(teacher, motion):
    """Where something else moved the weights under inference mode, gradients still flow."""
    expected = sample(teacher, motion=motion, motion_strength=STRENGTH)
    for module in unet_of(teacher).modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(weight.clone(), requires_grad=False))
    assert all(weight.is_inference() for weight in unet_of(teacher).parameters())
    assert torch.equal(sample(teacher, motion=motion, motion_strength=STRENGTH), expected)


# --- native samplers ----------


def denoised(model, x, sigma, sigmas, contexts, cfg=7.5):
    """The clean frames that a native sampler gets from a MODEL: CFG, then the MODEL's own functions."""
    t = timestep_of(float(sigma), NoiseSchedule())
    options = model.model_options | {
        "transformer_options": model.model_options["transformer_options"] | {"sample_sigmas": sigmas}
    }
    settings = options["transformer_options"][SETTINGS]
    eps = comfy_call(model, x / (1 + sigma**2).sqrt(), float(t), contexts, settings)
    cond, uncond = (x - sigma * part for part in eps.chunk(2))
    result = uncond + cfg * (cond - uncond)
    for function in options.get("sampler_post_cfg_function", []):
        args = {"denoised": result, "input": x, "sigma": sigma.expand(len(x)), "model_options": options}
        result = function(args | {"cond": [{"cross_attn": contexts[0]}]})
    return result


def native_euler(model, noise, contexts, steps=STEPS):
    """Euler sampling as the k-diffusion formulation of native samplers has it, written from its definition."""
    alpha_bar = NoiseSchedule().alpha_bar[solver_grid(steps).flip(0)]
    sigmas = torch.cat([(1 / alpha_bar - 1).sqrt(), torch.zeros(1)])
    x, path = noise * (1 + sigmas[0] ** 2).sqrt(), []
    for i, sigma in enumerate(sigmas[:-1]):
        clean = denoised(model, x, sigma, sigmas, contexts)
        x = clean + (sigmas[i + 1] / sigma) * (x - clean)
        path.append(x)
    return path


def guide(parts, motion, **changes):
    inputs = {"model": parts[0], "motion": motion, "motion_strength": STRENGTH, "tau": 0.5} | changes
    return run("T2VTurboMotionGuidance", **inputs)[0]


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_a_guided_model_in_native_euler_is_the_teacher_sampler(teacher, motion, tau):
    noise = fold_frames(draw_noise((1, 4, 8, 8, 8), torch.Generator().manual_seed(3)))
    contexts = [encode(teacher[1], text)[0][0] for text in (PROMPT, "")]
    native = native_euler(guide(teacher, motion, tau=tau), noise, contexts)[-1] / SHAPES.vae.scale_factor
    ours = sample(teacher, motion=motion, motion_strength=STRENGTH, tau=tau)
    assert (native - ours).norm() / ours.norm() < 1e-4
    assert (sample(teacher) - ours).norm() / ours.norm() > 0.01


def test_guidance_descends_the_energy(teacher, motion):
    """After one step, and at the end of the guided range, the clip's attention is nearer to the reference's."""
    noise = fold_frames(draw_noise((1, 4, 8, 8, 8), torch.Generator().manual_seed(3)))
    contexts = [encode(teacher[1], text)[0][0] for text in (PROMPT, "")]
    guided, plain = (native_euler(model, noise, contexts) for model in (guide(teacher, motion), teacher[0]))
    solver = DDIMSolver(NoiseSchedule(), STEPS)
    for step in range(len(motion.timesteps)):
        t, alpha_bar = int(solver.timesteps[-2 - step]), solver.alpha_bar[-2 - step]
        energies = [
            attention_energy(teacher, unfold_frames(path[step] * alpha_bar.sqrt(), 8), t, motion)
            for path in (guided, plain)
        ]
        assert energies[0] < energies[1]


def test_a_guided_model_is_refused_where_the_guidance_would_be_passed_over(teacher, motion):
    parts = (guide(teacher, motion), *teacher[1:])
    with pytest.raises(ValueError, match=r"^model: .*\(sampler_post_cfg_function\), which has no effect in T2V"):
        sample(parts)


@pytest.mark.parametrize("name", ["positive", "negative"])
def test_settings_of_a_prompt_that_would_be_passed_over_are_refused(teacher, name):
    ((context, about),) = encode(teacher[1])
    assert torch.equal(sample(teacher), sample(teacher, positive=[[context, about | {"pooled_output": context}]]))
    with pytest.raises(ValueError, match=rf"^{name}: carries settings \(mask, strength\) .* sample with KSampler$"):
        sample(teacher, **{name: [[context, about | {"mask": context, "strength": 0.5}]]})


def test_a_guided_model_leaves_the_other_as_it_was(teacher, motion):
    guided = guide(teacher, motion)
    assert guided is not teacher[0] and "sampler_post_cfg_function" not in teacher[0].model_options
    (function,) = guided.model_options["sampler_post_cfg_function"]
    assert guided.clone().model_options["sampler_post_cfg_function"] == [function], "the prior is not copied along"


def test_levels_between_those_of_the_schedule_belong_to_the_next_step():
    sigmas = torch.tensor([14.0, 7.0, 3.0, 0.0])
    assert [next_sigma(sigmas, level) for level in (14.0, 13.999, 9.0, 7.0, 3.0)] == [7.0, 7.0, 7.0, 3.0, 0.0]
    assert next_sigma(sigmas, 0.0) == 0.0
    schedule = NoiseSchedule()
    levels = (1 / schedule.alpha_bar - 1).sqrt()
    assert [timestep_of(float(levels[t]), schedule) for t in (0, 519, 999)] == [0, 519, 999]


# --- a student's lambda ----------


@pytest.fixture
def motion_student(random_shapes, tmp_path):
    """A student with an input for lambda, as MODEL, CLIP and VAE."""
    core = pipeline.load("shapes", folder=random_shapes)
    core.unet = randomize(UNet3D(SHAPES.unet.as_student(motion=True)), 7)
    with torch.inference_mode(False):
        return native_parts(core, "fp32")


def test_a_student_gets_lambda_and_tau(motion_student):
    model, clip, _ = motion_student
    base = test_nodes.sample(model, clip, steps=4)["samples"]
    usual = {"steps": 4, "motion_strength": 500.0, "tau": 0.5}
    assert torch.equal(test_nodes.sample(model, clip, **usual)["samples"], base)
    results = [
        test_nodes.sample(model, clip, **usual | change)["samples"]
        for change in ({"motion_strength": 0.0}, {"motion_strength": 900.0}, {"tau": 1.0}, {"tau": 0.0})
    ]
    assert all(not torch.allclose(base, found, atol=1e-4) for found in results)
    assert torch.equal(results[0], results[3]), "no lambda anywhere is a lambda of 0"
    other, clip, _ = load(STUDENT)
    ignored = [test_nodes.sample(other, clip, motion_strength=value)["samples"] for value in (0.0, 900.0)]
    assert torch.equal(*ignored)


def test_native_samplers_get_the_usual_lambda(motion_student):
    model, clip, _ = motion_student
    settings = model.model_options["transformer_options"][SETTINGS]
    assert settings["motion"] == SHAPES.motion_strength and settings["tau"] == 0.5
    context, x = encode(clip)[0][0], torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = student_model(model.get_model_object("diffusion_model").unet, context, **settings)
    found = comfy_call(model, x, 999.0, [context], settings)
    torch.testing.assert_close(found, fold_frames(expected(unfold_frames(x, 8), torch.tensor([999]))))
    assert not torch.allclose(found, comfy_call(model, x, 999.0, [context], settings | {"motion": 0.0}), atol=1e-4)


# --- files ----------


@pytest.fixture
def folders(tmp_path):
    found = Folders(tmp_path / "in", tmp_path / "out")
    found.input.mkdir()
    with using_folders(found):
        yield found


def listed_motions():
    return test_nodes.t2v_turbo.NODE_CLASS_MAPPINGS["T2VTurboLoadMotionPrior"].INPUT_TYPES()["required"]["motion"][0]


def test_a_saved_motion_is_listed_and_guides_alike(teacher, motion, folders):
    assert listed_motions() == []
    for number in (1, 2):
        answer = run("T2VTurboSaveMotionPrior", motion=motion, filename_prefix="motion/up")
        saved = {"filename": f"up_{number:05}_.safetensors", "subfolder": "motion", "type": "output"}
        assert answer["ui"]["motion"] == [saved]
    assert listed_motions() == ["up_00001_.safetensors", "up_00002_.safetensors"]
    (loaded,) = run("T2VTurboLoadMotionPrior", motion="up_00002_.safetensors")
    settings = {"motion_strength": STRENGTH}
    assert torch.equal(sample(teacher, motion=loaded, **settings), sample(teacher, motion=motion, **settings))


def test_motions_of_the_input_folder_are_safetensors_of_ours(motion, folders):
    motion.save(folders.input / "mine.safetensors")
    save_file({"a": torch.zeros(1)}, folders.input / "other.safetensors")
    torch.save({}, folders.input / "pickle.pt")
    assert listed_motions() == ["mine.safetensors", "other.safetensors"]
    with pytest.raises(CheckpointError, match="is no motion prior"):
        run("T2VTurboLoadMotionPrior", motion="other.safetensors")
    changed = test_nodes.t2v_turbo.NODE_CLASS_MAPPINGS["T2VTurboLoadMotionPrior"].IS_CHANGED
    assert changed("mine.safetensors") == (folders.input / "mine.safetensors").stat().st_mtime


@pytest.mark.parametrize("name", ["../secret.safetensors", "pickle.pt", "nothing.safetensors"])
def test_a_motion_stays_inside_its_folders(motion, folders, name):
    motion.save(folders.input.parent / "secret.safetensors")
    torch.save({}, folders.input / "pickle.pt")
    with pytest.raises(ValueError, match=f"motion: '{name}' does not lie in .*choose one of the list, or"):
        run("T2VTurboLoadMotionPrior", motion=name)
    with pytest.raises(ValueError, match="leads out of"):
        run("T2VTurboSaveMotionPrior", motion=motion, filename_prefix="../motion")


# --- mistakes ----------


def test_a_student_is_refused_with_what_to_do(teacher, motion):
    student = load(STUDENT)
    for call in (lambda: read(student), lambda: sample(student), lambda: guide(student, motion)):
        with pytest.raises(ValueError, match=r"this is a student.*needs a teacher.*Load its teacher"):
            call()


def test_a_motion_of_another_size_names_both(teacher, motion):
    latent = empty(8, 72, 64)
    with pytest.raises(ValueError, match="motion prior is of 8 frames of 8x8 latents, the video of 8 frames of 9x8"):
        sample(teacher, motion=motion, latent=latent)
    noise = torch.zeros(8, 4, 8, 9)
    contexts = [encode(teacher[1], text)[0][0] for text in (PROMPT, "")]
    with pytest.raises(ValueError, match="the video of 8 frames of 9x8"):
        native_euler(guide(teacher, motion), noise, contexts)


def test_a_guided_model_takes_one_prompt(teacher, motion):
    (function,) = guide(teacher, motion).model_options["sampler_post_cfg_function"]
    conditions = [{"cross_attn": encode(teacher[1])[0][0]}] * 2
    options = {"transformer_options": {"sample_sigmas": torch.tensor([14.0, 7.0, 0.0]), SETTINGS: {"fps": 8}}}
    args = {"denoised": torch.zeros(8, 4, 8, 8), "input": torch.zeros(8, 4, 8, 8), "sigma": torch.tensor([14.0])}
    with pytest.raises(ValueError, match=r"positive: .* takes one prompt at a time"):
        function(args | {"cond": conditions, "model_options": options})


def test_other_mistakes_name_the_input(teacher, motion):
    with pytest.raises(ValueError, match="images: the reference has 5 frames, but 8 are needed"):
        read(teacher, images=REFERENCE[:5])
    with pytest.raises(ValueError, match=r"tau=0\.1 of 5 steps guides no step"):
        read(teacher, tau=0.1)
    with pytest.raises(ValueError, match="negative: holds 2 prompts"):
        sample(teacher, negative=encode(teacher[1]) * 2)
    with pytest.raises(ValueError, match="negative: the prompt is 768 numbers wide"):
        sample(teacher, negative=[[torch.zeros(1, 77, 768), {}]])

    class Coarse:
        def spacial_compression_encode(self):
            return 16

        def encode(self, pixels):
            return torch.zeros(1, 16, 2, 8, 8)

    with pytest.raises(ValueError, match=r"vae: gives latents of the shape \(1, 16, 2, 8, 8\), but \(8, 4, 8, 8\)"):
        read(teacher, vae=Coarse())


# --- headless ----------

PRESET = ROOT / "workflows" / "api" / "motion_transfer.json"


def write_reference(folder, frames=12):
    folder.mkdir(exist_ok=True)
    write_video(folder / "reference.mp4", (REFERENCE.repeat(2, 1, 1, 1)[:frames] * 255).byte().numpy(), 12)


def test_the_preset_runs_without_comfyui(tmp_path, capsys):
    write_reference(tmp_path / "in")
    settings = ["8.method=noise", "8.steps=3", "10.steps=3"]
    paths = ["--out", str(tmp_path / "out"), "--input", str(tmp_path / "in")]
    assert headless.main([str(PRESET), *paths, "--set", *settings]) == 0
    (path,) = capsys.readouterr().out.split()
    assert read_video(path).shape == (8, 64, 64, 3)
    assert headless.main([str(PRESET), *paths, "--set", *settings, "10.motion_strength=0"]) == 0
    other = capsys.readouterr().out.strip()
    assert (read_video(path) != read_video(other)).any(), "the motion changes the clip"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["8.method=foo"], "node 8: T2VTurboMotionPrior: method='foo' is not allowed: one of inversion, noise"),
        (["8.inversion_steps=7"], "inversion_steps='7' is not allowed: one of 200, 100, 50, 25"),
        (["8.timestep=1000", "8.method=noise"], "timestep=1000 is not allowed: a whole number from -1 to 999"),
        (["10.motion_strength=-5"], "motion_strength=-5 is not allowed: a number from 0.0 to 10000.0"),
        ([], "put it there, name another folder with --input FOLDER, or another file with --set NODE.file=NAME"),
    ],
)
def test_a_mistake_in_the_preset_is_one_line(tmp_path, capsys, settings, message):
    folders = ["--out", str(tmp_path), "--input", str(tmp_path)]
    assert headless.main([str(PRESET), *folders, "--set", *settings]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_graph_saves_a_motion_and_another_loads_it(tmp_path):
    graph = json.loads(PRESET.read_text())
    write_reference(tmp_path / "in")
    graph["8"]["inputs"] |= {"method": "noise", "timestep": 400}
    graph["20"] = {"class_type": "T2VTurboSaveMotionPrior", "inputs": {"motion": ["8", 0], "filename_prefix": "a"}}
    reading = {node: graph[node] for node in ("1", "4", "5", "6", "7", "8", "20")}
    (saved,) = run_graph(reading, tmp_path / "out" / "motion", inputs=tmp_path / "in")
    assert saved == tmp_path / "out" / "motion" / "a_00001_.safetensors"
    assert MotionPrior.load(saved).timesteps == [400]
    graph["8"] = {"class_type": "T2VTurboLoadMotionPrior", "inputs": {"motion": saved.name}}
    graph["10"]["inputs"]["steps"] = 2
    for node in ("4", "5", "6", "9", "20"):
        del graph[node]
    (video,) = run_graph(graph, tmp_path / "out", inputs=tmp_path / "in")
    assert video.suffix == ".mp4"


def test_a_loaded_video_stays_inside_its_folder(tmp_path):
    write_reference(tmp_path)
    with using_folders(Folders(tmp_path / "in", tmp_path)), pytest.raises(ValueError, match="leads out of"):
        load_video("../reference.mp4")
    with using_folders(Folders(tmp_path, tmp_path)):
        images, sound, fps = video_components(*load_video("reference.mp4"))
    assert images.shape == (12, 64, 64, 3) and sound is None and fps == pytest.approx(12)
