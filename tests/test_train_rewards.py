"""Distillation with rewards: which samples, which weights, when; guards; the commands that measure cost and subsets."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import randomize
from omegaconf import OmegaConf
from test_train_distill import assert_same, weights

from t2v_turbo.core.checkpoints.locations import PACKAGED_WEIGHTS
from t2v_turbo.core.checkpoints.networks import CheckpointError, load_vae, save_text, save_unet, save_vae
from t2v_turbo.core.device import DTYPES
from t2v_turbo.core.diffusion.distillation import Batch, ConsistencyDistillation
from t2v_turbo.core.diffusion.schedule import NoiseSchedule
from t2v_turbo.core.families import FAMILIES, SHAPES
from t2v_turbo.core.networks.config import TextConfig, UNetConfig, VAEConfig
from t2v_turbo.core.networks.text import TextEncoder
from t2v_turbo.core.networks.unet import UNet3D
from t2v_turbo.core.networks.vae import VideoVAE
from t2v_turbo.core.pipeline import load
from t2v_turbo.core.rewards import RewardMixture, build_reward, load_reward, save_reward
from t2v_turbo.core.rewards.loss import Guards, RewardLoss, change, teacher_distance
from t2v_turbo.core.rewards.models.config import BERTConfig, CLIPConfig, InternVideo2Config, VideoTowerConfig, ViTConfig
from t2v_turbo.core.video import from_uint8
from t2v_turbo.train import cli, distill, distill_rewards
from t2v_turbo.train.config import RewardConfig, load_config
from t2v_turbo.train.data.reader import RecordReader, RecordSet, iterate_batches
from t2v_turbo.train.data.records import use_reward
from t2v_turbo.train.experiments import reward_ablation, reward_cost
from t2v_turbo.train.memory import LiveTensors
from t2v_turbo.train.shapes.evaluation import sample_clips
from t2v_turbo.train.shapes.training.rewards import write_vocabulary
from t2v_turbo.train.shapes.world.captions import evaluation_prompts
from t2v_turbo.train.shapes.world.dataset import write_dataset
from t2v_turbo.train.training.trainer import read_stats, step_generator

VIT = ViTConfig(image_size=32, patch_size=16, width=32, heads=2, layers=1)
TEXT = TextConfig(width=32, heads=2, layers=1, vocab_size=955, embed_dim=16, merges="merges.txt.gz")
TOWER = VideoTowerConfig(32, 16, 32, 2, 1, mlp_dim=48, frames=2, pool_heads=2, pool_dim=16, layer_scale=1.0)
TINY = replace(
    SHAPES, frames=4, height=32, width=32, text=TEXT,
    unet=UNetConfig(model_channels=16, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(2, 1),
                    head_channels=8, context_dim=32, temporal_dropout=0.0, norm_groups=4),
    vae=VAEConfig(channels=(8, 8, 8, 16), num_res_blocks=1, norm_groups=4),
)  # fmt: skip
ALL = "hps,clip,internvideo2"
ALL_NAMES = ALL.split(",")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """A smaller network and smaller clips under the embedded family's name, for speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "shapes", TINY)
        yield TINY


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A folder with the family's files and three small reward models, of random weights."""
    folder = tmp_path_factory.mktemp("family")
    shutil.copy(PACKAGED_WEIGHTS / "shapes" / TEXT.merges, folder)
    save_unet(randomize(UNet3D(TINY.unet), 0), folder / "teacher.safetensors")
    save_unet(randomize(UNet3D(TINY.unet.as_student()), 1), folder / "student.safetensors")
    save_vae(randomize(VideoVAE(TINY.vae), 2), folder / "vae.safetensors")
    save_text(randomize(TextEncoder(TINY.text, folder / TEXT.merges), 3), folder / "text.safetensors")
    bert = BERTConfig(write_vocabulary(folder / "vocab.txt"), 32, 2, 1, mlp_dim=48, max_positions=40)
    configs = {
        "hps": CLIPConfig(VIT, TEXT, square="pad"),
        "clip": CLIPConfig(VIT, TEXT),
        "internvideo2": InternVideo2Config(TOWER, bert, embed_dim=16),
    }
    for seed, (name, config) in enumerate(configs.items()):
        save_reward(randomize(build_reward(name, config, folder), seed), name, folder / f"reward_{name}.safetensors")
    return folder


def make_records(root, family, style, seed):
    """Two records of each of 4 rendered clips."""
    clips = write_dataset(root / f"clips-{style}", 4, seed, style)
    given = [f"videos={clips}", f"records={root}/set-{style}", f"caption={style}", f"model.folder={family}"]
    assert cli.main(["preprocess", *given, "precision=no", "model.device=cpu", "records_per_clip=2"]) == 0


@pytest.fixture(scope="module")
def records(tmp_path_factory, family):
    root = tmp_path_factory.mktemp("records")
    for style in ("short", "dense"):
        make_records(root, family, style, seed=0)
    return f"{root}/set-*"


@pytest.fixture(scope="module")
def held_out(tmp_path_factory, family):
    root = tmp_path_factory.mktemp("held-out")
    make_records(root, family, "short", seed=9)
    return f"{root}/set-short"


@pytest.fixture
def config(records, family, tmp_path):
    return load_config(
        "distill",
        "shapes",
        [f"records={records}", f"out={tmp_path}/run", f"model.folder={family}", "model.device=cpu", "precision=no",
         "steps=2", "batch_size=4", "warmup=0", "decay=0", "log_every=1", "save_every=2", "ema_decay=0.9",
         f"rewards.models={ALL}", "export_dtype=fp32"],
    )  # fmt: skip


def rewarded(config, **settings):
    return replace(config, rewards=replace(config.rewards, **settings))


# --- the reward part of a step, alone ----------


@pytest.fixture
def part(config):
    return distill_rewards.RewardPart(config.rewards, config.model, TINY)


@pytest.fixture
def step():
    """A prediction of 4 samples and what belongs to it; the second and the third are flagged."""
    draws = torch.randn(2, 4, 4, 4, 4, 4, generator=seeded(5))
    return {
        "prediction": draws[0].requires_grad_(),
        "captions": ["a long story", "a red circle moves left", "a blue cross", "another story"],
        "use_reward": torch.tensor([False, True, True, False]),
        "teacher": draws[1],
        "alpha_bar": torch.tensor([0.9, 0.5, 0.1, 0.3]),
        "step": 0,
    }


def test_flagged_samples_alone(part, step):
    found = part.loss(**step, generator=seeded())
    rows = [1, 2]
    clips, captions = step["prediction"][rows], [step["captions"][i] for i in rows]
    score = part.mixture.score_latents(clips, captions, part.vae.decode, seeded())
    assert found["reward_loss"].item() == pytest.approx(-score.total.mean().item(), rel=1e-5)
    assert found["reward_samples"] == 2
    (gradient,) = torch.autograd.grad(found["reward_loss"], step["prediction"])
    assert (gradient.flatten(1).abs().amax(1) > 0).tolist() == [False, True, True, False]


def test_frames_are_drawn_from_the_generator(part, step):
    scores = [part.loss(**step, generator=seeded(seed))["reward/clip"].item() for seed in (0, 0, 1, 2, 3)]
    assert scores[0] == scores[1] and len(set(scores)) > 1


def test_at_most_so_many_samples(part, step):
    part.loss.limit = 1
    found = part.loss(**step, generator=seeded())
    (gradient,) = torch.autograd.grad(found["reward_loss"], step["prediction"])
    assert found["reward_samples"] == 1
    assert (gradient.flatten(1).abs().amax(1) > 0).tolist() == [False, True, False, False]
    assert not any(name.startswith("reward_spread") for name in found)  # of one sample there is none


def test_no_sample_is_flagged(part, step):
    step["use_reward"] = torch.zeros(4, dtype=torch.bool)
    assert part.loss(**step, generator=seeded()) == {"reward_loss": 0, "reward_samples": 0}


def test_raw_and_weighted(part, step):
    found = part.loss(**step, generator=seeded())
    for name, weight in {"hps": 0.2, "clip": 0.2, "internvideo2": 0.5}.items():
        assert found[f"weighted_reward/{name}"].item() == pytest.approx(weight * found[f"reward/{name}"].item())
    assert found["reward_loss"].item() == pytest.approx(-found["weighted_reward/total"].item(), rel=1e-5)


def test_ramp(part, step):
    part.loss.guards = Guards(ramp=4)
    losses = [part.loss(**step | {"step": i}, generator=seeded()) for i in (0, 1, 3, 9)]
    full = losses[-1]["reward_loss"].item()
    assert [one["reward_loss"].item() / full for one in losses] == pytest.approx([0.25, 0.5, 1, 1], rel=1e-5)
    assert losses[0]["weighted_reward/total"] == losses[-1]["weighted_reward/total"]  # the log tells the reward itself
    assert Guards().strength(0) == 1


def test_ceiling_ends_the_gradient_of_one_reward(part, step):
    raw = part.mixture.score_latents(step["prediction"][1:3], step["captions"][1:3], part.vae.decode, seeded()).raw
    between = raw["hps"].mean().item()
    part.loss.guards = Guards(ceilings={"hps": between, "internvideo2": -2.0, "clip": -2.0})
    found = part.loss(**step, generator=seeded())
    (gradient,) = torch.autograd.grad(found["reward_loss"], step["prediction"])
    moved = gradient.flatten(1).abs().amax(1) > 0
    assert moved[1:3].tolist() == (raw["hps"] < between).tolist() and moved.sum() == 1
    assert found["reward_loss"].item() == pytest.approx(-found["weighted_reward/total"].item(), rel=1e-5)


def test_distance_to_the_teacher(part, step):
    part.loss.guards = Guards(teacher=3.0)
    found = part.loss(**step, generator=seeded())
    expected = teacher_distance(step["prediction"][1:3], step["teacher"][1:3], step["alpha_bar"][1:3])
    assert found["teacher_loss"].item() == pytest.approx(3 * expected.mean().item(), rel=1e-5)
    assert found["teacher_distance"].item() == pytest.approx(expected.mean().item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(found["teacher_loss"], step["prediction"])
    closer = step["prediction"].detach() - gradient
    assert (teacher_distance(closer, step["teacher"], step["alpha_bar"])[1:3] < expected).all()
    assert (gradient[[0, 3]] == 0).all()


def test_teacher_distance_counts_the_signal():
    ones = torch.ones(2, 4, 3, 2, 2)
    assert teacher_distance(3 * ones, ones, torch.tensor([1.0, 0.25])).tolist() == [4.0, 1.0]


def test_diagnostics(part, step):
    found = part.loss(**step, generator=seeded())
    raw = part.mixture.score_latents(step["prediction"][1:3], step["captions"][1:3], part.vae.decode, seeded()).raw
    assert found["reward_spread/clip"].item() == pytest.approx((raw["clip"][0] - raw["clip"][1]).abs().item() / 2)
    with torch.no_grad():
        frozen = step["prediction"].copy_(step["prediction"][:, :, :1].expand_as(step["prediction"]))
    assert found["dynamics"] > 0.5
    assert part.loss(**step | {"prediction": frozen}, generator=seeded())["dynamics"] == 0
    halved = part.loss(**step | {"prediction": step["teacher"] / 2}, generator=seeded())
    assert halved["dynamics"].item() == pytest.approx(0.5)
    assert change(torch.zeros(2, 4, 1, 8, 8)).tolist() == [0, 0]


def test_ceilings_of_unknown_rewards(part):
    with pytest.raises(ValueError, match="'aesthetic'"):
        RewardLoss(part.mixture, part.vae.decode, Guards(ceilings={"aesthetic": 1.0}))


def test_frozen_networks_get_no_gradient(part, step):
    part.loss(**step, generator=seeded())["reward_loss"].backward()
    for network in (part.vae, *part.mixture.rewards.values()):
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert step["prediction"].grad.abs().sum() > 0


@pytest.mark.parametrize("change", [{"chunk": 8}, {"checkpointing": True}, {"offload": True}])
def test_memory_settings_change_no_gradient(config, step, change):
    found = []
    for settings in ({}, change):
        one = rewarded(config, **settings)
        part = distill_rewards.RewardPart(one.rewards, one.model, TINY)
        part.attach(torch.device("cpu"))
        (gradient,) = torch.autograd.grad(part.loss(**step, generator=seeded())["reward_loss"], step["prediction"])
        found.append(gradient)
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-7)


def test_bf16_is_near_fp32(config, step):
    losses = []
    for dtype in ("fp32", "bf16"):
        part = distill_rewards.RewardPart(rewarded(config, dtype=dtype).rewards, config.model, TINY)
        assert part.vae.dtype == next(iter(part.mixture.rewards.values())).dtype == DTYPES[dtype]
        losses.append(part.loss(**step, generator=seeded())["reward_loss"])
    assert losses[1].dtype == torch.float32
    assert losses[1].item() == pytest.approx(losses[0].item(), abs=0.02)


# --- in training ----------


def test_flags():
    assert use_reward({"kind": "short"}) and not use_reward({"kind": "dense"}) and not use_reward({})
    assert not use_reward({"kind": "short", "use_reward": False}) and use_reward({"kind": "dense", "use_reward": True})


def watch(monkeypatch):
    """The arguments of every call of ``RewardLoss``."""
    seen, original = [], RewardLoss.__call__

    def watched(self, prediction, captions, flags, teacher, alpha_bar, step, generator):
        found = original(self, prediction, captions, flags, teacher, alpha_bar, step, generator)
        seen.append({"captions": captions, "flags": flags.tolist(), "step": step, "found": found, "self": self,
                     "prediction": prediction, "teacher": teacher, "seed": generator.initial_seed()})  # fmt: skip
        return found

    monkeypatch.setattr(RewardLoss, "__call__", watched)
    return seen


def test_the_log_names_every_loss(config, monkeypatch):
    seen = watch(monkeypatch)
    distill.distill(rewarded(config, teacher=0.5))
    assert all(one["prediction"].dtype == one["teacher"].dtype == torch.float32 for one in seen)
    line = read_stats(config.out)[0]
    expected = {"loss", "cd", "reward_loss", "teacher_loss", "teacher_distance", "dynamics", "reward_samples"}
    expected |= {f"{kind}/{name}" for name in ALL.split(",") for kind in ("reward", "weighted_reward")}
    assert expected | {"weighted_reward/total"} <= set(line)
    assert line["loss"] == pytest.approx(line["cd"] + line["reward_loss"] + line["teacher_loss"], rel=1e-4)
    for name in {name.partition("/")[0] for name in line} - {"step", "grad_norm", "lr", "seconds_per_step"}:
        assert f"\n  {name}" in distill_rewards.MEANING, name


def test_short_captions_alone(config, monkeypatch):
    seen = watch(monkeypatch)
    distill.distill(replace(config, batch_size=16, steps=1))
    (one,) = seen
    dense = [len(caption.split()) > 20 for caption in one["captions"]]
    assert sum(dense) == 8 and one["flags"] == [not flag for flag in dense]
    assert one["found"]["reward_samples"] == 8
    seen.clear()
    distill.distill(replace(rewarded(config, samples="all", batch_size=9), batch_size=16, out=f"{config.out}-all"))
    assert all(seen[0]["flags"]) and seen[0]["found"]["reward_samples"] == 9


def test_every_few_steps(config, monkeypatch):
    seen = watch(monkeypatch)
    distill.distill(replace(rewarded(config, every=2), steps=5))
    assert [one["step"] for one in seen] == [1, 3]
    assert [one["seed"] for one in seen] == [step_generator(0, 0, step).initial_seed() for step in (1, 3)]
    assert ["reward_loss" in line for line in read_stats(config.out)] == [False, True, False, True, False]


def test_means_over_accumulated_passes(config, monkeypatch):
    """A pass without a flagged sample has no score; it does not halve the others'."""
    seen = watch(monkeypatch)
    distill.distill(replace(config, batch_size=1, accumulate=4, steps=1))
    scored = [one["found"]["reward/clip"].item() for one in seen if "reward/clip" in one["found"]]
    assert 0 < len(scored) < 4
    line = read_stats(config.out)[0]
    assert line["reward/clip"] == pytest.approx(sum(scored) / len(scored), rel=1e-4)
    assert line["loss"] == pytest.approx(line["cd"] + line["reward_loss"], rel=1e-4)
    assert line["reward_loss"] == pytest.approx(sum(one["found"]["reward_loss"].item() for one in seen) / 4, rel=1e-4)


def test_rewards_change_the_student_and_nothing_else_does(config, monkeypatch):
    """Without rewards the same records, omegas and start; a weight of zero is the same as no reward."""
    outs = {}
    for name, models in {"none": None, "zero": "clip:0", "clip": "clip:1"}.items():
        outs[name] = f"{config.out}-{name}"
        distill.distill(replace(rewarded(config, models=models), out=outs[name]))
    assert_same(weights(outs["none"]), weights(outs["zero"]))
    assert not torch.equal(weights(outs["none"])["conv_in.weight"], weights(outs["clip"])["conv_in.weight"])


def test_a_few_steps_raise_a_reward(config, family, held_out):
    """On clips and noise that training never saw, against the student without rewards."""
    scores = {}
    for name, models in {"without": None, "with": "clip:20"}.items():
        out = f"{config.out}-{name}"
        settings = {"steps": 30, "lr": 1e-3, "ema_decay": None, "save_every": 30}
        student = distill.distill(replace(rewarded(config, models=models), out=out, **settings))
        scores[name] = mean_reward(student, family, held_out)
    losses = [line["reward_loss"] for line in read_stats(out) if line["reward_samples"]]
    assert sum(losses[-8:]) < sum(losses[:8])
    assert scores["with"] > scores["without"] + 0.01


@torch.no_grad()
def mean_reward(student, family, records):
    """Of the student's predictions on all of the records, all frames."""
    losses = ConsistencyDistillation(NoiseSchedule(), 50)
    tensors, origins = next(iterate_batches(RecordReader(RecordSet(records)), 8))
    batch = Batch(**{name: x.float() if x.is_floating_point() else x for name, x in tensors.items()})
    prediction = losses(student, batch, torch.full((8,), 5.0)).prediction
    frames = load_vae(family / "vae.safetensors", TINY.vae).decode(prediction)
    reward = load_reward("clip", family / "reward_clip.safetensors", dtype=torch.float32)
    return reward.score(frames, [origin["caption"] for origin in origins]).mean().item()


def test_a_stopped_run_ends_with_the_same_weights(config, tmp_path):
    whole = replace(rewarded(config, every=2, ramp=3, offload=True), steps=4)
    distill.distill(whole)
    stopped = replace(whole, out=str(tmp_path / "stopped"))
    shutil.copytree(whole.out, stopped.out)
    shutil.rmtree(Path(stopped.out) / "checkpoints" / "step-000004")
    distill.distill(stopped)
    assert_same(weights(whole.out), weights(stopped.out))
    lines = [[{**line, "seconds_per_step": 0} for line in read_stats(one.out)] for one in (whole, stopped)]
    assert lines[0] == lines[1] and len(lines[0]) == 4


@pytest.mark.parametrize("change", [{"models": "clip"}, {"ramp": 5}, {"every": 3}])
def test_a_run_does_not_go_on_with_other_rewards(config, change):
    distill.distill(replace(config, steps=1))
    with pytest.raises(ValueError, match=rf"was begun with rewards.{next(iter(change))}="):
        distill.distill(rewarded(config, **change))


def test_a_run_from_before_rewards_goes_on(config):
    plain = replace(rewarded(config, models=None), steps=1)
    distill.distill(plain)
    file = Path(config.out, "config.yaml")
    before = OmegaConf.load(file)
    del before["rewards"]
    OmegaConf.save(before, file)
    distill.distill(replace(plain, steps=2))
    with pytest.raises(ValueError, match=r"was begun with rewards.models=None"):
        distill.distill(replace(config, steps=3))


def test_offloaded_models_wait_on_the_cpu(config, monkeypatch):
    """They are away once the gradient has passed, and at home for every score."""
    homes = []
    original = RewardMixture.score_latents

    def score_latents(self, *given):
        before = [reward._home for reward in self.rewards.values()]
        found = original(self, *given)
        homes.append((before, [reward._home for reward in self.rewards.values()]))
        return found

    monkeypatch.setattr(RewardMixture, "score_latents", score_latents)
    distill.distill(rewarded(config, offload=True, samples="all"))
    cpu = torch.device("cpu")
    assert homes == [([cpu] * 3, [None] * 3)] * 2
    homes.clear()
    distill.distill(replace(rewarded(config, samples="all"), out=f"{config.out}-stay"))
    assert homes == [([None] * 3, [None] * 3)] * 2


def test_the_words(config, caplog, capsys):
    """At the start of a run and in the help it is said why the reward loss is negative."""
    with caplog.at_level(logging.INFO):
        distill.distill(replace(config, steps=1))
    assert "NEGATIVE BY CONSTRUCTION" in caplog.text
    with pytest.raises(SystemExit):
        cli.main(["distill", "--help"])
    told = capsys.readouterr().out
    assert "NEGATIVE BY CONSTRUCTION" in told and "rewards.ceilings" in told and "rewards.every" in told
    given = [f"records={config.records}", f"out={config.out}", f"model.folder={config.model.folder}", "steps=1"]
    assert cli.main(["distill", *given, "rewards.models=clip", "rewards.paths=clip:/nowhere"]) == 2
    assert "NEGATIVE" in capsys.readouterr().out


# --- mistakes ----------


def test_a_missing_reward_is_named_with_the_remedy(config):
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: no such checkpoint file; check the path"):
        distill.distill(rewarded(config, paths="clip:/tmp/nowhere.pt"))
    with pytest.raises(CheckpointError, match=r"reward_imagereward\.safetensors.*'imagereward'.*`t2v-turbo download"):
        distill.distill(rewarded(config, models="imagereward:0.1"))
    assert not Path(config.out).exists()


@pytest.mark.parametrize(
    "setting, told",
    [
        ("models=beauty", "unknown reward 'beauty'"),
        ("models=clip:much", "rewards.models: clip:much is no number"),
        ("models=clip:nan", "is no number"),
        ("models=clip,clip:1", "names clip twice"),
        ("ceilings=hps", "rewards.ceilings: hps: is no number"),
        ("models=clip:-1", "rewards.models: clip:-1 is below 0"),
        ("models=pickscore", "rewards.models: pickscore: the paper has no weight for it"),
        ("every=0", "rewards.every=0 is too small"),
        ("teacher=.inf", "rewards.teacher=inf must be a finite number"),
        ("dtype=fp16", "choose auto, bf16, fp32"),
        ("samples=short", "choose flagged, all"),
        ("paths=clip", "no file for clip"),
    ],
)
def test_wrong_settings(setting, told):
    with pytest.raises(ValueError) as error:
        load_config("distill", None, ["records=r", "out=o", f"rewards.{setting}"])
    assert told in str(error.value)


def test_a_device_that_is_not_there(config):
    with pytest.raises(ValueError, match=r"rewards\.device=cuda:77 cannot be used here"):
        distill.distill(rewarded(config, device="cuda:77"))


def test_records_without_a_sample_to_score_are_told_of(part, step, monkeypatch, caplog):
    monkeypatch.setattr(distill_rewards, "PATIENCE", 3)
    flags = torch.zeros(4, dtype=torch.bool)
    for _ in range(3):
        assert "rewards.samples=all" not in caplog.text
        part._watch(flags)
    assert caplog.text.count("rewards.samples=all") == 1
    part._watch(step["use_reward"])
    for _ in range(5):
        part._watch(flags)
    assert caplog.text.count("rewards.samples=all") == 1


def test_settings_of_a_reward_that_is_not_named():
    with pytest.raises(ValueError, match=r"rewards\.ceilings: hps is not among rewards\.models=clip"):
        RewardConfig(models="clip", ceilings="hps:1")


def test_settings():
    assert RewardConfig().weights() == {}
    given = RewardConfig(models="hps, clip:0.3,pickscore:0.01", ceilings="clip:0.4", paths="hps:/a:b")
    assert given.weights() == {"hps": 0.2, "clip": 0.3, "pickscore": 0.01}
    assert given.limits() == {"clip": 0.4} and given.files() == {"hps": "/a:b"}
    paper = load_config("distill", "paper", ["records=r", "out=o"]).rewards
    assert (paper.models, paper.image_frames, paper.every, paper.batch_size) == (None, 2, 1, 1)
    assert (paper.ramp, paper.ceilings, paper.teacher, paper.samples) == (0, None, 0, "flagged")
    asked = load_config("distill", "paper", ["records=r", "out=o", f"rewards.models={ALL}"]).rewards
    assert asked.weights() == {"hps": 0.2, "clip": 0.2, "internvideo2": 0.5}


# --- what it costs ----------


def test_live_tensors():
    """Forward and backward: x, y and z alive together; views and in-place results count once."""
    weight = torch.ones(1000, requires_grad=True)
    with LiveTensors() as tensors:
        x = torch.ones(1000)
        y = (x * weight).view(10, 100)
        y.add_(1)
        z = y * y
        assert tensors.live == tensors.peak == 12000
        del y
        assert tensors.live == 12000  # kept for the backward pass
        z.sum().backward()
        del z
        weight.grad.mul_(2)
    assert tensors.live == 8000 and tensors.peak >= 16000


def test_cost(capsys):
    """Chunks take less memory than all frames at once, and checkpointed reward models no more than that."""
    size = ["--height", "96", "--width", "96", "--batch", "2", "--scored", "2"]
    arguments = ["--repeats", "1", "--device", "cpu", "--rewards", "internvideo2", *size]
    assert cli.main(["rewards", "cost", *arguments]) == 0
    told = capsys.readouterr().out
    cells = [line.strip("| ").split(" | ") for line in told.split("\n") if line.startswith("|")][2:]
    without, whole, chunked, light = (float(row[1]) for row in cells)
    assert without <= light <= chunked < whole
    assert float(cells[1][3]) > float(cells[0][3])
    assert "2 samples, 2 of them scored" in told and "internvideo2" in told and "hps" not in told


def test_a_step_of_the_cost_is_the_trainers(tmp_path):
    """The rows differ in memory, not in what they compute."""
    workload = reward_cost.Workload(TINY, batch=2, scored=1, rewards="clip,hps", device="cpu", dtype="fp32")
    bench, gradients = reward_cost.Bench(workload, tmp_path), []
    for network in (bench.student, bench.vae):
        randomize(network, 3)
    for row in reward_cost.rows_of(1):
        bench.clear()
        bench.step(row)
        gradients.append(torch.cat([p.grad.flatten() for p in bench.student.parameters() if p.grad is not None]))
    assert not torch.allclose(gradients[0], gradients[1], rtol=1e-3)
    for other in gradients[2:]:
        torch.testing.assert_close(other, gradients[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--model", "sora"], "unknown model"),
        (["--width", "30"], "--width 30 is no multiple of 8"),
        (["--channels", "30"], "--channels 30"),
        (["--rewards", "pickscore"], "--rewards pickscore"),
        (["--repeats", "0"], "--repeats 0 is too small"),
    ],
)
def test_mistakes_of_cost(arguments, told, capsys):
    assert cli.main(["rewards", "cost", "--device", "cpu", *arguments]) == 2
    assert told in capsys.readouterr().err


# --- by subset ----------


def test_subsets():
    names = reward_ablation.all_subsets()
    assert names[0] == "none" and names[-1] == "hps+clip+internvideo2" and len(set(names)) == 8
    assert reward_ablation.chosen_subsets("clip+hps, none") == ["none", "hps+clip"]
    with pytest.raises(ValueError, match="--subsets aesthetic: is unknown; use none, hps"):
        reward_ablation.chosen_subsets("none,aesthetic")


def test_other_settings_have_other_folders(config):
    """A finished run must not pass for one with other settings."""
    origins = [reward_ablation.origin_of(replace(config, init=f"{config.model.folder}/student.safetensors", lr=lr))
               for lr in (1e-4, 1e-4, 1e-5)]  # fmt: skip
    first, same, other = (reward_ablation.settings_of(config, "clip", origin).out for origin in origins)
    assert first == same != other


@pytest.fixture
def table_command(config):
    settings = [f"{name}={getattr(config, name)}" for name in ("records", "out", "precision", "steps", "log_every",
                "save_every", "warmup", "decay", "batch_size", "export_dtype")]  # fmt: skip
    settings += [f"model.folder={config.model.folder}", "model.device=cpu"]
    return ["rewards", "table", "--subsets", "none,clip", "--prompts", "3", "--sampling-steps", "1", *settings]


def test_table(table_command, config, family, capsys, monkeypatch):
    assert cli.main(table_command) == 0
    lines = capsys.readouterr().out.strip().split("\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert [row[0] for row in cells] == ["rewards", "---", "none", "clip"]
    assert cells[0][1:3] == ["color", "shape"] and cells[0][-4:-1] == [f"reward {n}" for n in ALL_NAMES]
    page = Path(lines[-1])
    assert page.read_text().count("<svg") == 5 and page.parent == Path(config.out)
    runs = {path.name.rpartition("-")[0]: path for path in Path(config.out).iterdir() if path.is_dir()}
    assert set(runs) == {"none", "clip"}
    starts = {name: OmegaConf.load(path / "config.yaml") for name, path in runs.items()}
    assert all(one.init == str(family / "student.safetensors") for one in starts.values())
    assert [starts[name].rewards.models for name in ("none", "clip")] == [None, "clip:0.2"]
    # The rewards are those of the students' clips.
    model = load("shapes", runs["clip"] / "student.safetensors", family)
    prompts = [prompt for prompt, _ in evaluation_prompts(3)]
    clips = torch.stack([from_uint8(clip) for clip in sample_clips(model, prompts, 1)])
    reward = load_reward("clip", family / "reward_clip.safetensors", dtype=torch.float32)
    column = cells[0].index("reward clip")
    assert float(cells[3][column]) == pytest.approx(reward.score(clips, prompts).mean().item(), abs=1e-4)
    # Kept: nothing is trained or sampled again, unless something else is asked for.
    monkeypatch.setattr(reward_ablation, "sample_clips", None)
    monkeypatch.setattr(reward_ablation, "distill", None)
    assert cli.main(table_command) == 0
    assert capsys.readouterr().out.strip().split("\n") == lines
    with pytest.raises(TypeError):
        cli.main([*table_command, "lr=1e-5"])


def test_mistakes_of_the_table(table_command, config, capsys, tmp_path):
    assert cli.main([*table_command, "rewards.models=clip:1"]) == 2
    assert "name all of hps, clip, internvideo2" in capsys.readouterr().err
    assert cli.main([*table_command, f"rewards.paths=hps:{tmp_path}/no.safetensors", f"rewards.models={ALL}"]) == 2
    assert "no.safetensors" in capsys.readouterr().err
    assert not list(Path(config.out).glob("*-*"))


def test_time_of_a_run():
    stats = [{"step": 10, "seconds_per_step": 2.0}, {"step": 15, "seconds_per_step": 1.0}]
    assert reward_ablation.training_seconds(stats) == 25
