"""The embedded reward models: what they learn from, that their recipes run, and that their measure is right."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from t2v_turbo.core.checkpoints import networks
from t2v_turbo.core.families import SHAPES
from t2v_turbo.core.rewards import Reward, RewardInfo, load_reward, save_reward
from t2v_turbo.core.rewards.models.wordpiece import WordPiece
from t2v_turbo.core.video import from_uint8, to_uint8
from t2v_turbo.train.cli import main
from t2v_turbo.train.shapes.evaluation import WORDS
from t2v_turbo.train.shapes.reward_accuracy import attribute_accuracy, evaluate_reward
from t2v_turbo.train.shapes.training import contrastive, corruptions, patch_labels, recipes, rewards
from t2v_turbo.train.shapes.world import captions
from t2v_turbo.train.shapes.world.captions import all_words, parse_prompt
from t2v_turbo.train.shapes.world.dataset import render_clip
from t2v_turbo.train.shapes.world.oracle import measure
from t2v_turbo.train.training.trainer import read_stats

NAMES = ("clip", "hps", "internvideo2")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def vae(random_shapes):
    return networks.load_vae(random_shapes / "vae.safetensors", SHAPES.vae)


# --- clips and captions ----------


def test_draw_clip():
    """A pure function of seed and index that shares no clips with `render_clip`."""
    one, same, other = contrastive.draw_clip(3, 5), contrastive.draw_clip(3, 5), contrastive.draw_clip(4, 5)
    assert (one.frames == same.frames).all() and one.dense_caption == same.dense_caption
    assert one.scene not in (other.scene, render_clip(3, 5, "dense").scene)
    recoloured = contrastive.draw_clip(3, 5, color="cyan")
    assert recoloured.scene == replace(one.scene, color="cyan")
    assert measure(recoloured.frames).color == "cyan" and "cyan" in recoloured.dense_caption
    drawn = [contrastive.draw_clip(3, i) for i in range(30)]
    assert any(clip.scene.noise for clip in drawn)
    assert not any(contrastive.draw_clip(3, i, clean=True).scene.noise for i in range(30))


def test_batches_of_one_color():
    colors = {clip.scene.color for clip in contrastive.draw_batch(12, 1000, 0, True, np.random.default_rng(0))}
    assert len(colors) == 1
    assert len({clip.scene.color for clip in contrastive.draw_batch(12, 1000, 0, False, np.random.default_rng(0))}) > 1


@pytest.mark.parametrize("motion", [False, True])
def test_alternatives(motion):
    """The right caption tells the scene; all others differ in what they tell, wherever the words tell it."""
    scenes = [clip.scene for clip in contrastive.draw_batch(8, 1000, 0, motion, np.random.default_rng(1))]
    told = {"color", "shape", "direction", "speed"} if motion else {"color", "shape"}
    heard = set()
    for turn in range(12):
        captions, right = contrastive.alternatives(scenes, motion, np.random.default_rng(turn))
        assert len(captions) == len({scene.color for scene in scenes}) * 4 * (13 if motion else 1)
        for scene, index in zip(scenes, right):
            facts = {name: fact for name, fact in parse_prompt(captions[index]).items() if name in told and fact}
            assert facts.items() <= scene.expected().items(), captions[index]
            heard |= set(facts)
    assert heard == told


def test_some_caption():
    """Short captions and runs of sentences of dense ones, which every part of a dense caption belongs to."""
    clip = contrastive.draw_clip(0, 0)
    rng = np.random.default_rng(0)
    captions = {contrastive.some_caption(clip, rng) for _ in range(200)}
    assert clip.short_caption in captions
    assert all(caption == clip.short_caption or caption in clip.dense_caption for caption in captions)
    assert {caption for caption in captions if clip.dense_caption.endswith(caption)}
    assert {caption for caption in captions if clip.dense_caption.startswith(caption)}


def test_views(vae):
    """Single frames are the clips' own; the first ones are seen through the autoencoder."""
    drawn = contrastive.draw_batch(20, 100, 0, False, np.random.default_rng(0))
    frames = contrastive.views(drawn, True, vae, seeded())
    assert frames.shape == (20, 1, 3, 64, 64)
    own = [(from_uint8(clip.frames) == frame).flatten(1).all(1).any() for clip, frame in zip(drawn, frames)]
    assert own == [False] * 8 + [True] * 12
    clips = contrastive.views(drawn, False, vae, seeded())
    own = [torch.equal(from_uint8(clip.frames), frame) for clip, frame in zip(drawn, clips)]
    assert own == [False] + [True] * 19


# --- damages ----------


@pytest.fixture(scope="module")
def clean():
    """Frames (24, 3, 64, 64) of as many clean clips, and their scenes."""
    drawn = [contrastive.draw_clip(0, i, clean=True) for i in range(24)]
    return torch.stack([from_uint8(clip.frames[:1])[0] for clip in drawn]), [clip.scene for clip in drawn]


def seen(frames):
    return [measure(to_uint8(frame[None])) for frame in frames]


def test_damages_change_every_frame(clean, vae):
    """They stay in range, follow their seed, and leave no frame as it was."""
    frames, _ = clean
    for name, kind in corruptions.damages(vae).items():
        before = frames.clone()
        bad = kind(frames, seeded())
        assert torch.equal(frames, before), name
        assert bad.shape == frames.shape and bad.min() >= 0 and bad.max() <= 1, name
        assert ((bad - frames).abs().mean((1, 2, 3)) > 2e-3).all(), name
        torch.testing.assert_close(bad, kind(frames, seeded()))


def test_damages_do_what_they_say(clean):
    """The oracle sees it: nothing where the shape is missing, deformed outlines, soft edges, a second object."""
    frames, scenes = clean
    kept, found = seen(frames), {name: seen(kind(frames, seeded())) for name, kind in corruptions.PIXEL_DAMAGES.items()}
    assert all(one.color == scene.color and one.shape == scene.shape for one, scene in zip(kept, scenes))
    assert all(one.color is None for one in found["missing"])
    for name, quality in {"warp": "fit", "pixels": "fit", "blur": "sharpness",
                          "double": "presence", "ghost": "presence", "patches": "presence"}.items():  # fmt: skip
        before, after = (np.mean([getattr(one, quality) for one in some]) for some in (kept, found[name]))
        assert after < 0.93 * before, name


def test_mild_views_keep_the_meaning(clean):
    frames, scenes = clean
    views = corruptions.mild(frames[:, None], seeded())
    changed = ((views - frames[:, None]).abs().mean((1, 2, 3, 4)) > 1e-4).double().mean()
    assert 0.2 < changed < 0.8
    hits = [one.color == scene.color and one.shape == scene.shape for one, scene in zip(seen(views[:, 0]), scenes)]
    assert np.mean(hits) > 0.9


# --- losses and measure, with a reward that is the oracle ----------


class OracleReward(Reward):
    """Features are one-hot: the attributes that the oracle sees in a clip and those that a caption tells."""

    def __init__(self, blind=None):
        super().__init__(RewardInfo("oracle", "video", "cosine", (-1, 1), 10_000, "-", "-"))
        self.words = {name: tuple(parse_prompt(f"moves {word}")[name] for word in options)
                      for name, options in WORDS.items() if name != blind}  # fmt: skip
        self.nothing = nn.Parameter(torch.zeros(()))

    def count_tokens(self, caption):
        return len(caption.split())

    def _one_hot(self, facts):
        hot = [facts[name] == word for name, words in self.words.items() for word in words]
        return torch.tensor(hot).double() + self.nothing

    def encode_text(self, captions):
        return F.normalize(torch.stack([self._one_hot(parse_prompt(caption)) for caption in captions]), dim=-1)

    def encode_frames(self, frames):
        found = [measure(to_uint8(clip)) for clip in frames]
        facts = [{"color": one.color, "shape": one.shape, "direction": one.direction, "speed": one.speed_name}
                 for one in found]  # fmt: skip
        return torch.stack([self._one_hot(one) for one in facts])[:, None]


def test_measure_of_a_reward_that_sees_all(vae):
    rates = evaluate_reward(OracleReward(), vae, clips=6, seed=1)
    assert {name: rates[name] for name in WORDS} == dict.fromkeys(WORDS, 1.0)
    assert rates["prefers clean to missing"] == 1
    assert rates["caption of clip"] > 0.5 and rates["clip of caption"] > 0.5


@pytest.mark.parametrize("blind", WORDS)
def test_measure_of_a_blind_reward(blind):
    """Only what it does not see is wrong: equal scores are no success."""
    drawn = [clip for clip in contrastive.draw_batch(8, 1000, 1, False, np.random.default_rng(0)) if clip.scene.speed]
    reward = OracleReward(blind)
    features = reward.encode_frames(torch.stack([from_uint8(clip.frames) for clip in drawn]))[:, 0]
    assert attribute_accuracy(reward, features, drawn) == {name: float(name != blind) for name in WORDS}


def test_match_loss():
    """The right captions cost next to nothing, the same captions in another order much."""
    drawn = contrastive.draw_batch(8, 1000, 0, True, np.random.default_rng(2))
    rng = np.random.default_rng(5)
    while True:  # until the words tell direction and speed
        choices, right = contrastive.alternatives([clip.scene for clip in drawn], True, rng)
        if all(parse_prompt(choices[right[0]]).values()):
            break
    frames = torch.stack([from_uint8(clip.frames) for clip in drawn])
    loss = contrastive.MatchLoss(OracleReward())
    captions = [choices[index] for index in right]
    good = loss(frames, captions, choices, right)
    assert good["accuracy"] == 1
    bad = loss(frames, captions, choices, right.roll(1))
    assert bad["choice"] > good["choice"] + 1
    assert bad["contrast"] == good["contrast"] and good["loss"] == good["contrast"] + good["choice"]
    assert loss(frames, captions[1:] + captions[:1], choices, right)["contrast"] > good["contrast"] + 1


def test_preference_loss():
    """-log softmax of the pair: log 2 for equal frames, less where the good ones fit better, more the other way."""
    drawn = contrastive.draw_batch(6, 1000, 0, False, np.random.default_rng(2), clean=True)
    frames = torch.stack([from_uint8(clip.frames) for clip in drawn])
    blank = torch.full_like(frames, 0.5)
    captions = [clip.dense_caption for clip in drawn]
    choices, right = contrastive.alternatives([clip.scene for clip in drawn], False, np.random.default_rng(0))
    loss = contrastive.PreferenceLoss(OracleReward())
    losses = [loss(*pair, captions, choices, right) for pair in ((frames, frames), (frames, blank), (blank, frames))]
    equal, better, worse = (one["preference"].item() for one in losses)
    assert equal == pytest.approx(np.log(2))
    assert better < 0.01 and worse > 5
    assert [one["preferred"].item() for one in losses] == [0, 1, 0]
    features = loss.reward.encode_frames(frames)[:, 0]
    margin = loss.scale() * (features * loss.reward.encode_text(captions)).sum(-1)  # blank frames score 0
    assert better == pytest.approx(F.softplus(-margin).mean().item())


# --- labels of patches ----------


def test_patch_labels():
    """Patches on the shape tell shape and motion, all others nothing; single frames have no motion."""
    drawn = contrastive.draw_batch(6, 1000, 0, False, np.random.default_rng(0), clean=True)
    frames = torch.stack([from_uint8(clip.frames) for clip in drawn])
    labels = patch_labels.patch_labels(drawn, frames, 8)
    assert labels.shape == (6, 8, 64, 2)
    for clip, own in zip(drawn, labels):
        on = own[..., 0] > 0
        area = on.double().mean().item() * 64 * 64
        assert 0.5 < area / (np.pi * clip.scene.radius**2) < 1.6
        assert (own[..., 0][on] == 1 + captions.SHAPES.index(clip.scene.shape)).all()
        direction, _ = contrastive.MOTIONS[own[..., 1][on].unique().item() - 1]
        assert direction == clip.scene.direction
        assert (own[..., 1][~on] == 0).all()
    single = patch_labels.patch_labels(drawn, frames[:, :1], 8)
    assert (single[..., 1] == patch_labels.UNASKED).all() and (single[..., 0] == labels[:, :1, :, 0]).all()


@pytest.mark.parametrize("name", ["clip", "internvideo2"])
@pytest.mark.parametrize("count", [1, 8])
def test_hints_ask_every_token(name, count, tmp_path, random_shapes):
    """Each patch's label moves the token at its own place, and nothing stays hooked to the tower."""
    if name == "clip":
        text = networks.load_text(random_shapes / "text.safetensors", SHAPES.text)
        reward = rewards.new_clip("clip", text, random_shapes)
    else:
        reward = rewards.new_internvideo2(tmp_path)
    drawn = contrastive.draw_batch(3, 1000, 0, False, np.random.default_rng(0))
    frames = torch.stack([from_uint8(clip.frames) for clip in drawn])[:, :count]
    labels = patch_labels.patch_labels(drawn, frames, reward.config.vision.patch_size)
    with patch_labels.tokens_of(reward) as tokens:
        reward.encode_frames(frames)
    kept = len(tokens)
    reward.encode_frames(frames)
    assert len(tokens) == kept
    leaf = torch.cat(tokens).detach().requires_grad_()
    asked = torch.full_like(labels, patch_labels.UNASKED)
    asked[1, count - 1, 5, 0] = 1
    (gradient,) = torch.autograd.grad(patch_labels.Hints(reward)([leaf], asked), leaf)
    moved = gradient.abs().sum(-1)[:, 1:].reshape(labels.shape[:-1]) > 0
    assert moved.nonzero().tolist() == [[1, count - 1, 5]]


def test_hinted_loss(tmp_path):
    """The labels' loss comes on top of matching, and trains the tower."""
    loss = patch_labels.HintedMatchLoss(rewards.new_internvideo2(tmp_path))
    drawn = contrastive.draw_batch(3, 1000, 0, False, np.random.default_rng(0))
    frames = torch.stack([from_uint8(clip.frames) for clip in drawn])
    choices, right = contrastive.alternatives([clip.scene for clip in drawn], False, np.random.default_rng(0))
    captions = [clip.short_caption for clip in drawn]
    found = loss(frames, captions, choices, right, patch_labels.patch_labels(drawn, frames, 16))
    torch.testing.assert_close(found["loss"], found["contrast"] + found["choice"] + found["hints"])
    found["hints"].backward()
    assert loss.reward.vision.patch_embed.weight.grad.abs().sum() > 0
    assert loss.hints.head.weight.grad.abs().sum() > 0


# --- the recipes ----------


def test_vocabulary(tmp_path):
    """Every word is one token and any other word is spelled."""
    size = rewards.write_vocabulary(tmp_path / "vocab.txt")
    words = WordPiece(tmp_path / "vocab.txt", 40)
    assert words.encoder.get_vocab_size() == size
    assert all(words.count(word) == 3 for word in all_words())
    assert words.encoder.encode("Zebra 7!").tokens == ["[CLS]", "z", "##e", "##b", "##r", "##a", "7", "!", "[SEP]"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, random_shapes):
    """A folder with the reward models after a few steps of their recipes, run in order."""
    folder, weights = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("weights")
    for name in ("vae.safetensors", "text.safetensors", "merges.txt.gz"):
        (weights / name).write_bytes((random_shapes / name).read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            recipe = recipes.RECIPES[f"reward_{name}"]
            config = replace(recipe.config, steps=3, batch_size=4, log_every=1, save_every=2)
            patch.setitem(recipes.RECIPES, f"reward_{name}", replace(recipe, config=config))
            recipes.train(f"reward_{name}", folder / name, weights)
    return folder, weights


def test_recipes(trained):
    """Each writes a model that loads by its name, scores clips and is differentiable."""
    folder, weights = trained
    frames = torch.stack([from_uint8(contrastive.draw_clip(7, i).frames) for i in range(2)]).requires_grad_()
    for name in NAMES:
        assert [line["step"] for line in read_stats(folder / name)] == [1, 2, 3]
        path = weights / f"reward_{name}.safetensors"
        assert path.stat().st_size < 1.5e6
        reward = load_reward(name, path, dtype=torch.float32)
        scores = reward.score(frames, ["a red circle moves left", "a blue cross"])
        assert scores.shape == (2,) and (scores.abs() <= 1).all()
        (gradient,) = torch.autograd.grad(scores.sum(), frames)
        assert gradient.abs().sum() > 0


def test_preference_model_starts_from_the_clip(trained, tmp_path, monkeypatch):
    """After one step of warm-up it is all but the CLIP that lies in the folder."""
    _, weights = trained
    for name in ("vae.safetensors", "text.safetensors", "merges.txt.gz"):
        (tmp_path / name).write_bytes((weights / name).read_bytes())
    clip = load_reward("clip", weights / "reward_clip.safetensors", dtype=torch.float32)
    clip.visual.conv1.weight.add_(1.0)
    save_reward(clip, "clip", tmp_path / "reward_clip.safetensors")
    recipe = recipes.RECIPES["reward_hps"]
    config = replace(recipe.config, steps=1, batch_size=4)
    monkeypatch.setitem(recipes.RECIPES, "reward_hps", replace(recipe, config=config))
    recipes.train("reward_hps", tmp_path / "run", tmp_path)
    hps = load_reward("hps", tmp_path / "reward_hps.safetensors", dtype=torch.float32)
    distance = (hps.visual.conv1.weight - clip.visual.conv1.weight).abs().max()
    assert 0 < distance < 0.01


def test_video_reward_learns_single_frames(vae, tmp_path, monkeypatch):
    """They have position embeddings of their own, which clips leave alone."""
    monkeypatch.setattr(rewards, "ONE_COLOR", 0.0)
    config = replace(recipes.RECIPES["reward_internvideo2"].config, steps=1, batch_size=4)
    for share, frozen in ((0.0, "image_pos_embed"), (1.0, "pos_embed")):
        monkeypatch.setattr(rewards, "SINGLE_FRAMES", share)
        fresh = rewards.new_internvideo2(tmp_path).vision.state_dict()
        trained = rewards.train_match(rewards.new_internvideo2(tmp_path), vae, config, tmp_path / str(share), 100)
        changed = {name for name, value in trained.vision.state_dict().items() if not torch.equal(value, fresh[name])}
        assert {"pos_embed", "image_pos_embed"} - changed == {frozen}


def test_stopped_run_goes_on_as_if_it_had_not(trained, tmp_path, monkeypatch):
    """Two steps and one more give the model of three."""
    _, weights = trained
    recipe = recipes.RECIPES["reward_internvideo2"]
    config = replace(recipe.config, steps=3, batch_size=4, log_every=1, save_every=2, decay=0.0)
    monkeypatch.setitem(recipes.RECIPES, "reward_internvideo2", replace(recipe, config=config))
    states = []
    for name, parts in (("whole", (3,)), ("parts", (2, 3))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "vae.safetensors").write_bytes((weights / "vae.safetensors").read_bytes())
        for steps in parts:
            recipes.train("reward_internvideo2", tmp_path / f"run-{name}", folder, steps)
        states.append(networks.read_state(folder / "reward_internvideo2.safetensors")[0])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_command(trained, capsys):
    _, weights = trained
    main(["shapes", "rewards", "--weights", str(weights), "--count", "2", "--only", "clip", "internvideo2"])
    lines = capsys.readouterr().out.strip().split("\n")
    assert lines[0] == "| measure | clip | internvideo2 |"
    assert {line.split(" | ")[0] for line in lines[2:]} >= {f"| {name}" for name in WORDS}
    assert all(0 <= float(cell) <= 100 for line in lines[2:] for cell in line.strip("| ").split(" | ")[1:])
