"""The reward models on small random networks: the face, captions, files, the mixture; oracles where there are any."""

import importlib
import importlib.util
import json
import logging
import math
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from conftest import randomize
from safetensors.torch import save_file

from t2v_turbo.core.checkpoints.networks import CheckpointError, read_state
from t2v_turbo.core.networks.config import TextConfig, VAEConfig
from t2v_turbo.core.networks.vae import VideoVAE
from t2v_turbo.core.rewards import (
    PAPER_WEIGHTS,
    REWARDS,
    RewardMixture,
    build_reward,
    checkpoints,
    load_mixture,
    load_reward,
    reward_path,
    save_reward,
)
from t2v_turbo.core.rewards.long_captions import split_caption
from t2v_turbo.core.rewards.models import preprocessing
from t2v_turbo.core.rewards.models.config import (
    BERTConfig,
    CLIPConfig,
    ImageRewardConfig,
    InternVideo2Config,
    VideoTowerConfig,
    ViTConfig,
)

WORDS = ["a", "red", "blue", "circle", "square", "moves", "left", "right", ".", ","]
LETTERS = "bcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *LETTERS, *(f"##{letter}" for letter in "a" + LETTERS)]
VIT = ViTConfig(image_size=28, patch_size=14, width=32, heads=2, layers=2)
TEXT = TextConfig(width=32, heads=2, layers=2, embed_dim=16)
BERT = BERTConfig(len(VOCABULARY), width=32, heads=2, layers=2, mlp_dim=64, max_positions=64, context_length=12)
VIDEO = VideoTowerConfig(28, 14, 32, 2, 2, mlp_dim=48, frames=4, pool_heads=2, pool_dim=16, layer_scale=1.0)
SMALL = {
    "hps": CLIPConfig(VIT, TEXT, square="pad"),
    "clip": CLIPConfig(VIT, TEXT),
    "pickscore": CLIPConfig(VIT, TEXT, square="crop", scaled=True),
    "internvideo2": InternVideo2Config(VIDEO, BERT, embed_dim=16),
    "imagereward": ImageRewardConfig(VIT, BERT, head=(16, 8, 8, 4)),
}
PROMPTS = ["a red circle moves left", "a blue square"]
LONG = " ".join(f"A red circle moves left, number {i}." for i in range(60))  # 420 words


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards")
    (path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return path


def randomized(network, seed=0):
    """Random weights; those of all norms, whatever they are called, around 1, so that no branch is switched off."""
    randomize(network, seed)
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (torch.nn.LayerNorm, torch.nn.RMSNorm)):
            torch.nn.init.uniform_(module.weight, 0.8, 1.2, generator)
    return network.requires_grad_(False)


def small(name, folder, seed=0):
    return randomized(build_reward(name, SMALL[name], folder), seed)


@pytest.fixture(params=list(SMALL))
def reward(request, folder):
    return small(request.param, folder)


def clips(batch=2, frames=6, height=32, width=40, seed=0):
    return torch.rand(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


# --- the face ----------


def test_every_reward_has_a_small_test_model():
    assert set(SMALL) == set(REWARDS)


def test_score(reward):
    frames = clips().requires_grad_()
    score = reward.score(frames, PROMPTS)
    assert score.shape == (2,)
    assert score.dtype == torch.float32
    low, high = reward.info.range
    assert ((low <= score) & (score <= high)).all()
    (gradient,) = torch.autograd.grad(score.sum(), frames)
    assert gradient.abs().sum() > 0
    assert not any(p.requires_grad for p in reward.parameters())


def test_samples_are_independent(reward):
    """Each clip is scored with its own prompt, whatever else is in the batch."""
    frames, score = clips(), reward.score(clips(), PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(reward.score(frames[i : i + 1], [prompt])[0], score[i], rtol=1e-4, atol=1e-5)
    swapped = reward.score(frames, PROMPTS[::-1])
    assert (swapped - score).abs().max() > 1e-4


def test_image_rewards_average_frames(reward):
    if reward.info.kind == "video":
        pytest.skip("a video reward sees all frames at once")
    frames = clips()
    each = torch.stack([reward.score(frames[:, [i]], PROMPTS) for i in range(frames.shape[1])])
    torch.testing.assert_close(reward.score(frames, PROMPTS), each.mean(0), rtol=1e-4, atol=1e-5)


def test_info(reward):
    info = reward.info
    assert info.name and info.unit and info.licence and info.kind in ("image", "video")
    assert info.text_limit == reward.config.text.context_length


def test_published_limits():
    limits = {name: REWARDS[name].info.text_limit for name in PAPER_WEIGHTS}
    assert limits == {"hps": 77, "clip": 77, "internvideo2": 40}
    for kind in REWARDS.values():
        assert kind.info.text_limit == kind.config.text.context_length


def test_gradient_agrees_with_finite_differences(reward):
    reward = reward.double()
    frames = (0.2 + 0.6 * clips(1, 4, 8, 10)).double().requires_grad_()
    assert reward.score(frames, PROMPTS[:1]).dtype == torch.float64
    (gradient,) = torch.autograd.grad(reward.score(frames, PROMPTS[:1]).sum(), frames)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(3):
            direction = torch.randn(frames.shape, generator=generator, dtype=torch.float64)
            up, down = (reward.score(frames + sign * 1e-5 * direction, PROMPTS[:1]).sum() for sign in (1, -1))
            expected = (gradient * direction).sum()
            torch.testing.assert_close((up - down) / 2e-5, expected, rtol=1e-5, atol=1e-9)


def test_bf16_model_gives_fp32_near_the_fp32_model(reward):
    wide = reward.score(clips(), PROMPTS)
    narrow = reward.bfloat16().score(clips(), PROMPTS)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, wide, rtol=0.1, atol=0.05)


def test_checkpointing_changes_no_number(reward):
    def gradient():
        frames = clips().requires_grad_()
        return torch.autograd.grad(reward.score(frames, PROMPTS).sum(), frames)[0]

    plain = gradient()
    reward.enable_checkpointing()
    torch.testing.assert_close(gradient(), plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_offloading(reward):
    reward.cuda().bfloat16()
    first = reward.score(clips().cuda(), PROMPTS)
    assert first.is_cuda
    reward.offload()
    reward.offload()
    assert reward.device.type == "cpu"
    again = reward.score(clips(), PROMPTS)
    assert reward.device.type == "cuda"
    assert again.device.type == "cpu"
    torch.testing.assert_close(again, first.cpu())


def test_offloading_returns_where_it_was(reward):
    reward.offload()
    assert reward._home == torch.device("cpu")
    reward.score(clips(), PROMPTS)
    assert reward._home is None


# --- frames and prompts that are not as they should be ----------

NAN = clips()
NAN[1, 2, 0, 3, 3] = math.nan


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (NAN, "NaN"),
        (torch.full((2, 1, 3, 32, 32), math.inf), "infinite"),
        (clips() * 255, r"from .* to 255: 0\.\.1 is needed"),
        (clips() * 2 - 1, r"from -1 to"),
        ((clips() * 255).byte(), "uint8.*divide"),
        (clips()[:, 0], r"\[2, 3, 32, 40\]"),
        (clips().transpose(1, 2), r"\(B, F, 3, H, W\)"),
        (clips(2, 0), "empty"),
    ],
    ids=["nan", "inf", "bytes-as-floats", "minus-one-to-one", "bytes", "no-frame-axis", "axes-swapped", "no-frames"],
)
def test_wrong_frames(folder, frames, message):
    with pytest.raises(ValueError, match=message):
        small("clip", folder).score(frames, PROMPTS)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a circle", ""], "prompt 1 is empty"),
        ([" \n", "a circle"], "prompt 0 is empty"),
        (["a circle"], "1 prompts for 2 clips"),
        ("ab", "a single string"),
    ],
)
def test_wrong_prompts(reward, prompts, message):
    with pytest.raises(ValueError, match=message):
        reward.score(clips(), prompts)


def test_overshoot_is_clamped(reward):
    frames = clips() * 1.3 - 0.15
    torch.testing.assert_close(reward.score(frames, PROMPTS), reward.score(frames.clamp(0, 1), PROMPTS))


def test_any_size_of_frames(reward):
    for height, width in ((28, 28), (28, 12), (100, 20), (9, 64)):
        assert reward.score(clips(1, 1, height, width), PROMPTS[:1]).isfinite().all()


def test_crop_takes_the_middle():
    wide = torch.rand(1, 3, 28, 48)
    assert torch.equal(preprocessing.crop(wide, 28), wide[..., 10:38])
    assert torch.equal(preprocessing.crop(wide.mT, 28), wide.mT[..., 10:38, :])
    assert torch.equal(preprocessing.crop(wide, 28, 0, 3), wide[..., 3:31])


def test_video_frames(folder):
    reward = small("internvideo2", folder)
    assert reward.chosen_frames(16) == [0, 4, 8, 12]
    assert reward.chosen_frames(6) == [0, 1, 3, 4]
    assert reward.chosen_frames(2) == [0, 0, 1, 1]
    assert reward.chosen_frames(1) == [0]
    frames = clips()
    torch.testing.assert_close(reward.score(frames, PROMPTS), reward.score(frames[:, [0, 1, 3, 4]], PROMPTS))
    backwards = reward.score(frames.flip(1), PROMPTS)
    assert (backwards - reward.score(frames, PROMPTS)).abs().max() > 1e-4


def test_one_frame_is_an_image(folder):
    reward = small("internvideo2", folder)
    frames = clips(2, 1)
    before = reward.score(frames, PROMPTS)
    with torch.no_grad():
        reward.vision.pos_embed.add_(1)
    assert torch.equal(reward.score(frames, PROMPTS), before)
    with torch.no_grad():
        reward.vision.image_pos_embed.add_(torch.randn(reward.vision.image_pos_embed.shape))
    assert (reward.score(frames, PROMPTS) - before).abs().max() > 1e-4


# --- long captions ----------


def words(text):
    return len(text.split())


def test_split_at_sentence_ends():
    caption = "One two three. Four five! Six? Seven eight nine ten."
    assert split_caption(caption, 5, words) == ["One two three. Four five!", "Six? Seven eight nine ten."]
    assert split_caption(caption, 3, words) == ["One two three.", "Four five! Six?", "Seven eight nine", "ten."]
    assert split_caption(caption, 99, words) == [caption]
    assert split_caption("3.5 apples. Then 2.", 2, words) == ["3.5 apples.", "Then 2."]
    assert split_caption("一只红色的鸟。它飞走了。", 8, len) == ["一只红色的鸟。", "它飞走了。"]
    assert "".join(split_caption("x" * 100, 7, len)) == "x" * 100


def test_long_prompt_is_scored_in_segments(reward, caplog):
    assert words(LONG) > 400
    frames = clips(2, 2)
    with caplog.at_level(logging.WARNING):
        scores = [reward.score(frames, [LONG, PROMPTS[1]]) for _ in range(2)]
    warnings = [r for r in caplog.records if "captions beyond" in r.message]
    assert len(warnings) == 1
    segments = reward.segments(LONG)
    assert len(segments) > 2
    assert " ".join(segments).split() == LONG.split()
    assert all(reward.count_tokens(segment) <= reward.info.text_limit for segment in segments)
    each = torch.stack([reward.score(frames[:1], [segment])[0] for segment in segments])
    torch.testing.assert_close(scores[0][0], each.mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores[0][1], reward.score(frames[1:], PROMPTS[1:])[0], rtol=1e-4, atol=1e-5)


def test_long_prompt_truncated(reward, caplog):
    """The end of a truncated caption does not matter; in segments it does."""
    frames, start = clips(1, 2), LONG[: len(LONG) // 2]
    ends = [f"{start} a blue square moves right.", f"{start} a red circle."]
    segmented = [reward.score(frames, [text]) for text in ends]
    assert (segmented[0] - segmented[1]).abs().max() > 1e-6
    reward.long_captions, reward._warned = "truncate", False
    with caplog.at_level(logging.WARNING):
        truncated = [reward.score(frames, [text]) for text in ends]
    assert torch.equal(*truncated)
    assert "cut off" in caplog.text


# --- files ----------


def to_published(name, reward):
    state = reward.state_dict()
    return REWARDS[name].key_map(list(state), reward.config).to_published(state)


def test_own_file(reward, folder, tmp_path, request):
    name = request.node.callspec.params["reward"]
    shutil.copy(folder / "vocab.txt", tmp_path)
    reward.info = replace(reward.info, name="mine", licence="CC0-1.0")
    save_reward(reward, name, tmp_path / "r.safetensors", training="test")
    again = load_reward(name, tmp_path / "r.safetensors", dtype=torch.float32, long_captions="truncate")
    assert (again.config, again.info, again.long_captions) == (reward.config, reward.info, "truncate")
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    assert torch.equal(again.score(clips(), PROMPTS), reward.score(clips(), PROMPTS))
    half = load_reward(name, tmp_path / "r.safetensors")
    assert half.dtype == torch.bfloat16


def test_own_file_with_merges(tmp_path):
    """The embedded family's vocabulary lies beside the weights."""
    from t2v_turbo.core.checkpoints.locations import PACKAGED_WEIGHTS
    from t2v_turbo.core.families import SHAPES

    shutil.copy(PACKAGED_WEIGHTS / "shapes" / SHAPES.text.merges, tmp_path)
    reward = randomized(build_reward("clip", CLIPConfig(VIT, SHAPES.text), tmp_path))
    save_reward(reward, "clip", tmp_path / "clip.safetensors")
    again = load_reward("clip", tmp_path / "clip.safetensors", dtype=torch.float32)
    assert again.count_tokens("a red circle") == 5
    assert torch.equal(again.score(clips(), PROMPTS), reward.score(clips(), PROMPTS))


def test_published_hps(folder, tmp_path):
    reward = small("hps", folder).half().float()
    state = {k: v.half() for k, v in to_published("hps", reward).items()}
    torch.save({"epoch": 1, "name": "x", "state_dict": state}, tmp_path / "HPS_v2.1_compressed.pt")
    again = load_reward("hps", tmp_path / "HPS_v2.1_compressed.pt", dtype=torch.float32, config=SMALL["hps"])
    assert torch.equal(again.score(clips(), PROMPTS), reward.score(clips(), PROMPTS))


def test_published_clip_is_open_clips(folder, tmp_path):
    """OpenCLIP's own class gives the same features, and its state dict loads."""
    oracle = randomized(
        open_clip.CLIP(
            TEXT.embed_dim,
            {"image_size": 28, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14},
            {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
        )
    )
    save_file(oracle.state_dict(), tmp_path / "open_clip_model.safetensors", {"format": "pt"})
    reward = load_reward("clip", tmp_path / "open_clip_model.safetensors", dtype=torch.float32, config=SMALL["clip"])
    pixels = reward.prepare(clips().flatten(0, 1))
    with torch.no_grad():
        image = oracle.encode_image(pixels, normalize=True)
        text = oracle.encode_text(open_clip.tokenize(PROMPTS), normalize=True)
    expected = (image.unflatten(0, (2, -1)) * text[:, None]).sum(-1).mean(1)
    torch.testing.assert_close(reward.score(clips(), PROMPTS), expected, rtol=1e-4, atol=1e-5)


def test_published_pickscore_is_transformers_clip(tmp_path):
    """PickScore is published with transformers' names: its class gives the same scores."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 128}
    sizes |= {"hidden_act": "gelu"}
    config = transformers.CLIPConfig(
        text_config=sizes | {"eos_token_id": 49407, "bos_token_id": 49406},
        vision_config=sizes | {"image_size": 28, "patch_size": 14},
        projection_dim=16,
    )
    oracle = randomized(transformers.CLIPModel(config))
    positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_file({k: v.contiguous() for k, v in (oracle.state_dict() | positions).items()}, tmp_path / "model.safetensors")
    small = SMALL["pickscore"]
    reward = load_reward("pickscore", tmp_path / "model.safetensors", dtype=torch.float32, config=small)
    with torch.no_grad():
        pixels = reward.prepare(clips(frames=1).flatten(0, 1))
        expected = oracle(input_ids=open_clip.tokenize(PROMPTS), pixel_values=pixels).logits_per_image.diagonal()
    torch.testing.assert_close(reward.score(clips(frames=1), PROMPTS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frames", [4, 8])
def test_published_internvideo2(folder, tmp_path, frames):
    shutil.copy(folder / "vocab.txt", tmp_path)
    reward = small("internvideo2", folder)
    extra = {
        "vision_encoder.clip_pos_embed": torch.zeros(1, 17, 32),
        "vision_encoder.clip_decoder.0.head.weight": torch.zeros(3, 3),
        "text_encoder.bert.embeddings.position_ids": torch.arange(64)[None],
        "text_encoder.bert.encoder.layer.2.crossattention.self.key.weight": torch.zeros(3, 3),
        "text_encoder.bert.encoder.layer.10.output.dense.weight": torch.zeros(3, 3),
        "text_encoder.cls.predictions.bias": torch.zeros(3),
        "temp": torch.tensor(0.07),
        "itm_head.weight": torch.zeros(2, 3),
        "further.weight": torch.zeros(2, 3),
    }
    torch.save({"module": to_published("internvideo2", reward) | extra}, tmp_path / "stage2.pt")
    config = replace(SMALL["internvideo2"], vision=replace(VIDEO, frames=frames))
    again = load_reward("internvideo2", tmp_path / "stage2.pt", dtype=torch.float32, config=config)
    if frames == VIDEO.frames:
        assert torch.equal(again.score(clips(), PROMPTS), reward.score(clips(), PROMPTS))
    else:
        assert again.chosen_frames(16) == list(range(0, 16, 2))
        assert again.score(clips(2, 8), PROMPTS).isfinite().all()


def test_published_imagereward(folder, tmp_path):
    shutil.copy(folder / "vocab.txt", tmp_path)
    reward = small("imagereward", folder)
    state = to_published("imagereward", reward)
    for key in (
        "blip.visual_encoder.patch_embed.proj.weight",
        "blip.visual_encoder.blocks.1.attn.qkv.bias",
        "blip.text_encoder.embeddings.LayerNorm.weight",
        "blip.text_encoder.encoder.layer.1.crossattention.self.key.weight",
        "mlp.layers.4.bias",
        "mlp.layers.6.weight",
        "mlp.layers.7.weight",
    ):
        assert key in state
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(64)[None]
    state["blip.vision_proj.weight"] = state["blip.text_proj.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "ImageReward.pt")
    config = SMALL["imagereward"]
    again = load_reward("imagereward", tmp_path / "ImageReward.pt", dtype=torch.float32, config=config)
    assert torch.equal(again.score(clips(), PROMPTS), reward.score(clips(), PROMPTS))


def test_imagereward_statistics(folder):
    """A score is the head's output, brought to the mean and deviation of the authors' data."""
    reward = small("imagereward", folder)
    raw = small("imagereward", folder)
    raw.config = replace(raw.config, mean=0.0, std=1.0)
    expected = (raw.score(clips(), PROMPTS) - 0.16717362830052426) / 1.0333394966054072
    torch.testing.assert_close(reward.score(clips(), PROMPTS), expected, rtol=1e-4, atol=1e-5)


def test_missing_file(monkeypatch, tmp_path):
    monkeypatch.setenv("T2V_TURBO_MODELS", str(tmp_path))
    assert reward_path("hps") == tmp_path / "rewards" / "hps" / "HPS_v2.1_compressed.pt"
    with pytest.raises(CheckpointError, match=r"HPS_v2.1_compressed.pt: no such checkpoint file"):
        load_reward("hps")


def test_wrong_files(folder, tmp_path):
    reward = small("hps", folder)
    torch.save({"state_dict": to_published("hps", reward)}, tmp_path / "hps.pt")
    for name in ("internvideo2", "imagereward"):
        with pytest.raises(CheckpointError, match=r"hps.pt: does not fit this architecture"):
            load_reward(name, tmp_path / "hps.pt", config=SMALL[name])
    with pytest.raises(CheckpointError, match=r"weights have another shape"):
        load_reward("hps", tmp_path / "hps.pt", config=replace(SMALL["hps"], vision=replace(VIT, width=64)))
    save_reward(reward, "hps", tmp_path / "hps.safetensors")
    with pytest.raises(CheckpointError, match=r"holds the reward 'hps', but 'clip' was expected"):
        load_reward("clip", tmp_path / "hps.safetensors")
    state, metadata = read_state(tmp_path / "hps.safetensors")
    strange = metadata | {"config": json.dumps({"colour": 1})}
    save_file(state, tmp_path / "strange.safetensors", strange)
    with pytest.raises(CheckpointError, match=r"strange.safetensors.*colour"):
        load_reward("hps", tmp_path / "strange.safetensors")
    (tmp_path / "half.pt").write_bytes((tmp_path / "hps.pt").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"half.pt"):
        load_reward("hps", tmp_path / "half.pt")


def test_missing_vocabulary(folder, tmp_path):
    save_reward(small("internvideo2", folder), "internvideo2", tmp_path / "v.safetensors")
    reward = load_reward("internvideo2", tmp_path / "v.safetensors")
    with pytest.raises(CheckpointError, match=r"vocab.txt: no vocabulary"):
        reward.score(clips(), PROMPTS)
    (tmp_path / "vocab.txt").write_text("red\ncircle\n")
    with pytest.raises(CheckpointError, match=r"no BERT vocabulary"):
        reward.score(clips(), PROMPTS)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"unknown reward 'nice'; known are hps"):
        load_reward("nice")
    with pytest.raises(ValueError, match=r"long_captions='cut' is unknown"):
        load_reward("hps", long_captions="cut")
    with pytest.raises(ValueError, match=r"square='fit' is unknown"):
        build_reward("clip", replace(SMALL["clip"], square="fit"))
    with pytest.raises(ValueError, match=r"gelu='fast' is unknown"):
        build_reward("internvideo2", replace(SMALL["internvideo2"], vision=replace(VIDEO, gelu="fast")))


def test_wordpiece(folder):
    words = small("internvideo2", folder).text.words
    ids, mask = words(["A RED, circle"])
    assert ids[0, :6].tolist() == [VOCABULARY.index(t) for t in ("[CLS]", "a", "red", ",", "circle", "[SEP]")]
    assert mask.sum() == 6
    assert words.count("A RED, circle") == 6
    assert words(["red " * 50])[0][0, -1] == VOCABULARY.index("[SEP]")


def test_padding_is_not_read(folder):
    """A longer text limit adds padding alone, which must not change the score."""
    reward = small("internvideo2", folder)
    before = reward.score(clips(), PROMPTS)
    reward.text.words.length = 20
    torch.testing.assert_close(reward.score(clips(), PROMPTS), before, rtol=1e-4, atol=1e-5)


# --- hpsv2 as the oracle, where it is installed ----------


@pytest.fixture(scope="module")
def hpsv2_package(tmp_path_factory):
    """The published package's own OpenCLIP, with the vocabulary that its wheel lacks, from a copy.

    Its modules are taken one by one: importing the package as a whole asks for much that scoring does not need.
    """
    spec = importlib.util.find_spec("hpsv2")
    if spec is None:
        pytest.skip("hpsv2 is not installed")
    copy = tmp_path_factory.mktemp("hpsv2") / "hps_open_clip"
    shutil.copytree(Path(spec.origin).parent / "src" / "open_clip", copy)
    shutil.copy(Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz", copy)
    package = types.ModuleType("hps_open_clip")
    package.__path__ = [str(copy)]
    sys.modules["hps_open_clip"] = package
    yield lambda name: importlib.import_module(f"hps_open_clip.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "hps_open_clip"]:
        del sys.modules[name]


def test_hpsv2_agrees(hpsv2_package, tmp_path):
    model, tokenizer = hpsv2_package("model"), hpsv2_package("tokenizer")
    oracle = randomized(
        model.CLIP(
            TEXT.embed_dim,
            model.CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=14, image_size=28),
            model.CLIPTextCfg(width=32, heads=2, layers=2),
        )
    )
    torch.save({"state_dict": oracle.state_dict()}, tmp_path / "hps.pt")
    reward = load_reward("hps", tmp_path / "hps.pt", dtype=torch.float32, config=SMALL["hps"])
    frame = clips(frames=1)
    transform = hpsv2_package("transform").image_transform(28, is_train=False, resize_longest_max=True)
    pixels = list(frame.flatten(0, 1))
    for step in transform.transforms[2:]:  # after the two that turn a picture into a tensor
        pixels = [step(image) for image in pixels]
    with torch.no_grad():
        image, text, _ = oracle(torch.stack(pixels), tokenizer.tokenize(PROMPTS))
    expected = (image * text).sum(-1)
    torch.testing.assert_close(reward.score(frame, PROMPTS), expected, rtol=1e-4, atol=1e-5)


# --- the mixture ----------


@pytest.fixture
def mixture(folder):
    return RewardMixture({name: small(name, folder, seed) for seed, name in enumerate(PAPER_WEIGHTS)})


class RecordingDecoder:
    """A real decoder that notes how many frames it was given, forward and again in the backward pass."""

    def __init__(self):
        self.vae = randomize(VideoVAE(VAEConfig(channels=(8, 8), num_res_blocks=1, norm_groups=4)), 5)
        self.vae.requires_grad_(False)
        self.seen = []

    def __call__(self, latents):
        self.seen.append(latents.shape[2])
        return self.vae.decode(latents)


@pytest.fixture
def decoder():
    return RecordingDecoder()


def latents():
    return torch.randn(2, 4, 12, 8, 8, generator=torch.Generator().manual_seed(3)).requires_grad_()


def test_mixture_score(mixture):
    frames = clips()
    result = mixture.score(frames, PROMPTS)
    assert mixture.weights == {"hps": 0.2, "clip": 0.2, "internvideo2": 0.5}
    for name, reward in mixture.rewards.items():
        assert torch.equal(result.raw[name], reward.score(frames, PROMPTS))
        assert torch.equal(result.weighted[name], PAPER_WEIGHTS[name] * result.raw[name])
    torch.testing.assert_close(result.total, sum(result.weighted.values()))
    log = result.log()
    assert log["reward/hps"] == pytest.approx(result.raw["hps"].mean().item())
    assert log["weighted_reward/internvideo2"] == pytest.approx(0.5 * log["reward/internvideo2"])
    assert log["weighted_reward/total"] == pytest.approx(result.total.mean().item())


def test_score_latents_decodes_what_is_scored(mixture, decoder):
    z = latents()
    seed = torch.Generator().manual_seed(0)
    result = mixture.score_latents(z, PROMPTS, decoder, seed, chunk=2)
    drawn = sorted(torch.randperm(12, generator=torch.Generator().manual_seed(0))[:2].tolist())
    needed = sorted({0, 3, 6, 9} | set(drawn))
    assert sum(decoder.seen) == len(needed)
    assert max(decoder.seen) <= 2
    frames = decoder.vae.decode(z)
    torch.testing.assert_close(result.raw["hps"], mixture.rewards["hps"].score(frames[:, drawn], PROMPTS))
    torch.testing.assert_close(result.raw["internvideo2"], mixture.rewards["internvideo2"].score(frames, PROMPTS))
    decoder.seen.clear()
    (gradient,) = torch.autograd.grad(result.total.sum(), z)
    assert sum(decoder.seen) == len(needed)  # computed again, not kept
    untouched = [i for i in range(12) if i not in needed]
    assert gradient[:, :, untouched].abs().max() == 0
    assert (gradient[:, :, needed].flatten(3).abs().amax((0, 1, 3)) > 0).all()
    plain = mixture.weights["internvideo2"] * mixture.rewards["internvideo2"].score(frames, PROMPTS)
    for name in ("hps", "clip"):
        plain = plain + mixture.weights[name] * mixture.rewards[name].score(frames[:, drawn], PROMPTS)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain.sum(), z)[0], rtol=1e-3, atol=1e-7)


def test_score_latents_is_reproducible(mixture, decoder):
    with torch.no_grad():
        seeds = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
        first, again, other = (mixture.score_latents(latents(), PROMPTS, decoder, seed).total for seed in seeds)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_score_latents_of_one_frame(mixture, decoder):
    result = mixture.score_latents(latents()[:, :, :1], PROMPTS, decoder)
    assert decoder.seen == [1]
    assert result.total.shape == (2,)


def test_zero_weight_is_logged_without_gradient(folder):
    rewards = {name: small(name, folder) for name in ("hps", "clip")}
    mixture = RewardMixture(rewards, {"hps": 1.0, "clip": 0.0})
    result = mixture.score(clips().requires_grad_(), PROMPTS)
    assert result.raw["hps"].requires_grad
    assert not result.raw["clip"].requires_grad
    assert result.weighted["clip"].abs().max() == 0
    assert torch.is_grad_enabled()


def test_ascent_raises_the_total(mixture, decoder):
    """What training does: a step along the gradient raises the mixture."""
    z = latents()
    before = mixture.score_latents(z, PROMPTS, decoder, torch.Generator().manual_seed(0)).total.mean()
    (gradient,) = torch.autograd.grad(before, z)
    step = z.detach() + 0.01 * gradient / gradient.norm()
    after = mixture.score_latents(step, PROMPTS, decoder, torch.Generator().manual_seed(0)).total.mean()
    assert after > before


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ({"hps": 1.0}, {}, "the same names"),
        ({"hps": 1.0, "clip": math.nan}, {}, "not finite"),
        ({"hps": 1.0, "clip": 1.0}, {"image_frames": 0}, "image_frames=0"),
    ],
)
def test_wrong_mixtures(folder, weights, options, message):
    rewards = {name: small(name, folder) for name in ("hps", "clip")}
    with pytest.raises(ValueError, match=message):
        RewardMixture(rewards, weights, **options)


def test_load_mixture(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "PACKAGED_WEIGHTS", tmp_path)
    weights = {"hps": 0.3, "internvideo2": 0.7}
    for name in weights:
        save_reward(small(name, folder), name, reward_path(name, "shapes"))
    shutil.copy(folder / "vocab.txt", tmp_path / "shapes")
    elsewhere = tmp_path / "elsewhere.safetensors"
    save_reward(small("hps", folder, seed=9), "hps", elsewhere)
    mixture = load_mixture(weights, "shapes", {"hps": elsewhere}, image_frames=3, dtype=torch.float32)
    assert mixture.image_frames == 3
    expected = 0.3 * small("hps", folder, 9).score(clips(), PROMPTS)
    expected += 0.7 * small("internvideo2", folder).score(clips(), PROMPTS)
    torch.testing.assert_close(mixture.score(clips(), PROMPTS).total, expected)
    mixture.offload()
    torch.testing.assert_close(mixture.score(clips(), PROMPTS).total, expected)
    mixture.enable_checkpointing()
    torch.testing.assert_close(mixture.score(clips(), PROMPTS).total, expected)
