"""The nodes as plain classes, under inference mode as ComfyUI runs them, on random weights of the embedded sizes."""

import json
import runpy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, randomize
from safetensors.torch import save_file

import t2v_turbo
from t2v_turbo.core import pipeline
from t2v_turbo.core.checkpoints import networks
from t2v_turbo.core.diffusion.consistency import sample_consistency, student_model
from t2v_turbo.core.diffusion.schedule import NoiseSchedule, sampling_timesteps
from t2v_turbo.core.families import SHAPES
from t2v_turbo.core.networks.layers import fold_frames, unfold_frames
from t2v_turbo.core.networks.unet import UNet3D
from t2v_turbo.core.video import read_metadata, read_video
from t2v_turbo.nodes.graph import cli as headless
from t2v_turbo.nodes.graph.execution import run_graph
from t2v_turbo.nodes.graph.native import SaveVideo
from t2v_turbo.nodes.graph.overrides import override
from t2v_turbo.nodes.host import host
from t2v_turbo.nodes.host.plain import Folders, using_folders
from t2v_turbo.nodes.runtime import models
from t2v_turbo.nodes.runtime.wrappers import SETTINGS, native_parts
from t2v_turbo.nodes.runtime.wrappers.vae import crop_to_multiple

PROMPT = "a red circle moves right"
STUDENT, TEACHER = "shapes (embedded)", "shapes teacher (embedded)"
MOTION_STUDENT = "shapes with motion guidance (embedded)"


@pytest.fixture(autouse=True)
def embedded(random_shapes, monkeypatch, tmp_path):
    """The embedded family is of random weights, the models folder empty, and nodes run as in ComfyUI."""
    monkeypatch.setattr(pipeline, "family_folder", lambda name: random_shapes)
    monkeypatch.setattr(models, "family_folder", lambda name: random_shapes)
    monkeypatch.setenv("T2V_TURBO_MODELS", str(tmp_path))
    with torch.inference_mode():
        yield


def run(name, **inputs):
    """A node's outputs."""
    node = t2v_turbo.NODE_CLASS_MAPPINGS[name]()
    return getattr(node, node.FUNCTION)(**inputs)


def load(model=STUDENT, precision="fp32"):
    return run("T2VTurboLoader", model=model, precision=precision)


def encode(clip, text=PROMPT):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def empty(frames=8, width=64, height=64):
    return run("T2VTurboEmptyLatentVideo", width=width, height=height, frames=frames)[0][0]


def sample(model, clip, latent=None, **settings):
    inputs = {"seed": 3, "steps": 2, "guidance": 7.5, "fps": 0} | settings
    latent = empty() if latent is None else latent
    return run("T2VTurboSampler", model=model, positive=encode(clip), latent=latent, **inputs)[0]


# --- the chain ----------


def test_the_chain_gives_frames_between_0_and_1():
    model, clip, vae = load()
    images = vae.decode(sample(model, clip)["samples"])
    assert images.shape == (8, 64, 64, 3) and images.dtype == torch.float32 and images.device.type == "cpu"
    assert 0 <= images.min() < images.max() <= 1


def test_the_node_gives_what_the_core_gives(random_shapes):
    model, clip, _ = load()
    core = pipeline.load("shapes", folder=random_shapes)
    generator = torch.Generator().manual_seed(3)
    expected = core.sample([PROMPT], core.noise(1, generator), 3, 6.0, generator, fps_condition=12)
    samples = sample(model, clip, steps=3, guidance=6.0, fps=12)["samples"]
    torch.testing.assert_close(unfold_frames(samples, 8) * SHAPES.vae.scale_factor, expected)


def test_every_input_of_the_sampler_changes_the_clip():
    model, clip, _ = load()
    base = sample(model, clip)["samples"]
    assert torch.equal(base, sample(model, clip)["samples"])
    for change in ({"seed": 4}, {"steps": 1}, {"guidance": 3.0}, {"fps": 30}):
        assert not torch.allclose(base, sample(model, clip, **change)["samples"], atol=1e-4), change
    other = run("T2VTurboSampler", model=model, positive=encode(clip, "a blue square"), latent=empty(), seed=3, steps=2,
                guidance=7.5, fps=0)[0]["samples"]
    assert not torch.allclose(base, other, atol=1e-4)


def test_fps_0_is_the_models_own():
    model, clip, _ = load()
    own = sample(model, clip, fps=SHAPES.fps_condition)["samples"]
    assert torch.equal(sample(model, clip, fps=0)["samples"], own)


def test_the_scale_is_the_loaded_vaes(random_shapes):
    core = pipeline.load("shapes", folder=random_shapes)
    usual = sample(*native_parts(core, "fp32")[:2])["samples"]
    core.vae.config = replace(core.vae.config, scale_factor=2 * SHAPES.vae.scale_factor)
    model, clip, vae = native_parts(core, "fp32")
    halved = sample(model, clip)["samples"]
    torch.testing.assert_close(halved, usual / 2)
    # Unscaled latents mean the same pixels, whatever the scale.
    images = load()[2].decode(usual)
    torch.testing.assert_close(vae.decode(usual), images)
    torch.testing.assert_close(vae.encode(images), load()[2].encode(images))


@pytest.mark.parametrize(("frames", "width", "height"), [(1, 64, 64), (5, 48, 72)])
def test_other_sizes_and_lengths_sample(frames, width, height):
    model, clip, vae = load()
    latent = empty(frames, width, height)
    assert latent["samples"].shape == (frames, 4, height // 8, width // 8)
    assert vae.decode(sample(model, clip, latent)["samples"]).shape == (frames, height, width, 3)


def test_inputs_are_left_as_they_were():
    model, clip, _ = load()
    latent = {"samples": empty()["samples"], "batch_index": [1]}
    before = model.model_options["transformer_options"][SETTINGS].copy()
    out = sample(model, clip, latent, guidance=3.0)
    assert out is not latent and not latent["samples"].any() and out["batch_index"] == [1]
    assert model.model_options["transformer_options"][SETTINGS] == before


def test_half_precision_stays_close_to_single():
    model, clip, vae = load(precision="bf16")
    assert model.model_dtype() == torch.bfloat16
    rough, exact = sample(model, clip, steps=1)["samples"], sample(*load()[:2], steps=1)["samples"]
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() / exact.norm() < 0.1
    assert vae.decode(rough).dtype == torch.float32


# --- the native MODEL ----------


def comfy_call(model, x, t, contexts, settings=None):
    """The network as ComfyUI calls it: the clip once per condition, contexts repeated for every frame."""
    n, frames = len(contexts), x.shape[0]
    options = {"cond_or_uncond": list(range(n)), SETTINGS: settings or {}}
    context = torch.cat([c.expand(frames, -1, -1) for c in contexts])
    network = model.get_model_object("diffusion_model")
    return network(x.repeat(n, 1, 1, 1), torch.full((n * frames,), t), context=context, transformer_options=options)


def test_the_network_takes_frames_as_the_batch_and_several_conditions():
    model, clip, _ = load(TEACHER)
    x = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    contexts = [encode(clip, text)[0][0] for text in (PROMPT, "")]
    both = comfy_call(model, x, 499.0, contexts, {"fps": 8})
    unet = model.get_model_object("diffusion_model").unet
    for part, context in zip(both.chunk(2), contexts):
        expected = unet(unfold_frames(x, 8), torch.tensor([499]), context, fps=8)
        torch.testing.assert_close(part, fold_frames(expected), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(*both.chunk(2), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "control", "named"),
    [
        ({"patches": {"attn1_patch": [print]}}, None, "attn1_patch"),
        ({"patches": {}, "patches_replace": {"attn1": {("middle", 0): print}}}, None, "attn1"),
        ({"wrappers": {"diffusion_model": {"easycache": [print]}}}, None, "easycache"),
        ({}, {"output": []}, "control"),
    ],
)
def test_what_an_image_unet_alone_could_do_is_refused(options, control, named):
    model, clip, _ = load()
    network, x = model.get_model_object("diffusion_model"), torch.randn(8, 4, 8, 8)
    options |= {"cond_or_uncond": [0]}
    context = encode(clip)[0][0].expand(8, -1, -1)
    with pytest.raises(ValueError, match=rf"^model: .* image network \({named}\), .* take that node away$"):
        network(x, torch.full((8,), 499.0), context=context, control=control, transformer_options=options)


def test_a_students_settings_travel_with_the_model():
    model, clip, _ = load()
    settings = model.model_options["transformer_options"][SETTINGS]
    assert settings == {"omega": SHAPES.guidance_scale - 1, "fps": SHAPES.fps_condition}
    x, contexts = torch.randn(8, 4, 8, 8), [encode(clip)[0][0]]
    usual = comfy_call(model, x, 999.0, contexts, settings)
    assert not torch.allclose(usual, comfy_call(model, x, 999.0, contexts, settings | {"omega": 2.0}), atol=1e-4)
    clone = model.clone()
    clone.model_options["transformer_options"][SETTINGS]["omega"] = 2.0
    assert settings["omega"] == SHAPES.guidance_scale - 1


def native_lcm(model, context, noise, renoise, sigmas, settings):
    """LCM sampling as the k-diffusion formulation of native samplers has it, written from its definition."""
    timesteps = sampling_timesteps(len(sigmas) - 1)
    x = noise * (1 + sigmas[0] ** 2).sqrt()
    for i, sigma in enumerate(sigmas[:-1]):
        eps = comfy_call(model, x / (1 + sigma**2).sqrt(), float(timesteps[i]), [context], settings)
        x = x - sigma * eps
        if sigmas[i + 1] > 0:
            x = x + sigmas[i + 1] * renoise[i]
    return x


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_native_lcm_over_our_sigmas_is_our_sampler(steps):
    model, clip, _ = load()
    settings, context = model.model_options["transformer_options"][SETTINGS], encode(clip)[0][0]
    noise = torch.randn(steps, 8, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    (sigmas,) = run("T2VTurboSigmas", steps=steps)
    native = native_lcm(model, context, noise[0], noise[1:], sigmas, settings)
    predict = student_model(model.get_model_object("diffusion_model").unet, context, **settings)
    as_clip = [unfold_frames(part, 8) for part in noise]
    ours = sample_consistency(predict, as_clip[0], NoiseSchedule(), steps, renoise=lambda i: as_clip[i + 1])
    torch.testing.assert_close(native, fold_frames(ours), rtol=1e-4, atol=1e-4)


def test_sigmas_descend_to_zero_and_belong_to_the_200_step_grid():
    (sigmas,) = run("T2VTurboSigmas", steps=4)
    alpha_bar = 1 / (1 + sigmas[:-1] ** 2)
    nearest = (NoiseSchedule().alpha_bar[None] - alpha_bar[:, None]).abs().argmin(1)
    assert nearest.tolist() == [999, 749, 499, 249]
    assert sigmas.shape == (5,) and sigmas[-1] == 0 and (sigmas.diff() < 0).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_can_take_part_in_a_gradient_though_loaded_in_inference_mode(precision):
    model, clip, vae = load(precision=precision)
    unet = model.get_model_object("diffusion_model").unet
    assert not any(weight.is_inference() for part in (unet, clip.text, vae.vae) for weight in part.parameters())
    context = encode(clip)[0][0]
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.randn(1, 4, 8, 8, 8, requires_grad=True)
        unet(x, torch.tensor([499]), context.clone(), omega=torch.tensor([6.5])).sum().backward()
    assert x.grad.abs().sum() > 0


# --- CLIP and VAE ----------


def test_conditioning_is_the_context_of_the_core(random_shapes):
    _, clip, _ = load()
    ((context, extras),) = encode(clip)
    expected = pipeline.load("shapes", folder=random_shapes).text.encode([PROMPT])
    assert torch.equal(context, expected) and extras == {"pooled_output": None}


def test_encode_is_the_inverse_in_shape_and_unscaled(random_shapes):
    _, _, vae = load()
    pixels = torch.rand(3, 70, 67, 3, generator=torch.Generator().manual_seed(0))
    latents = vae.encode(pixels)
    cropped = pixels[:, 3:67, 1:65].movedim(-1, 1)[None]
    core = pipeline.load("shapes", folder=random_shapes).vae
    torch.testing.assert_close(latents, fold_frames(core.encode(cropped)) / SHAPES.vae.scale_factor)
    decoded = core.decode(unfold_frames(latents, 3) * SHAPES.vae.scale_factor)[0].movedim(1, -1)
    torch.testing.assert_close(vae.decode(latents), decoded)


def test_tiles_cover_the_frame_and_leave_the_vae_as_it_was():
    _, _, vae = load()
    latents = torch.randn(2, 4, 12, 20, generator=torch.Generator().manual_seed(0))
    whole = vae.decode(latents)
    tiled = vae.decode_tiled(latents, tile_x=8, tile_y=8, overlap=2)
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
    assert torch.equal(vae.decode(latents), whole)
    torch.testing.assert_close(vae.decode_tiled(latents, tile_x=64, tile_y=64, overlap=8), whole)
    assert vae.encode_tiled(whole, tile_x=64, tile_y=64, overlap=16).shape == latents.shape
    assert vae.spacial_compression_decode() == 8 and vae.temporal_compression_decode() is None


def test_a_node_that_wants_more_of_a_part_than_it_has_gets_a_sentence():
    _, clip, vae = load()
    for part, name, fits in ((clip, "clone", "CLIP Text Encode$"), (vae, "get_sd", "VAE Decode and VAE Encode")):
        assert not hasattr(part, name)
        with pytest.raises(AttributeError, match=f"^this part of T2V-Turbo Loader has no '{name}', .* with {fits}"):
            getattr(part, name)()


def test_too_small_frames_are_refused():
    with pytest.raises(ValueError, match=r"pixels: 20x7 is too small"):
        crop_to_multiple(torch.zeros(1, 3, 7, 20), 8)


# --- mistakes ----------


def test_a_foreign_model_is_refused():
    _, clip, _ = load()
    foreign = host().patcher(torch.nn.ModuleDict({"diffusion_model": torch.nn.Linear(1, 1)}), "unet", "fp32")
    with pytest.raises(ValueError, match=r"another kind of model \(Linear\).*KSampler"):
        sample(foreign, clip)


def test_a_teacher_is_refused_with_what_to_do():
    model, clip, _ = load(TEACHER)
    with pytest.raises(ValueError, match=r"teacher.*student.*KSampler.*ddim.*7\.5"):
        sample(model, clip)


def test_other_mistakes_name_the_input():
    model, clip, _ = load()
    common = {"model": model, "latent": empty(), "seed": 0, "steps": 1, "guidance": 7.5, "fps": 0}
    with pytest.raises(ValueError, match=r"positive: the prompt is 768 numbers wide, but this model takes 64"):
        run("T2VTurboSampler", positive=[[torch.zeros(1, 77, 768), {}]], **common)
    with pytest.raises(ValueError, match="positive: holds 2 prompts"):
        run("T2VTurboSampler", positive=encode(clip) * 2, **common)
    with pytest.raises(ValueError, match=r"latent: has the shape \(1, 16, 4, 8, 8\)"):
        sample(model, clip, {"samples": torch.zeros(1, 16, 4, 8, 8)})
    with pytest.raises(ValueError, match="width=70 is not a multiple of 8: use 72"):
        empty(width=70)


# --- the models folder ----------


def test_the_embedded_models_are_always_offered():
    options = t2v_turbo.NODE_CLASS_MAPPINGS["T2VTurboLoader"].INPUT_TYPES()["required"]["model"][0]
    assert options == [STUDENT, MOTION_STUDENT, TEACHER]


def test_a_students_file_appears_and_loads_with_the_embedded_parts(tmp_path):
    loader = t2v_turbo.NODE_CLASS_MAPPINGS["T2VTurboLoader"]
    with torch.inference_mode(False):
        student = randomize(UNet3D(SHAPES.unet.as_student(motion=True)), 9)
        networks.save_unet(student, tmp_path / "mine" / "run.safetensors")
    (tmp_path / "mine" / "notes.txt").touch()
    assert loader.INPUT_TYPES()["required"]["model"][0][3:] == ["mine/run.safetensors"]
    model, clip, vae = load("mine/run.safetensors")
    assert model.get_model_object("diffusion_model").unet.takes_motion
    assert vae.decode(sample(model, clip)["samples"]).shape == (8, 64, 64, 3)
    before = loader.IS_CHANGED(model="mine/run.safetensors", precision="auto")
    (tmp_path / "mine" / "run.safetensors").touch()
    assert loader.IS_CHANGED(model="mine/run.safetensors", precision="auto") > before
    assert loader.IS_CHANGED(model=STUDENT, precision="auto") == STUDENT


@pytest.mark.parametrize("name", ["saved.safetensors", "saved.pt"])
@pytest.mark.parametrize("prefix", ["model.diffusion_model.unet.", "module."])
def test_a_student_that_another_program_saved_is_of_the_family_that_its_weights_tell(tmp_path, name, prefix):
    with torch.inference_mode(False):
        student = randomize(UNet3D(SHAPES.unet.as_student()), 9)
        state = {f"{prefix}{key}": value.clone() for key, value in student.state_dict().items()}
        (torch.save if name.endswith(".pt") else save_file)(state, tmp_path / name)
    network = load(name)[0].get_model_object("diffusion_model")
    assert network.family == "shapes" and network.is_student
    torch.testing.assert_close(network.unet.state_dict(), student.state_dict())


def test_a_published_student_without_its_teacher_says_what_is_missing(tmp_path):
    keys = ("time_embed.0.weight", "input_blocks.1.0.temopral_conv.conv1.0.weight")
    torch.save({key: torch.zeros(2) for key in keys}, tmp_path / "unet_mg.pt")
    with pytest.raises(ValueError, match=r"unet_mg\.pt needs model\.ckpt of videocrafter2: put it beside"):
        load("unet_mg.pt")


def test_a_name_outside_the_models_folder_is_refused():
    with pytest.raises(ValueError, match=r"model: '\.\./secret\.pt' does not lie in .*choose one of the list, or put"):
        load("../secret.pt")


# --- headless ----------


def test_the_module_is_the_command(monkeypatch, tmp_path, capsys):
    graph = {"1": {"class_type": "PreviewAny", "inputs": {"source": "a"}}}
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    monkeypatch.setattr("sys.argv", ["graph", str(tmp_path / "graph.json"), "--set", "1.source=b"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("t2v_turbo.nodes.graph", run_name="__main__")
    assert (stop.value.code, capsys.readouterr().out) == (0, "b\n")


def test_a_saved_graph_runs_without_comfyui(tmp_path, capsys):
    preset = ROOT / "workflows" / "api" / "text_to_video.json"
    assert headless.main([str(preset), "--out", str(tmp_path), "--set", "4.steps=1", "2.text=a blue square"]) == 0
    path = tmp_path / "video" / "T2V-Turbo_00001_.mp4"
    assert capsys.readouterr().out.strip() == str(path)
    assert read_video(path).shape == (8, 64, 64, 3)
    tags = read_metadata(path)
    graph = json.loads(tags["prompt"])
    assert graph["4"]["inputs"]["steps"] == 1 and graph["2"]["inputs"]["text"] == "a blue square"
    assert "workflow" not in tags, "the preset's UI format would not show the changed inputs"


def test_the_unchanged_preset_carries_its_workflow_and_numbers_its_files(tmp_path):
    preset = ROOT / "workflows" / "api" / "text_to_video.json"
    assert headless.main([str(preset), "--out", str(tmp_path)]) == headless.main([str(preset), "--out", str(tmp_path)])
    first, second = sorted((tmp_path / "video").iterdir())
    assert second.name == "T2V-Turbo_00002_.mp4"
    # The same clip, though not to the last bit: sums on several threads may differ, and the encoder adds to it.
    difference = np.abs(read_video(first).astype(int) - read_video(second))
    assert difference.max() <= 16 and difference.mean() < 0.5
    assert json.loads(read_metadata(first)["workflow"]) == json.loads((ROOT / "workflows" / preset.name).read_text())


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"1": {"class_type": "KSampler", "inputs": {}}}, "node 1: 'KSampler' needs ComfyUI"),
        ({"1": {"class_type": "VAEDecode", "inputs": {"vae": ["2", 0]}}}, "does not hold: 2"),
        ({"1": {"class_type": "VAEDecode", "inputs": {"vae": ["1", 0]}}}, "circle: 1 -> 1"),
        ({"1": {"class_type": "LoadVideo", "inputs": {}}}, "node 1: LoadVideo: missing a required argument: 'file'"),
        ({"1": {"class_type": "T2VTurboSigmas", "inputs": {}}}, "T2VTurboSigmas: missing a required argument: 'steps'"),
        ({"1": {"class_type": "T2VTurboSigmas", "inputs": {"steps": 4, "a": 0}}}, "unexpected keyword argument 'a'"),
    ],
)
def test_a_graph_that_cannot_run_says_why(graph, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_graph(graph, tmp_path)


@pytest.mark.parametrize(
    ("node", "inputs", "allowed"),
    [
        ("T2VTurboSigmas", {"steps": 0}, "steps=0 is not allowed: a whole number from 1 to 16"),
        ("T2VTurboSigmas", {"steps": 17}, "steps=17"),
        ("T2VTurboSigmas", {"steps": 4.5}, "steps=4.5"),
        ("T2VTurboSigmas", {"steps": True}, "steps=True"),
        ("T2VTurboSigmas", {"steps": "many"}, "steps='many'"),
        ("T2VTurboMotionGuidance", {"motion_strength": -5}, "motion_strength=-5 .* a number from 0.0 to 10000.0"),
        ("T2VTurboMotionGuidance", {"tau": float("nan")}, "tau=nan .* a number from 0.0 to 1.0"),
        ("T2VTurboMotionGuidance", {"tau": None}, "tau=None"),
        ("T2VTurboMotionGuidance", {"tau": False}, "tau=False"),
        ("T2VTurboMotionGuidance", {"model": "foo"}, "model='foo' is not allowed: a link to another node"),
        ("T2VTurboSaveMotionPrior", {"filename_prefix": 5}, "filename_prefix=5 is not allowed: text is needed"),
        ("T2VTurboLoader", {"precision": "fp8"}, "precision='fp8' is not allowed: one of auto, fp32, bf16, fp16"),
        ("T2VTurboLoader", {"model": 5}, r"model=5 is not allowed: one of shapes \(embedded\)"),
        ("T2VTurboSampler", {"motion_strength": 1e6}, "motion_strength=1000000.0"),  # an optional one
    ],
)
def test_values_that_comfyui_would_refuse_are_refused_before_anything_runs(node, inputs, allowed, tmp_path):
    spec = t2v_turbo.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()
    usual = {name: options.get("default", ["1", 0]) for name, (_, options) in spec["required"].items()}
    graph = {"1": {"class_type": "LoadVideo", "inputs": {"file": "none.mp4"}}}
    graph["7"] = {"class_type": node, "inputs": usual | inputs}
    with pytest.raises(ValueError, match=f"node 7: {node}: {allowed}"):
        run_graph(graph, tmp_path)


def test_a_value_out_of_a_link_is_not_checked(tmp_path):
    graph = {"1": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": 20}}}
    graph["2"] = {"class_type": "T2VTurboSigmas", "inputs": {"steps": ["1", 0]}}
    assert run_graph(graph, tmp_path) == []


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_graph_that_another_program_saved(tmp_path, capsys, encoding):
    graph = {"1": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "a café"}}}
    graph["2"] = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
    (tmp_path / "graph.json").write_bytes(json.dumps(graph, ensure_ascii=False).encode(encoding))
    assert headless.main([str(tmp_path / "graph.json")]) == 0
    assert capsys.readouterr().out == "a café\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "graph.json: is not valid JSON"),
        ("[1]", "graph.json: is no graph in API format"),
        ('{"1": 5}', "graph.json: is no graph in API format"),
        ('{"1": {"class_type": 5, "inputs": {}}}', "graph.json: is no graph in API format"),
        ('{"1": {"class_type": "VAEDecode"}}', "graph.json: is no graph in API format"),
        ('{"1": {"class_type": "VAEDecode", "inputs": {"vae": ["1"]}}}', "graph.json: is no graph in API format"),
        ('{"1": {"class_type": "VAEDecode", "inputs": {"vae": [{}, 0]}}}', "graph.json: is no graph in API format"),
        ('{"1": {"class_type": "VAEDecode", "inputs": {"vae": ["1", -1]}}}', "graph.json: is no graph in API format"),
        ('{"nodes": [], "links": []}', "graph.json: is a workflow in UI format; save it with ComfyUI's Export (API)"),
        (json.dumps({
            "1": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "a"}},
            "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 3]}}}),
         "links to output 3 of node 1, which has 1"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_graph(tmp_path, capsys, text, message):
    (tmp_path / "graph.json").write_text(text)
    assert headless.main([str(tmp_path / "graph.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("graph: ") and message in line


def test_a_setting_keeps_text_text():
    graph = {"1": {"class_type": "a", "inputs": {"text": "red", "steps": 4}}}
    for text, expected in (("5", "5"), ("true", "true"), ('"blue"', "blue"), ('["2", 0]', ["2", 0]), ("a b", "a b")):
        assert override(graph, [f"1.text={text}"])["1"]["inputs"]["text"] == expected
    assert override(graph, ["1.steps=5"])["1"]["inputs"]["steps"] == 5


def test_a_saved_file_stays_inside_its_folder(tmp_path):
    with using_folders(Folders(tmp_path, tmp_path / "out")), pytest.raises(ValueError, match="leads out of"):
        SaveVideo({})((torch.zeros(1, 8, 8, 3), 8), "../elsewhere")


def test_a_wrong_setting_lists_the_right_ones(tmp_path, capsys):
    preset = ROOT / "workflows" / "api" / "text_to_video.json"
    assert headless.main([str(preset), "--out", str(tmp_path), "--set", "4.stepps=1"]) == 2
    assert "4.steps" in capsys.readouterr().err
