"""The core against numbers of the authors' code, on small random models, and key lists of the published checkpoints.

Reads every item from the folder named by GOLDEN_DIR (default: tests/golden) and takes every size from its JSON.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from t2v_turbo.core.checkpoints.key_maps import text_key_map, unet_key_map, vae_key_map
from t2v_turbo.core.diffusion import consistency, guidance
from t2v_turbo.core.diffusion.ddim import DDIMSolver
from t2v_turbo.core.diffusion.distillation import Batch, ConsistencyDistillation
from t2v_turbo.core.diffusion.schedule import NoiseSchedule, sampling_timesteps
from t2v_turbo.core.families import VIDEOCRAFTER2
from t2v_turbo.core.motion.energies import ENERGIES, MeanSquares, TopEntries
from t2v_turbo.core.motion.probe import by_sample, motion_layers, probe_attention, read_reference
from t2v_turbo.core.motion.score import motion_score
from t2v_turbo.core.networks import layers
from t2v_turbo.core.networks.config import TextConfig, VAEConfig, unet_config_from_published
from t2v_turbo.core.networks.text import TextEncoder
from t2v_turbo.core.networks.unet import LAMBDA_UNIT, UNet3D
from t2v_turbo.core.networks.vae import VideoVAE
from t2v_turbo.core.rewards import REWARDS, build_reward
from t2v_turbo.core.rewards.models import preprocessing
from t2v_turbo.core.rewards.models.config import BERTConfig, CLIPConfig, InternVideo2Config, VideoTowerConfig, ViTConfig
from t2v_turbo.core.rewards.models.video_tower import interpolate_frames

GOLDEN = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parents[1] / "golden"))
FORWARD, GRADIENT, MOTION_SCORE = 1e-4, 5e-3, 1e-3


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


# --- motion ----------


@pytest.fixture(scope="module")
def motion(unet):
    """The item, and our reference of its latents."""
    meta, data = load_item("motion")
    reference = read_reference(unet, data["z_ref"], data["timesteps"], data["context_ref"], fps=meta["fps"])
    return meta, data, reference


def published_layers(unet):
    names = unet_key_map(unet.config, list(unet.state_dict())).names
    return [names[f"{layer}.to_q.weight"].removesuffix(".to_q.weight") for layer in motion_layers(unet)]


def test_motion_layers(unet):
    meta, _ = load_item("motion")
    assert published_layers(unet) == meta["layers"]
    with torch.device("meta"):
        full = UNet3D(VIDEOCRAFTER2.unet)
    assert published_layers(full) == meta["full_size_layers"]


def test_motion_attention(unet):
    meta, data = load_item("motion")
    layer = motion_layers(unet)[meta["layers"].index(meta["saved_attention_layer"])]
    for z, context, expected in (("z_ref", "context_ref", "attn_ref"), ("z", "context", "attn")):
        with torch.no_grad(), probe_attention(unet) as found:
            unet(data[z], data["timesteps"], data[context], meta["fps"])
        assert_near(found[layer].flatten(0, 1), data[expected])
        assert [found[name].shape[1] for name in found] == [meta["heads_by_layer"][name] for name in meta["layers"]]
        assert [found[name].shape[:3].numel() for name in found] == meta["rows_per_layer"]


def test_motion_score_of_the_released_model(unet, motion):
    meta, data, reference = motion
    found = motion_score(unet, data["z"], data["timesteps"], data["context"], reference, "mean", meta["fps"])
    assert_near(found.energy * 100, data["loss"][None])
    # Their loss has a factor of 100 inside and this scale outside; with a scale of 100 the product is LAMBDA_UNIT.
    assert_near(found.score * (meta["temp_loss_scale"] * 100 / LAMBDA_UNIT), data["score"], MOTION_SCORE)
    assert_near(found.noise, data["cond_teacher_out"])


def test_motion_score_of_the_paper(unet, motion):
    meta, data, reference = motion
    found = motion_score(unet, data["z"], data["timesteps"], data["context"], reference, "squared-norm", meta["fps"])
    assert_near(found.energy, data["paper_energy"][None])
    assert_near(found.score / LAMBDA_UNIT, data["paper_energy_grad"], MOTION_SCORE)


def test_motion_energy_of_each_layer(unet, motion):
    meta, data, reference = motion
    with torch.no_grad(), probe_attention(unet) as found:
        unet(data["z"], data["timesteps"], data["context"], meta["fps"])
    for i, (name, probabilities) in enumerate(found.items()):
        one = {name: by_sample(probabilities, len(data["z"]))}
        assert_near(ENERGIES["mean"](one, reference), data["layer_losses"][i : i + 1])
        assert_near(ENERGIES["squared-norm"](one, reference), data["paper_layer_energy"][i : i + 1])


def test_motion_of_several_entries_per_row():
    """The item's first rank asks for no entry at all, which has no mean; it is 0 there and refused here."""
    meta, data = load_item("motion")
    reference, attention = data["rank_ref"][None], data["rank_gen"][None]
    ranks = map(int, re.search(r"\(([\d, ]+)\)", meta["tensors"]["rank_losses"]["meaning"])[1].split(","))
    for rank, expected in zip(ranks, data["rank_losses"], strict=True):
        if rank:
            energy = MeanSquares(rank)
            assert_near(energy({"a": attention}, {"a": TopEntries.of(reference, rank)}), expected[None], 1e-5)
        else:
            assert expected == 0


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


def test_train_step_equation8(train_step):
    """Eq. 8 as the paper prints it, with a plus, on every sample: our combination with the gradient's sign turned."""
    meta, data, distillation, batch, _, _ = train_step
    solver, eps = distillation.solver, guidance.combine_cfg(batch.cond, batch.uncond, data["w"])
    strength = torch.full((len(eps),), meta["args"]["paper_lambda"])
    alpha_bars = solver.alpha_bar[batch.index], solver.alpha_bar_prev[batch.index]
    moved = guidance.equation8(eps, -data["paper_G"], strength, *alpha_bars)
    change = solver.step(torch.zeros_like(eps), moved - eps, batch.index)
    assert_near(data["x_prev_cfg"] + change, data["x_prev_paper"], 1e-5)


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
        assert_near(vae.model.moments(data["image"]), data["moments"])
        posterior = vae.model.encode(data["image"])
    assert_near(posterior.mean, data["mean"])
    assert_near(posterior.log_variance, data["logvar"])
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
        assert_near(vae.model.decode(data["z"]), data["decoded"])


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


# --- internvideo2 ----------


def internvideo2_config(gelu="exact"):
    meta, _ = load_item("internvideo2_weights")
    vision, text = meta["vision_config"], meta["bert_config"]
    return InternVideo2Config(
        vision=VideoTowerConfig(
            image_size=vision["img_size"],
            patch_size=vision["patch_size"],
            width=vision["embed_dim"],
            heads=vision["num_heads"],
            layers=vision["depth"],
            mlp_dim=int(vision["embed_dim"] * vision["mlp_ratio"]),
            frames=vision["num_frames"],
            pool_heads=vision["attn_pool_num_heads"],
            pool_dim=vision["clip_embed_dim"],
            gelu=gelu,
        ),
        text=BERTConfig(
            vocab_size=text["vocab_size"],
            width=text["hidden_size"],
            heads=text["num_attention_heads"],
            layers=text["fusion_layer"],
            mlp_dim=text["intermediate_size"],
            max_positions=text["max_position_embeddings"],
            context_length=load_item("internvideo2")[1]["input_ids"].shape[1],
        ),
        embed_dim=meta["embed_dim"],
    )


def load_internvideo2(gelu="exact"):
    _, weights = load_item("internvideo2_weights")
    config = internvideo2_config(gelu)
    reward = build_reward("internvideo2", config).eval()
    # The item has the names of the authors' class; their file says text_encoder.bert instead.
    published = {k.replace("text_encoder.", "text_encoder.bert."): v for k, v in weights.items()}
    mapped = REWARDS["internvideo2"].key_map(list(reward.state_dict()), config).from_published(published)
    reward.load_state_dict({k: v.float() for k, v in mapped.items()}, strict=True)
    return reward


@pytest.fixture(scope="module")
def internvideo2():
    return load_internvideo2()


def internvideo2_clips(reward, frames):
    meta, _ = load_item("internvideo2")
    crop = meta["preprocess"]
    return reward.prepare(frames, crop["crop_top"], crop["crop_left"])


def text_features(reward, data):
    hidden = reward.text(data["input_ids"], data["attention_mask"])
    return hidden, torch.nn.functional.normalize(reward.text_proj(hidden[:, 0]), dim=-1)


def test_internvideo2_vision(internvideo2):
    _, data = load_item("internvideo2")
    clips = internvideo2_clips(internvideo2, data["frames_u8"].float() / 255)
    head = data["pixel_values_head"]
    assert_near(clips[:, : head.shape[1]], head, 1e-5)
    with torch.no_grad():
        tokens = internvideo2.vision.tokens(clips)
        assert_near(tokens[:, : data["vision_embeds_head"].shape[1]], data["vision_embeds_head"])
        assert_near(internvideo2.vision.pool(tokens), data["pooled_vision"])
        assert_near(internvideo2.encode_clips(clips), data["video_features"])
        assert_near(internvideo2.encode_clips(clips[:, :1]), data["image_features"])


def test_internvideo2_text(internvideo2):
    _, data = load_item("internvideo2")
    with torch.no_grad():
        hidden, features = text_features(internvideo2, data)
    real = data["attention_mask"].bool()  # what stands at padding is never read
    assert_near(hidden[real], data["text_embeds"][real])
    assert_near(features, data["text_features"])


def test_internvideo2_score(internvideo2):
    _, data = load_item("internvideo2")
    frames = (data["frames_u8"].float() / 255).requires_grad_()
    video = internvideo2.encode_clips(internvideo2_clips(internvideo2, frames))
    score = (video * text_features(internvideo2, data)[1].detach()).sum(-1)
    assert_near(score, data["score"])
    (gradient,) = torch.autograd.grad(score.sum(), frames)
    assert_near(gradient[:, : data["grad_frames_head"].shape[1]], data["grad_frames_head"], 1e-3)


def test_internvideo2_tanh_gelu(internvideo2):
    _, data = load_item("internvideo2")
    reward = load_internvideo2("tanh")
    with torch.no_grad():
        clips = internvideo2_clips(reward, data["frames_u8"].float() / 255)
        video = reward.encode_clips(clips)
        assert_near(video, data["video_features_tanh_gelu"], 1e-5)
        assert_near((video * text_features(reward, data)[1]).sum(-1), data["score_tanh_gelu"], 1e-5)
        exact = internvideo2.encode_clips(clips)
    # The variants are so near to each other that only their distances tell them apart.
    error, distance = ((actual - data["video_features_tanh_gelu"]).abs().max() for actual in (video, exact))
    assert distance > 2 * error


def test_internvideo2_positions(internvideo2):
    _, data = load_item("internvideo2")
    config = internvideo2.config.vision
    patches = (config.image_size // config.patch_size) ** 2
    frames = (data["interp_out"].shape[1] - 1) // patches
    assert_near(interpolate_frames(data["interp_in"], frames, patches), data["interp_out"], 1e-6)
    assert_near(build_reward("internvideo2", internvideo2.config).vision.pos_embed, data["init_pos_embed"], 1e-6)


# --- rewards_preprocess ----------


def preprocess_cases():
    names = {key.split("/")[0] for key in load_item("rewards_preprocess")[1] if key.endswith("/hps_sub")}
    return sorted(names)


def preprocess_image(name):
    meta, data = load_item("rewards_preprocess")
    if name == "small":
        return data["image_u8"].float() / 255
    height, width = meta["synthetic_sizes"][name.removeprefix("synth_")]
    c = torch.arange(3, dtype=torch.float64).view(3, 1, 1)
    i = torch.arange(height, dtype=torch.float64).view(1, height, 1)
    j = torch.arange(width, dtype=torch.float64).view(1, 1, width)
    return (0.5 + 0.5 * torch.sin(0.11 * (c + 1) * i + 0.07 * (3 - c) * j + 0.003 * i * j)).float()[None]


def published_frame(pixels, shape):
    """Where the published code leaves out the bars of a frame that is long enough already, without our bars."""
    top, left = ((have - wanted) // 2 for have, wanted in zip(pixels.shape[-2:], shape[-2:]))
    return pixels[..., top : top + shape[-2], left : left + shape[-1]]


@pytest.mark.parametrize("name", preprocess_cases())
@pytest.mark.parametrize(("model", "square"), [("hps", "pad"), ("clip", "squash")])
def test_reward_preprocessing(name, model, square):
    meta, data = load_item("rewards_preprocess")
    shape, stride = meta["full_outputs"][f"{name}/{model}"]["full_shape"], meta["subsample_stride"]
    cropped = preprocessing.SQUARES[square](preprocess_image(name), 224)
    pixels = preprocessing.normalise(cropped, preprocessing.CLIP_PIXELS)
    assert REWARDS[model].config.square == square
    assert pixels.shape[-2:] == (224, 224)
    pixels = published_frame(pixels, shape)
    assert_near(pixels[..., ::stride, ::stride], data[f"{name}/{model}_sub"])
    assert_near(pixels.mean(-1), data[f"{name}/{model}_rowmean"])
    assert_near(pixels.mean(-2), data[f"{name}/{model}_colmean"])


@pytest.mark.parametrize(("model", "square"), [("hps", "pad"), ("clip", "squash")])
def test_reward_preprocessing_gradient(model, square):
    _, data = load_item("rewards_preprocess")
    image = preprocess_image("small").requires_grad_()
    pixels = preprocessing.normalise(preprocessing.SQUARES[square](image, 224), preprocessing.CLIP_PIXELS)
    (gradient,) = torch.autograd.grad((pixels * data["small/grad_weight"]).sum(), image)
    expected = data[f"small/{model}_grad"]
    stride = image.shape[-1] // expected.shape[-1]
    assert_near(gradient[..., ::stride, ::stride], expected, 1e-3)


@pytest.mark.parametrize("name", ["clip", "pickscore"])
def test_reward_score_formula(name):
    """The mean cosine over frames; with the scale of the logits where the model is published so."""
    _, data = load_item("rewards_preprocess")
    small = CLIPConfig(ViTConfig(28, 14, 32, 2, 1), TextConfig(32, 2, 1), scaled=REWARDS[name].config.scaled)
    reward = build_reward(name, small)
    reward.encode_text = lambda captions: data["score/text_features"]
    with torch.no_grad():
        reward.logit_scale.copy_(data["score/logit_scale"])
        actual = reward.compare(data["score/image_features"][None], ["any"])
        each = reward.compare(data["score/image_features"][:, None], ["any"])
    expected = data["score/score_with_logits" if small.scaled else "score/score"]
    assert_near(each, expected, 1e-5)
    assert_near(actual, expected.mean(0, keepdim=True), 1e-5)


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


@pytest.mark.parametrize(("name", "item"), [("hps", "hpsv2_vit_h14"), ("clip", "openclip_vit_h14")])
def test_full_size_clip(name, item):
    with torch.device("meta"):
        reward = build_reward(name)
    state = reward.state_dict()
    assert_both_directions(REWARDS[name].key_map(list(state), reward.config), state, manifest(item))
    assert sum(p.numel() for p in reward.parameters()) == manifest("totals")[item]["parameters"]


@pytest.mark.parametrize("frames", [4, 8])
def test_full_size_internvideo2(frames):
    kind = REWARDS["internvideo2"]
    config = replace(kind.config, vision=replace(kind.config.vision, frames=frames))
    with torch.device("meta"):
        ours = build_reward("internvideo2", config).state_dict()
    key_map = kind.key_map(list(ours), config)
    totals = manifest("totals")["internvideo2_stage2_1b_ckpt"]
    extra = totals["possible_extra_keys_ignored_by_the_loader"]
    published = manifest("internvideo2_stage2_1b_ckpt")
    there = {key: torch.empty(shape, device="meta") for key, shape in (published | extra).items()}
    assert shapes(key_map.from_published(kind.prepare(there, config))) == shapes(ours)
    # Every published key is either ours or left out by name, never both.
    back = shapes(key_map.to_published(ours))
    if frames == 8:
        assert back.pop("vision_encoder.pos_embed") == totals["pos_embed_8_frames"]
    used = {key: shape for key, shape in published.items() if not key_map.is_unused(key)}
    assert back == {key: used[key] for key in back}
    assert set(used) - set(back) == ({"vision_encoder.pos_embed"} if frames == 8 else set())
    assert all(key_map.is_unused(key) for key in extra)


def test_full_size_internvideo2_module():
    """The authors' class and their file differ in one prefix alone."""
    module, file = manifest("internvideo2_stage2_1b_module"), manifest("internvideo2_stage2_1b_ckpt")
    assert {k.replace("text_encoder.", "text_encoder.bert."): v for k, v in module.items()} == file
