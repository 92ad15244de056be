"""The core against numbers of the authors' code, on small random models, and key lists of the published checkpoints.

Reads every item from the folder named by GOLDEN_DIR (default: tests/golden) and takes every size from its JSON.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from t2v_turbo.core import consistency, guidance, layers
from t2v_turbo.core.config import (
    VIDEOCRAFTER2,
    TextConfig,
    VAEConfig,
    unet_config_from_published,
)
from t2v_turbo.core.distillation import Batch, ConsistencyDistillation
from t2v_turbo.core.keymaps import text_key_map, unet_key_map, vae_key_map
from t2v_turbo.core.schedule import NoiseSchedule, sampling_timesteps
from t2v_turbo.core.solver import DDIMSolver
from t2v_turbo.core.text import TextEncoder
from t2v_turbo.core.unet import LAMBDA_UNIT, UNet3D
from t2v_turbo.core.vae import VideoVAE

GOLDEN = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "golden"))
FORWARD, GRADIENT = 1e-4, 5e-3


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load_item(name):
    return json.loads((GOLDEN / f"{name}.json").read_text()), load_file(GOLDEN / f"{name}.safetensors")


def assert_near(actual, expected, tolerance=FORWARD):
    """Largest difference at most ``tolerance`` times the largest expected value."""
    assert actual.shape == expected.shape
    difference = (actual.double() - expected.double()).abs().max().item()
    assert difference <= tolerance * max(expected.abs().max().item(), 1e-12), difference


def load_unet(config=None):
    meta, weights = load_item("unet_weights")
    config = config or unet_config_from_published(meta["unet_config"])
    unet = UNet3D(config).eval()
    mapped = unet_key_map(config, list(unet.state_dict())).from_published(weights)
    unet.load_state_dict({k: v.float() for k, v in mapped.items()}, strict=True)
    return unet


@pytest.fixture(scope="module")
def unet():
    return load_unet()


@pytest.fixture(scope="module")
def schedule():
    return NoiseSchedule()


# --- unet ----------


def test_unet_forward(unet):
    meta, data = load_item("unet")
    x, t, context, fps = data["x"], data["timesteps"], data["context"], meta["fps"]
    omega, motion = data["w"], data["motion_gs"] * LAMBDA_UNIT
    frames = data["out_short_tc_mc"].shape[2]
    with torch.no_grad():
        assert_near(unet(x, t, context, fps), data["out_teacher"])
        assert_near(unet(x, t, context, fps, omega), data["out_tc"])
        assert_near(unet(x, t, context, fps, omega, motion), data["out_tc_mc"])
        assert_near(unet(x[:, :, :frames], t, context, fps, omega, motion), data["out_short_tc_mc"])
        fps_tensor = torch.tensor([8, 3])
        assert_near(unet(x[:, :, :frames], t, context, fps_tensor, omega, motion), data["out_fps_tensor"])


def test_unet_embeddings(unet):
    meta, data = load_item("unet")
    t, fps = data["timesteps"], meta["fps"]
    omega, motion = data["w"], data["motion_gs"] * LAMBDA_UNIT
    assert_near(layers.guidance_embedding(omega, unet.config.guidance_dim), data["timestep_cond"], 1e-6)
    assert_near(unet.embed(t, fps, None, None), data["emb_teacher"])
    assert_near(unet.embed(t, fps, omega, None), data["emb_tc"])
    assert_near(unet.embed(t, fps, omega, motion), data["emb_tc_mc"])


def test_teacher_without_condition_inputs_agrees(unet):
    """Dropping the three condition projections gives the same teacher."""
    meta, data = load_item("unet")
    teacher = UNet3D(unet.config.as_teacher()).eval()
    state = {k: v for k, v in unet.state_dict().items() if k in teacher.state_dict()}
    teacher.load_state_dict(state, strict=True)
    with torch.no_grad():
        assert_near(teacher(data["x"], data["timesteps"], data["context"], meta["fps"]), data["out_teacher"])


# --- solver ----------


def test_schedule(schedule):
    _, data = load_item("solver")
    assert torch.equal(schedule.betas, data["betas"])
    assert torch.equal(schedule.alpha_bar, data["alphas_cumprod"])
    noisy = schedule.add_noise(data["pred_x0"], data["add_noise_noise"], data["add_noise_t"])
    assert_near(noisy, data["add_noise_out"], 1e-6)


def grids():
    names = {key.split("/")[0] for key in load_item("solver")[1] if key.startswith("ddim")}
    return sorted(int(name.removeprefix("ddim")) for name in names)


@pytest.mark.parametrize("steps", grids())
def test_ddim(unet, schedule, steps):
    meta, data = load_item("solver")
    item = {key.split("/")[1]: value for key, value in data.items() if key.startswith(f"ddim{steps}/")}
    solver = DDIMSolver(schedule, steps)
    assert torch.equal(solver.timesteps, item["timesteps"])
    assert torch.equal(solver.alpha_bar, item["alpha_cumprods"])
    assert_near(solver.alpha_bar_prev, item["alpha_cumprods_prev"], 1e-7)
    assert_near(solver.step(data["pred_x0"], data["pred_noise"], item["step_index"]), item["step_out"], 1e-6)
    inverted = solver.invert_step(data["x_prev"], data["pred_noise"], item["reverse_ts"])
    assert_near(inverted, item["reverse_out"], 1e-5)

    def eps_model(x, t):
        return unet(x, t, data["loop_context"], meta["fps"])

    expected = [item[f"loop_{i}"] for i in range(sum(key.startswith("loop_") for key in item))]
    with torch.no_grad():
        trajectory = solver.invert(eps_model, data["loop_z0"], len(expected))
    for actual, wanted in zip(trajectory, expected, strict=True):
        assert_near(actual, wanted)


# --- consistency ----------


def test_sampling_timesteps():
    _, data = load_item("consistency")
    grids = {k: v for k, v in data.items() if k.startswith("timesteps/")}
    assert grids
    for name, expected in grids.items():
        steps, origin = name.removeprefix("timesteps/steps").split("_origin")
        assert torch.equal(sampling_timesteps(int(steps), int(origin)), expected)


def test_boundary_scalings():
    _, data = load_item("consistency")
    c_skip, c_out = consistency.boundary_scalings(data["scalings/t"])
    for name in ("", "_sampler"):
        torch.testing.assert_close(c_skip, data[f"scalings/c_skip{name}"], rtol=1e-5, atol=0)
        torch.testing.assert_close(c_out, data[f"scalings/c_out{name}"], rtol=1e-5, atol=0)


def test_guidance_embedding():
    _, data = load_item("consistency")
    sizes = [k.removeprefix("wemb/emb") for k in data if k.startswith("wemb/emb") and "bf16" not in k]
    assert sizes
    for size in sizes:
        actual = layers.guidance_embedding(data["wemb/w"], int(size))
        assert_near(actual, data[f"wemb/emb{size}"], 1e-6)


def test_pseudo_huber():
    _, data = load_item("consistency")
    losses = {k: v for k, v in data.items() if k.startswith("huber/loss_c")}
    assert losses
    for name, expected in losses.items():
        c = float(name.removeprefix("huber/loss_c"))
        assert_near(consistency.pseudo_huber(data["huber/pred"], data["huber/target"], c), expected, 1e-5)


def test_predicted_x0(schedule):
    _, data = load_item("consistency")
    x0 = schedule.predict_x0(data["pred/sample"], data["pred/model_output"], data["pred/t"])
    assert_near(x0, data["pred/x0_epsilon"], 1e-6)


def loops():
    return sorted(load_item("consistency")[0]["loops"])


@pytest.mark.parametrize("name", loops())
def test_consistency_sampler(unet, schedule, name):
    meta, data = load_item("consistency")
    loop = meta["loops"][name]
    item = {key.split("/")[1]: value for key, value in data.items() if key.startswith(f"{name}/")}
    if loop["use_motion_cond"]:
        net, motion = unet, {"motion": loop["motion_gs"] * LAMBDA_UNIT, "tau": loop["percentage"]}
    else:
        net, motion = _without_motion(unet), {}
    steps = loop["num_inference_steps"]
    timesteps = sampling_timesteps(steps, loop["lcm_origin_steps"])
    assert timesteps.tolist() == item["timesteps"].tolist()
    eps_model = consistency.student_model(net, item["context"], loop["guidance_scale"], loop["fps"], **motion)
    seen = []
    with torch.no_grad():
        result = consistency.sample_consistency(
            eps_model,
            item["init_latents"],
            schedule,
            renoise=lambda i: item[f"noise_{i}"],
            callback=seen.append,
            timesteps=timesteps,
        )
    assert len(seen) == steps
    for i, step in enumerate(seen):
        assert_near(step["x"], item[f"latents_{i}"])
        assert_near(step["denoised"], item[f"denoised_{i}"])
    assert_near(result, item["denoised"])


def _without_motion(unet):
    student = UNet3D(unet.config.as_student(motion=False, dim=unet.config.guidance_dim)).eval()
    student.load_state_dict({k: v for k, v in unet.state_dict().items() if k in student.state_dict()}, strict=True)
    return student


# --- train_step ----------


@pytest.fixture(scope="module")
def train_step():
    meta, data = load_item("train_step")
    args = meta["args"]
    batch = Batch(
        z=data["z_t"],
        index=data["index"],
        cond=data["cond_teacher_out"],
        uncond=data["uncond_teacher_out"],
        context=data["prompt_emb"],
        score=data["score"],
        use_motion_guide=data["use_motion_guide"],
    )
    distillation = ConsistencyDistillation(
        NoiseSchedule(),
        args["num_ddim_timesteps"],
        motion=args["motion_gs"] * LAMBDA_UNIT,
        tau=args["percentage"],
        huber_c=args["huber_c"],
        fps=args["fps"],
    )
    unet = load_unet()
    output = distillation(unet, batch, data["w"])
    output.loss.backward()
    return meta, data, distillation, batch, unet, output


def test_train_step_solution(train_step, schedule):
    meta, data, distillation, batch, _, output = train_step
    assert (distillation.lambdas(batch) > 0).tolist() == meta["motion_on"]
    assert_near(distillation.lambdas(batch) / LAMBDA_UNIT, data["motion_gs"], 1e-6)
    assert_near(output.solution, data["x_prev"], 1e-5)
    unguided = Batch(**{**vars(batch), "score": None})
    solution = distillation.solve(unguided, data["w"])
    assert_near(solution, data["x_prev_cfg"], 1e-5)
    paper = guidance.guided_solution(solution, data["paper_G"], meta["args"]["paper_lambda"])
    assert_near(paper, data["x_prev_paper"], 1e-5)


def test_train_step_forward(train_step):
    _, data, _, _, _, output = train_step
    assert_near(output.prediction, data["model_pred"])
    assert_near(output.target, data["target"])
    assert_near(output.loss, data["distill_loss"])


def test_train_step_gradients(train_step):
    meta, data, _, _, unet, _ = train_step
    names = unet_key_map(unet.config, list(unet.state_dict()))
    gradients = names.to_published({name: p.grad for name, p in unet.named_parameters()})
    assert meta["grad_params"]
    for name in meta["grad_params"]:
        assert_near(gradients[name], data[f"grad/{name}"], GRADIENT)


def test_checkpointing_changes_no_number(train_step):
    _, data, distillation, batch, unet, output = train_step
    plain = unet.conv_in.weight.grad.clone()
    unet.zero_grad()
    unet.checkpointing = True
    try:
        again = distillation(unet, batch, data["w"])
        again.loss.backward()
    finally:
        unet.checkpointing = False
    assert_near(again.loss, output.loss, 1e-6)
    assert_near(unet.conv_in.weight.grad, plain, GRADIENT)


# --- vae ----------


@pytest.fixture(scope="module")
def vae():
    meta, weights = load_item("vae_weights")
    dd = meta["ddconfig"]
    config = VAEConfig(
        channels=tuple(dd["ch"] * m for m in dd["ch_mult"]),
        num_res_blocks=dd["num_res_blocks"],
        latent_channels=meta["embed_dim"],
    )
    vae = VideoVAE(config).eval()
    mapped = vae_key_map(config, list(vae.model.state_dict())).from_published(weights)
    vae.model.load_state_dict({k: v.float() for k, v in mapped.items()}, strict=True)
    return vae


def test_vae_encode(vae):
    _, data = load_item("vae")
    with torch.no_grad():
        posterior = vae.model.encode(data["image"]).latent_dist
    assert_near(posterior.parameters, data["moments"])
    assert_near(posterior.mean, data["mean"])
    assert_near(posterior.logvar, data["logvar"])
    assert_near(posterior.std, data["std"])


def test_vae_clip_face(vae):
    """Our face: 0..1 in and out, the scale factor on the latents, the posterior's mean without a generator."""
    _, data = load_item("vae")
    image, scale = data["image"], vae.config.scale_factor
    if image.shape[-1] % vae.config.downsampling == 0:
        with torch.no_grad():
            latents = vae.encode((image[None] + 1) / 2)
        assert_near(latents, data["mean"].transpose(0, 1)[None] * scale)
    with torch.no_grad():
        frames = vae.decode(data["z"].transpose(0, 1)[None] * scale)
    assert_near(frames[0], ((data["decoded"] + 1) / 2).clamp(0, 1))


def test_vae_decode(vae):
    _, data = load_item("vae")
    with torch.no_grad():
        assert_near(vae.model.decode(data["z"]).sample, data["decoded"])


# --- text ----------


@pytest.fixture(scope="module")
def text():
    meta, weights = load_item("text_weights")
    text = TextEncoder(TextConfig(**meta["text_cfg"])).eval()
    mapped = text_key_map(list(text.tower.state_dict())).from_published(weights)
    text.tower.load_state_dict({k: v.float() for k, v in mapped.items()}, strict=True)
    return text


def test_text_context(text):
    _, data = load_item("text")
    with torch.no_grad():
        assert_near(text(data["tokens"]), data["penultimate"])
        assert_near(text(data["tokens"], skip_last=0)[0], data["last_row0"])
        assert_near(text.pooled(data["tokens"]), data["pooled"])


def test_tokenizer():
    meta, data = load_item("text")
    tokens = TextEncoder(TextConfig(width=32, heads=2, layers=1)).tokenize(meta["tokenizer_prompts"])
    assert torch.equal(tokens, data["tokenizer_ids"])


# --- full-size key lists ----------


def manifest(name):
    return json.loads((GOLDEN / "manifests" / f"{name}.json").read_text())


def shapes(state):
    return {key: list(value.shape) for key, value in state.items()}


def assert_both_directions(key_map, ours, published):
    """Our full-size parameters, renamed, are exactly the published ones, and back again."""
    assert shapes(key_map.to_published(ours)) == published
    there = {key: torch.empty(shape, device="meta") for key, shape in published.items()}
    assert shapes(key_map.from_published(there)) == shapes(ours)


@pytest.mark.parametrize("name", ["unet_vc2", "unet_no_mg", "unet_mg"])
def test_full_size_unet(name):
    config = unet_config_from_published(manifest("totals")[name]["config"])
    assert config.as_teacher() == VIDEOCRAFTER2.unet
    with torch.device("meta"):
        state = UNet3D(config).state_dict()
    assert_both_directions(unet_key_map(config, list(state)), state, manifest(name))


def test_full_size_vae():
    with torch.device("meta"):
        state = VideoVAE(VIDEOCRAFTER2.vae).model.state_dict()
    assert_both_directions(vae_key_map(VIDEOCRAFTER2.vae, list(state)), state, manifest("vae"))


def test_full_size_text():
    with torch.device("meta"):
        state = TextEncoder(VIDEOCRAFTER2.text).tower.state_dict()
    assert_both_directions(text_key_map(list(state)), state, manifest("text_encoder"))
