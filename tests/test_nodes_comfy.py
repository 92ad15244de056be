"""The pack in a real ComfyUI, on the CPU. Needs COMFYUI_PATH, a checkout, and optionally COMFYUI_PYTHON, its Python.

ComfyUI runs in processes of its own, so that the other tests stay without it: the server with the pack among its custom
nodes, and this file as a script, for what only ComfyUI's own classes can tell (``compare``).
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMFYUI = os.environ.get("COMFYUI_PATH")
PYTHON = os.environ.get("COMFYUI_PYTHON", sys.executable)
pytestmark = pytest.mark.skipif(not COMFYUI, reason="COMFYUI_PATH names no ComfyUI")
PACK = "t2v-turbo"


@pytest.fixture(scope="module")
def base(random_shapes, tmp_path_factory):
    """A ComfyUI base directory whose pack is this checkout, with random weights for the embedded family."""
    from test_nodes_rewards import with_rewards

    base = tmp_path_factory.mktemp("comfyui")
    pack = base / "custom_nodes" / PACK
    pack.mkdir(parents=True)
    for name in ("__init__.py", "core", "nodes", "web", "workflows"):
        (pack / name).symlink_to(ROOT / name)
    with_rewards(random_shapes, pack / "weights" / "shapes")
    for folder in ("models", "input", "output", "temp", "user"):
        (base / folder).mkdir()
    return base


class Server:
    """A ComfyUI server and its HTTP interface."""

    def __init__(self, base):
        self.base = base
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = base / "server.log"
        options = ["--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
        options += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK, "--disable-auto-launch"]
        options += ["--disable-api-nodes", "--database-url", f"sqlite:///{base / 'user' / 'comfyui.db'}"]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen([PYTHON, "main.py", *options], cwd=COMFYUI, stdout=log, stderr=log)

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def wait(self, seconds=300):
        for _ in range(seconds):
            assert self.process.poll() is None, self.log.read_text()
            try:
                return self.get("/system_stats")
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        raise TimeoutError(self.log.read_text())

    def run(self, graph, workflow=None):
        """Queue a graph and return its entry in the history."""
        body = {"prompt": graph, "extra_data": {"extra_pnginfo": {"workflow": workflow}}}
        request = urllib.request.Request(self.url + "/prompt", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            prompt_id = json.load(answer)["prompt_id"]
        for _ in range(240):
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.5)
        raise TimeoutError(self.log.read_text())


@pytest.fixture(scope="module")
def server(base):
    server = Server(base)
    try:
        server.wait()
        yield server
    finally:
        server.process.terminate()
        server.process.wait(30)


def preset(folder="api", name="text_to_video"):
    return json.loads((ROOT / "workflows" / folder / f"{name}.json").read_text())


def error_of(entry):
    return next(message for kind, message in entry["status"]["messages"] if kind == "execution_error")


def saved(server, entry, node="7"):
    (video,) = entry["outputs"][node]["images"]
    return server.base / "output" / video["subfolder"] / video["filename"]


def run_for_frames(server, graph, workflow=None):
    """Run a graph; its entry, and the frames (F, H, W, 3) of its video before they are encoded.

    ComfyUI's encoder makes another mp4 of the same frames at every run, which says nothing of equality.
    """
    import numpy as np
    from PIL import Image

    (images,) = (node["inputs"]["images"] for node in graph.values() if node["class_type"] == "CreateVideo")
    inputs = {"images": images, "filename_prefix": "frames"}
    entry = server.run(graph | {"frames": {"class_type": "SaveImage", "inputs": inputs}}, workflow)
    files = [server.base / "output" / file["filename"] for file in entry["outputs"]["frames"]["images"]]
    return entry, np.stack([np.asarray(Image.open(file)) for file in files])


def with_ksampler(model, **settings):
    """The preset with a native KSampler in place of ours."""
    graph = preset()
    graph["1"]["inputs"]["model"] = model
    graph["9"] = {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}}
    links = {"model": ["1", 0], "positive": ["2", 0], "negative": ["9", 0], "latent_image": ["3", 0]}
    graph["4"] = {"class_type": "KSampler", "inputs": {"seed": 0, "denoise": 1.0, **links, **settings}}
    return graph


def test_the_pack_loads_and_describes_itself(server):
    assert "IMPORT FAILED" not in server.log.read_text()
    info = server.get("/object_info")
    names = {name for name in info if name.startswith("T2VTurbo")}
    sampling = {"Loader", "EmptyLatentVideo", "Sampler", "Sigmas", "TeacherSampler"}
    motion = {"MotionPrior", "MotionGuidance", "SaveMotionPrior", "LoadMotionPrior"}
    rewards = {"RewardLoader", "RewardScorer", "BestOf"}
    assert names == {f"T2VTurbo{name}" for name in sampling | motion | rewards}
    assert info["T2VTurboRewardScorer"]["output"] == ["FLOAT", "STRING", "IMAGE"]
    assert "shapes mixture (embedded)" in info["T2VTurboRewardLoader"]["input"]["required"]["reward"][0]
    assert info["T2VTurboMotionPrior"]["output"] == ["T2V_TURBO_MOTION", "IMAGE"]
    assert info["T2VTurboLoader"]["output"] == ["MODEL", "CLIP", "VAE"]
    assert "shapes (embedded)" in info["T2VTurboLoader"]["input"]["required"]["model"][0]


def test_the_templates_and_the_help_pages_are_served(server):
    names = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
    assert sorted(server.get("/workflow_templates")[PACK]) == names
    for name in names:
        assert server.get(f"/api/workflow_templates/{PACK}/{name}.json") == preset("", name)
    for page in (ROOT / "web" / "docs").glob("*.md"):
        with urllib.request.urlopen(f"{server.url}/extensions/{PACK}/docs/{page.name}", timeout=30) as answer:
            assert answer.read() == page.read_bytes()


def test_the_preset_makes_a_video_that_carries_its_graph(server):
    from t2v_turbo.core.video import read_metadata, read_video

    path = saved(server, server.run(preset(), preset("")))
    assert read_video(path).shape == (8, 64, 64, 3)
    tags = read_metadata(path)
    assert json.loads(tags["prompt"]).keys() == preset().keys() and json.loads(tags["workflow"]) == preset("")


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("shapes (embedded)", {"sampler_name": "lcm", "scheduler": "simple", "cfg": 1.0, "steps": 4}),
        ("shapes teacher (embedded)", {"sampler_name": "ddim", "scheduler": "ddim_uniform", "cfg": 7.5, "steps": 6}),
    ],
)
def test_native_ksampler_takes_student_and_teacher(server, model, settings):
    from t2v_turbo.core.video import read_video

    assert read_video(saved(server, server.run(with_ksampler(model, **settings)))).shape == (8, 64, 64, 3)


def test_a_teacher_in_our_sampler_gets_a_clear_error(server):
    graph = preset()
    graph["1"]["inputs"]["model"] = "shapes teacher (embedded)"
    error = error_of(server.run(graph))
    assert error["node_type"] == "T2VTurboSampler" and "Load a student, or use KSampler" in error["exception_message"]


def write_reference(server):
    """A video in the input folder."""
    import numpy as np

    from t2v_turbo.core.video import write_video

    clip = np.random.default_rng(0).integers(0, 255, (10, 48, 80, 3), dtype=np.uint8)
    write_video(server.base / "input" / "reference.mp4", clip, 8)


def test_a_second_run_is_cached_and_a_freed_model_is_loaded_anew(server):
    def cached(entry):
        return next(message["nodes"] for kind, message in entry["status"]["messages"] if kind == "execution_cached")

    server.run(preset())
    assert sorted(cached(server.run(preset()))) == sorted(preset())
    body = json.dumps({"unload_models": True, "free_memory": True}).encode()
    with urllib.request.urlopen(urllib.request.Request(server.url + "/free", body), timeout=30):
        pass
    time.sleep(2)  # for the queue's worker to wake up
    assert cached(server.run(preset())) == []
    log = server.log.read_text()
    assert all(f"Requested to load {name}\n" in log for name in ("TextEncoder", "BaseModel", "VideoVAE"))
    assert "ModuleDict" not in log and "Traceback" not in log.split("got prompt")[0]


# Native nodes that reach into an image network, and their inputs.
UNHEEDED = {
    "HyperTile": {"tile_size": 256, "swap_size": 2, "max_depth": 0, "scale_depth": False},
    "TomePatchModel": {"ratio": 0.3},
    "FreeU_V2": {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2},
    "PerturbedAttentionGuidance": {"scale": 3.0},
    "SelfAttentionGuidance": {"scale": 0.5, "blur_sigma": 2.0},
    "EasyCache": {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False},
}


@pytest.mark.parametrize("name", UNHEEDED)
def test_a_patch_that_would_have_no_effect_is_refused_in_a_native_ksampler(server, name):
    settings = {"sampler_name": "ddim", "scheduler": "ddim_uniform", "cfg": 7.5, "steps": 2}
    graph = with_ksampler("shapes teacher (embedded)", **settings)
    graph["20"] = {"class_type": name, "inputs": {"model": ["1", 0]} | UNHEEDED[name]}
    graph["4"]["inputs"]["model"] = ["20", 0]
    error = error_of(server.run(graph))
    assert error["node_type"] == "KSampler" and "reaches into the layers of an image" in error["exception_message"]


def test_a_node_that_wants_another_clip_or_vae_gets_a_sentence(server):
    graph = preset()
    graph["20"] = {"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["1", 1], "stop_at_clip_layer": -2}}
    graph["2"]["inputs"]["clip"] = ["20", 0]
    assert "has no 'clone', which the node asks for" in error_of(server.run(graph))["exception_message"]
    graph = preset()
    graph["20"] = {"class_type": "VAESave", "inputs": {"vae": ["1", 2], "filename_prefix": "vae"}}
    assert "has no 'get_sd', which the node asks for" in error_of(server.run(graph))["exception_message"]


def motion_graph(server, **sampler):
    """The motion preset in few evaluations, with a reference video in the input folder."""
    write_reference(server)
    graph = preset(name="motion_transfer")
    graph["8"]["inputs"] |= {"method": "noise", "steps": 3}
    graph["10"]["inputs"] |= {"steps": 3, "seed": 1} | sampler
    return graph


def previewed_size(server, entry, node):
    """Width and height of the one picture of a Preview Image."""
    from PIL import Image

    (picture,) = entry["outputs"][node]["images"]
    with Image.open(server.base / "temp" / picture["subfolder"] / picture["filename"]) as image:
        return image.size


def test_the_motion_preset_follows_a_native_video(server):
    from t2v_turbo.core.video import read_video

    workflow = preset("", "motion_transfer")
    entry, guided = run_for_frames(server, motion_graph(server, motion_strength=3000.0), workflow)
    assert min(previewed_size(server, entry, "9")) > 100
    assert read_video(saved(server, entry, "13")).shape == guided.shape == (8, 64, 64, 3)
    _, plain = run_for_frames(server, motion_graph(server, motion_strength=0.0))
    assert (guided != plain).any()


def test_a_saved_motion_is_offered_and_guides_a_native_ksampler(server):
    graph = motion_graph(server)
    inputs = {"motion": ["8", 0], "filename_prefix": "motion/a"}
    graph["20"] = {"class_type": "T2VTurboSaveMotionPrior", "inputs": inputs}
    reading = {node: graph[node] for node in ("1", "4", "5", "6", "7", "8", "20")}
    (file,) = server.run(reading)["outputs"]["20"]["motion"]
    assert (server.base / "output" / "motion" / file["filename"]).is_file()
    offered = server.get("/object_info/T2VTurboLoadMotionPrior")["T2VTurboLoadMotionPrior"]["input"]["required"]
    assert offered["motion"][0] == [file["filename"]]
    settings = {"sampler_name": "ddim", "scheduler": "ddim_uniform", "cfg": 7.5, "steps": 4}
    graph = with_ksampler("shapes teacher (embedded)", **settings)
    _, plain = run_for_frames(server, graph)
    graph["20"] = {"class_type": "T2VTurboLoadMotionPrior", "inputs": {"motion": file["filename"]}}
    inputs = {"model": ["1", 0], "motion": ["20", 0], "motion_strength": 3000.0, "tau": 1.0}
    graph["21"] = {"class_type": "T2VTurboMotionGuidance", "inputs": inputs}
    graph["4"]["inputs"]["model"] = ["21", 0]
    assert (run_for_frames(server, graph)[1] != plain).any()


def test_the_score_preset_scores_a_native_video(server):
    from t2v_turbo.nodes.runtime.score_plot import HEIGHT, WIDTH

    write_reference(server)
    entry = server.run(preset(name="score_video"), preset("", "score_video"))
    (table,) = entry["outputs"]["5"]["text"]
    assert table.startswith("| reward | score | weight | unit |") and len(table.splitlines()) == 6
    assert previewed_size(server, entry, "6") == (WIDTH, 3 * HEIGHT)
    graph = preset(name="score_video")
    graph["4"]["inputs"]["prompt"] = " "
    error = error_of(server.run(graph))
    assert error["node_type"] == "T2VTurboRewardScorer" and "prompt: is empty" in error["exception_message"]


def best_of_graph(**changes):
    graph = preset(name="best_of_n")
    graph["4"]["inputs"]["clips"], graph["5"]["inputs"]["steps"] = 3, 1
    graph["5"]["inputs"] |= changes
    return graph


def test_the_best_of_preset_saves_the_clip_that_its_table_names(server):
    entry, chosen = run_for_frames(server, best_of_graph(), preset("", "best_of_n"))
    (table,) = entry["outputs"]["11"]["text"]
    rows = table.splitlines()[2:]
    (best,) = [i for i, row in enumerate(rows) if "**" in row]
    assert len(rows) == 3 and len({row.split(" | ")[1] for row in rows}) == 3
    graph = best_of_graph(seed=best)
    graph["4"]["inputs"]["clips"] = 1
    alone, again = run_for_frames(server, graph)
    assert (again == chosen).all()
    assert alone["outputs"]["11"]["text"][0].splitlines()[2].split(" | ")[1] == rows[best].split(" | ")[1]


def test_a_native_ksampler_makes_several_clips_too(server):
    graph = best_of_graph()
    links = {"model": ["1", 0], "positive": ["3", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    settings = {"sampler_name": "lcm", "scheduler": "simple", "cfg": 1.0, "steps": 1, "seed": 0, "denoise": 1.0}
    graph["5"] = {"class_type": "KSampler", "inputs": links | settings}
    (table,) = server.run(graph)["outputs"]["11"]["text"]
    rows = table.splitlines()[2:]
    assert len(rows) == 3 and len({row.strip("*").split(" | ")[1] for row in rows}) == 3


def test_native_samplers_and_nodes_agree_with_ours(base):
    """See ``compare``, which runs inside ComfyUI's Python."""
    result = subprocess.run(
        [PYTHON, str(Path(__file__).resolve()), str(base / "custom_nodes" / PACK)],
        capture_output=True,
        text=True,
        cwd=COMFYUI,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["lcm"] < 1e-5 and found["ddim"] < 1e-5 and found["cfg changes"] > 1e-3
    assert found["one tile"] < 1e-5 < found["tiled"] and found["round trip shape"] == [8, 4, 16, 16]
    assert found["cancelled"] == ["sampling", "decoding", "decoding in tiles", "encoding", "encoding in tiles"]
    assert "another kind of model (UNetModel)" in found["foreign"]
    assert found["passed over"] == {
        "RescaleCFG": "sampler_cfg_function",
        "ModelSamplingDiscrete": "model_sampling",
        "a patch": "patches",
        "a wrapper": "predict_noise",
    }
    assert found["weights patched"] > 1e-3
    assert not found["inference weights"] and found["moves whole"] and found["freed"]
    assert found["float8 asked for"] == "torch.float32"
    assert found["motion"] < 1e-4 and found["motion changes"] > 1e-3
    assert len(found["energies"]) == 5
    assert all(guided < plain for guided, plain in found["energies"].values()), found["energies"]


# --- inside ComfyUI's Python ----------


def compare(pack_folder):
    """Our nodes beside ComfyUI's classes, in one process: relative differences and messages, as JSON."""
    import importlib.util

    sys.path.insert(0, os.getcwd())
    from comfy.cli_args import args

    args.cpu = True
    import comfy.model_management  # noqa: F401 - by which the pack knows where it is
    import torch

    spec = importlib.util.spec_from_file_location(
        "t2v_turbo", f"{pack_folder}/__init__.py", submodule_search_locations=[pack_folder]
    )
    pack = sys.modules["t2v_turbo"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)

    def run(name, **inputs):
        return pack.NODE_CLASS_MAPPINGS[name]().execute(**inputs)

    found = {}
    with torch.inference_mode():
        model, clip, vae = run("T2VTurboLoader", model="shapes (embedded)", precision="auto")
        ((latent,),) = run("T2VTurboEmptyLatentVideo", width=64, height=64, frames=8)
        positive = encode(clip, "a red circle moves right")
        inputs = {"positive": positive, "latent": latent, "seed": 5, "steps": 4, "guidance": 7.5, "fps": 0}
        ours = run("T2VTurboSampler", model=model, **inputs)[0]["samples"]
        (sigmas,) = run("T2VTurboSigmas", steps=4)
        found["lcm"] = difference(native_lcm(model, positive, sigmas, seed=5), ours)
        found["ddim"], found["cfg changes"] = compare_ddim(run)
        found |= compare_vae(vae) | compare_motion(run)
        parameters = model.model.diffusion_model.parameters()
        found["inference weights"] = any(parameter.is_inference() for parameter in parameters)
        found["foreign"] = message_of(lambda: run("T2VTurboSampler", model=image_model(), **inputs))
        found["moves whole"] = moves_whole(run("T2VTurboLoader", model="shapes (embedded)", precision="auto")[0])
        found["passed over"] = passed_over(model, lambda changed: run("T2VTurboSampler", model=changed, **inputs))
        patched = run("T2VTurboSampler", model=with_patched_weight(model), **inputs)[0]["samples"]
        found["weights patched"] = difference(patched, ours)
        images = torch.rand(2, 128, 128, 3)
        work = {
            "sampling": lambda: run("T2VTurboSampler", model=model, **inputs),
            "decoding": lambda: vae.decode(ours),
            "decoding in tiles": lambda: vae.decode_tiled(ours, tile_x=4, tile_y=4, overlap=1),
            "encoding": lambda: vae.encode(images),
            "encoding in tiles": lambda: vae.encode_tiled(images, tile_x=64, tile_y=64, overlap=16),
        }
        found["cancelled"] = [name for name, function in work.items() if is_cancelled(function)]
        found["freed"] = is_freed(run)
        args.fp8_e4m3fn_unet = True
        model, _, _ = run("T2VTurboLoader", model="shapes (embedded)", precision="auto")
        found["float8 asked for"] = str(model.model_dtype())
    print(json.dumps(found))


def is_freed(run):
    """Whether nothing holds the three networks any more, once they were used and ComfyUI unloads its models."""
    import gc
    import weakref

    import comfy.model_management as management

    def use():
        model, clip, vae = run("T2VTurboLoader", model="shapes (embedded)", precision="auto")
        ((latent,),) = run("T2VTurboEmptyLatentVideo", width=64, height=64, frames=8)
        inputs = {"positive": encode(clip, "a red circle"), "latent": latent, "steps": 1, "guidance": 7.5, "fps": 0}
        vae.encode(vae.decode(run("T2VTurboSampler", model=model, seed=0, **inputs)[0]["samples"]))
        return [weakref.ref(network) for network in (model.model, clip.text, vae.vae)]

    networks = use()
    management.unload_all_models()
    gc.collect()
    return not any(network() for network in networks) and not management.current_loaded_models


def is_cancelled(function):
    """Whether some work hears the Cancel button."""
    import comfy.model_management as management

    management.interrupt_current_processing()
    try:
        function()
    except management.InterruptProcessingException:
        return True


def passed_over(model, sample):
    """What our sampler says that it would pass over of the changes that native nodes make of a MODEL."""
    import comfy_extras.nodes_model_advanced as advanced
    from comfy.patcher_extension import WrappersMP

    patched, wrapped = model.clone(), model.clone()
    patched.set_model_attn1_patch(print)
    wrapped.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "cache", print)
    changed = {
        "RescaleCFG": advanced.RescaleCFG().patch(model, 0.7)[0],
        "ModelSamplingDiscrete": advanced.ModelSamplingDiscrete().patch(model, "lcm", False)[0],
        "a patch": patched,
        "a wrapper": wrapped,
    }
    told = {name: message_of(lambda changed=changed: sample(changed)) for name, changed in changed.items()}
    return {name: re.search(r"how it samples \((.*)\), which has no effect", text)[1] for name, text in told.items()}


def with_patched_weight(model):
    """A MODEL with one weight changed, as a LoRA does it."""
    import torch

    key = next(key for key in model.model_state_dict() if key.endswith("attn1.to_q.weight"))
    patched = model.clone()
    patched.add_patches({key: (torch.ones_like(model.model_state_dict()[key]),)}, 1.0)
    return patched


def encode(clip, text):
    import nodes

    return nodes.CLIPTextEncode().encode(clip, text)[0]


def difference(a, b):
    return float((a - b).norm() / b.norm())


def message_of(function):
    try:
        function()
    except ValueError as error:
        return str(error)


def native_lcm(model, positive, sigmas, seed):
    """ComfyUI's lcm sampler on the noise that our sampler draws for the seed."""
    import comfy.sample
    import comfy.samplers
    import torch

    generator = torch.Generator().manual_seed(seed)

    def frames():
        return torch.randn(8, 4, 8, 8, generator=generator)

    noise = frames()
    sampler = comfy.samplers.ksampler("lcm", {"noise_sampler": lambda sigma, sigma_next: frames()})
    return comfy.sample.sample_custom(
        model, noise, 1.0, sampler, sigmas, positive, positive, torch.zeros_like(noise), seed=seed
    )


def compare_ddim(run):
    """ComfyUI's euler, which is DDIM, with CFG on the teacher, against the core's sampler on the core's grid."""
    import comfy.sample
    import comfy.samplers
    import torch

    from t2v_turbo.core.diffusion.ddim import sample_ddim
    from t2v_turbo.core.diffusion.guidance import cfg_model
    from t2v_turbo.core.diffusion.schedule import NoiseSchedule, solver_grid

    model, clip, _ = run("T2VTurboLoader", model="shapes teacher (embedded)", precision="auto")
    positive, negative = encode(clip, "a red circle"), encode(clip, "")
    schedule = NoiseSchedule()
    noise = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    alpha_bar = schedule.alpha_bar[solver_grid(10).flip(0)]
    sigmas = torch.cat([(1 / alpha_bar - 1).sqrt(), torch.zeros(1)])

    def native(cfg):
        sampler = comfy.samplers.ksampler("euler")
        return comfy.sample.sample_custom(
            model, noise, cfg, sampler, sigmas, positive, negative, torch.zeros_like(noise), seed=0
        )

    network = model.model.diffusion_model
    predict = cfg_model(network.unet, positive[0][0], negative[0][0], 7.5, fps=8)
    ours = sample_ddim(predict, noise.transpose(0, 1)[None], schedule, 10)[0].transpose(0, 1)
    ours = ours / network.latent_scale
    return difference(native(7.5), ours), difference(native(1.0), ours)


def compare_motion(run):
    """A guided MODEL in native samplers: beside our teacher sampler, and the energy where the guidance ends."""
    import comfy.sample
    import comfy.samplers
    import torch

    from t2v_turbo.core.diffusion.schedule import NoiseSchedule, draw_noise, solver_grid
    from t2v_turbo.core.motion.energies import find_energy
    from t2v_turbo.core.motion.probe import by_sample, probe_attention
    from t2v_turbo.core.networks.layers import unfold_frames

    steps, schedule = 5, NoiseSchedule()
    model, clip, vae = run("T2VTurboLoader", model="shapes teacher (embedded)", precision="auto")
    positive, negative = encode(clip, "a red circle"), encode(clip, "")
    images = torch.rand(8, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    ((latent,),) = run("T2VTurboEmptyLatentVideo", width=64, height=64, frames=8)
    reading = {"method": "noise", "inversion_steps": "25", "steps": steps, "tau": 0.5, "timestep": -1, "seed": 0}
    prior, _ = run(
        "T2VTurboMotionPrior", model=model, vae=vae, positive=negative, images=images, latent=latent, **reading
    )
    motion = {"motion": prior, "motion_strength": 3000.0, "tau": 0.5}
    (guided,) = run("T2VTurboMotionGuidance", model=model, **motion)
    inputs = {"model": model, "positive": positive, "negative": negative, "latent": latent, "seed": 5, "steps": steps}
    ours, plain = (run("T2VTurboTeacherSampler", **inputs, cfg=7.5, fps=0, **m)[0]["samples"] for m in (motion, {}))
    noise = draw_noise((1, 4, 8, 8, 8), torch.Generator().manual_seed(5))[0].transpose(0, 1)
    timesteps = solver_grid(steps).flip(0)
    sigmas = torch.cat([(1 / schedule.alpha_bar[timesteps] - 1).sqrt(), torch.zeros(1)])

    def native(model, name, callback=None):
        return comfy.sample.sample_custom(
            model, noise, 7.5, comfy.samplers.sampler_object(name), sigmas, positive, negative, torch.zeros_like(noise),
            callback=callback, seed=0,
        )  # fmt: skip

    def energy(model, name):
        """Of the frames that the first unguided step begins with."""
        at, begins = len(prior.timesteps), {}
        native(model, name, lambda step, denoised, x, total: begins.setdefault(step, x.clone()))
        x = unfold_frames(begins[at] / (1 + sigmas[at] ** 2).sqrt(), 8)
        unet = model.model.diffusion_model.unet
        with probe_attention(unet) as found:
            unet(x, timesteps[at, None], positive[0][0])
        attention = {layer: by_sample(part, 1) for layer, part in found.items()}
        return float(find_energy("mean")(attention, prior.at(int(timesteps[at]))))

    samplers = ("euler", "euler_ancestral", "heun", "dpmpp_2m", "uni_pc")
    return {
        "motion": difference(native(guided, "euler"), ours),
        "motion changes": difference(plain, ours),
        "energies": {name: (energy(guided, name), energy(model, name)) for name in samplers},
    }


def moves_whole(model):
    """Whether a model moves whole, as gradients need it, even where ComfyUI allows it one byte; to the meta device."""
    import torch

    model.load(torch.device("meta"), lowvram_model_memory=1)
    moved = all(weight.is_meta and not weight.is_inference() for weight in model.model.parameters())
    return moved and model.partially_unload(torch.device("cpu"), 1) == 0


def compare_vae(vae):
    import torch

    import nodes

    latent = {"samples": torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0))}
    (images,) = nodes.VAEDecode().decode(vae, latent)
    whole, tiled = (nodes.VAEDecodeTiled().decode(vae, latent, tile_size=size, overlap=16)[0] for size in (512, 64))
    (encoded,) = nodes.VAEEncode().encode(vae, images)
    (in_tiles,) = nodes.VAEEncodeTiled().encode(vae, images, tile_size=64, overlap=16)
    assert in_tiles["samples"].shape == encoded["samples"].shape
    return {
        "one tile": difference(whole, images),
        "tiled": difference(tiled, images),
        "round trip shape": list(encoded["samples"].shape),
    }


def image_model():
    """A small Stable Diffusion UNet of ComfyUI's own, as its checkpoint loader would wrap it."""
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    config = comfy.supported_models.SD15(
        {
            "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1], "num_res_blocks": [1],
            "context_dim": 64, "num_heads": 2, "transformer_depth": [1], "transformer_depth_output": [1, 1],
            "transformer_depth_middle": 1, "use_spatial_transformer": True, "image_size": 8,
            "use_linear_in_transformer": False,
        }
    )
    return comfy.model_patcher.ModelPatcher(config.get_model({}), torch.device("cpu"), torch.device("cpu"))


if __name__ == "__main__":
    compare(sys.argv[1])
