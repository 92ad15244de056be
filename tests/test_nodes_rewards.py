"""The reward nodes as plain classes, under inference mode as ComfyUI runs them, on random weights of embedded sizes."""

import json
import shutil

import pytest
import test_nodes
import torch
from conftest import ROOT, randomize
from test_nodes import PROMPT, TEACHER, encode, load, run

import t2v_turbo
from t2v_turbo.core.checkpoints.networks import CheckpointError, load_text, save_network
from t2v_turbo.core.families import SHAPES
from t2v_turbo.core.rewards import PAPER_WEIGHTS, checkpoints, load_reward, save_reward
from t2v_turbo.core.video import read_video, to_uint8, write_video
from t2v_turbo.nodes import rewards as declared
from t2v_turbo.nodes.choices import EMBEDDED_REWARDS, PUBLISHED_MIXTURE
from t2v_turbo.nodes.graph import cli as headless
from t2v_turbo.nodes.graph.execution import merge_outputs, run_node
from t2v_turbo.nodes.runtime.score_plot import HEIGHT, LINE, WIDTH, plot_scores
from t2v_turbo.nodes.runtime.scoring import CHUNK, score_clips
from t2v_turbo.train.shapes.training import rewards as recipes

embedded = test_nodes.embedded

MIXTURE = "shapes mixture (embedded)"
LONG = " ".join(f"A red circle moves left, number {i}." for i in range(58))  # 406 words
INPUTS = {"hps_weight": 0.2, "clip_weight": 0.2, "internvideo2_weight": 0.5, "long_prompts": "segments"}


def with_rewards(shapes, folder):
    """A copy of the family's folder that holds random rewards as well."""
    shutil.copytree(shapes, folder)
    text = load_text(folder / "text.safetensors", SHAPES.text)
    with torch.inference_mode(False):
        models = {name: recipes.new_clip(name, text, folder) for name in ("hps", "clip")}
        models["internvideo2"] = recipes.new_internvideo2(folder)
        for seed, (name, model) in enumerate(models.items()):
            save_reward(randomize(model, seed), name, folder / f"reward_{name}.safetensors")
    return folder


@pytest.fixture(scope="session")
def weights(random_shapes, tmp_path_factory):
    return with_rewards(random_shapes, tmp_path_factory.mktemp("weights") / "shapes")


@pytest.fixture(autouse=True)
def packaged(weights, monkeypatch):
    monkeypatch.setattr(checkpoints, "PACKAGED_WEIGHTS", weights.parent)


def clip(frames=8, height=64, width=64, seed=0):
    """Images whose score changes from frame to frame."""
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(seed))


def rewards(choice=MIXTURE, **changes):
    return run("T2VTurboRewardLoader", reward=choice, precision="fp32", **INPUTS | changes)[0]


def score(images, prompt=PROMPT, choice=MIXTURE, **changes):
    return run("T2VTurboRewardScorer", reward=rewards(choice, **changes), images=images, prompt=prompt)


def best_of(images, prompts=(PROMPT,), frames=0, choice=MIXTURE):
    inputs = {"images": list(images), "prompt": list(prompts), "frames": [frames]}
    return run("T2VTurboBestOf", reward=[rewards(choice)], **inputs)


def core_score(weights, name, images, prompt=PROMPT):
    """A clip's score by the core alone."""
    reward = load_reward(name, weights / f"reward_{name}.safetensors", dtype=torch.float32)
    return reward.score(images.movedim(-1, 1)[None], [prompt]).item()


def offered():
    return t2v_turbo.NODE_CLASS_MAPPINGS["T2VTurboRewardLoader"].INPUT_TYPES()["required"]["reward"][0]


# --- the loader ----------


def test_the_inputs_say_what_the_core_says():
    assert declared.PAPER_WEIGHTS == PAPER_WEIGHTS and tuple(declared.LONG_PROMPTS) == checkpoints.LONG_CAPTIONS
    assert set(EMBEDDED_REWARDS.values()) == {None, *PAPER_WEIGHTS}


@pytest.mark.parametrize(("choice", "names"), [(MIXTURE, list(PAPER_WEIGHTS)), ("shapes clip (embedded)", ["clip"])])
def test_the_embedded_rewards_load_with_nothing_downloaded(choice, names):
    assert offered() == list(EMBEDDED_REWARDS)
    loaded = rewards(choice)
    assert list(loaded) == names
    assert [reward.weight for reward in loaded.values()] == (list(PAPER_WEIGHTS.values()) if len(names) > 1 else [1.0])
    for reward in loaded.values():
        assert not any(weight.is_inference() or weight.requires_grad for weight in reward.network.parameters())


def test_a_weight_of_0_leaves_a_reward_out():
    assert list(rewards(hps_weight=0.0, internvideo2_weight=0.0)) == ["clip"]
    with pytest.raises(ValueError, match="hps_weight and clip_weight and internvideo2_weight are all 0"):
        rewards(**{f"{name}_weight": 0.0 for name in PAPER_WEIGHTS})


def test_precision_and_long_prompts_reach_the_models():
    loaded = run("T2VTurboRewardLoader", reward=MIXTURE, precision="bf16", **INPUTS | {"long_prompts": "truncate"})[0]
    assert {reward.network.dtype for reward in loaded.values()} == {torch.bfloat16}
    assert {reward.network.long_captions for reward in loaded.values()} == {"truncate"}
    rough = run("T2VTurboRewardScorer", reward=loaded, images=clip(), prompt=PROMPT)[0]
    assert rough == pytest.approx(score(clip())[0], abs=0.02) and rough != score(clip())[0]


def put_files(models, weights):
    """An own HPS, and the embedded CLIP under the published name."""
    for name, file in (("hps", "mine.safetensors"), ("clip", "open_clip_model.safetensors")):
        folder = models / "rewards" / name
        folder.mkdir(parents=True)
        shutil.copy(weights / f"reward_{name}.safetensors", folder / file)
        shutil.copy(weights / SHAPES.text.merges, folder)


def test_files_of_the_models_folder_appear_and_load(tmp_path, weights):
    put_files(tmp_path, weights)
    files = ["rewards/clip/open_clip_model.safetensors", "rewards/hps/mine.safetensors"]
    assert offered() == [*EMBEDDED_REWARDS, PUBLISHED_MIXTURE, *files]
    assert score(clip(), choice=files[1])[0] == pytest.approx(core_score(weights, "hps", clip()))
    assert list(rewards(files[0])) == ["clip"]
    mixture = rewards(PUBLISHED_MIXTURE, hps_weight=0.0, internvideo2_weight=0.0)
    assert {name: reward.weight for name, reward in mixture.items()} == {"clip": 0.2}
    models = t2v_turbo.NODE_CLASS_MAPPINGS["T2VTurboLoader"].INPUT_TYPES()["required"]["model"][0]
    assert not any("rewards" in name for name in models), "a reward is no model to sample with"


def test_a_changed_file_is_loaded_again(tmp_path, weights):
    put_files(tmp_path, weights)
    changed = t2v_turbo.NODE_CLASS_MAPPINGS["T2VTurboRewardLoader"].IS_CHANGED
    inputs = {"reward": "rewards/hps/mine.safetensors", "precision": "auto", **INPUTS}
    before = changed(**inputs)
    assert changed(**inputs) == before
    (tmp_path / "rewards" / "hps" / "mine.safetensors").touch()
    assert changed(**inputs) != before


def test_missing_wrong_and_misplaced_files_are_named(tmp_path, weights):
    put_files(tmp_path, weights)
    with pytest.raises(ValueError, match=r"mixture needs .*HPS_v2\.1_compressed\.pt; put the file there, or set hps_w"):
        rewards(PUBLISHED_MIXTURE)
    with pytest.raises(ValueError, match=r"reward: 'rewards/hps/gone.* does not lie in .*choose one of the list"):
        rewards("rewards/hps/gone.safetensors")
    with pytest.raises(ValueError, match="does not lie in"):
        rewards("../secret.safetensors")
    folder = tmp_path / "rewards" / "hps"
    (folder / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"broken\.safetensors"):
        rewards("rewards/hps/broken.safetensors")
    save_network({"a": torch.zeros(1)}, folder / "other.safetensors", "reward", {}, torch.float32, {"name": "clip"})
    with pytest.raises(CheckpointError, match="holds the reward 'clip', but 'hps' was expected"):
        rewards("rewards/hps/other.safetensors")
    for place in ("rewards/", ""):
        shutil.copy(folder / "mine.safetensors", tmp_path / place)
        with pytest.raises(ValueError, match=r"does not tell which reward it is; put it into .*rewards/hps"):
            rewards(f"{place}mine.safetensors")


def test_missing_embedded_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "PACKAGED_WEIGHTS", tmp_path)
    with pytest.raises(CheckpointError, match=r"reward_hps\.safetensors"):
        rewards()


# --- the scorer ----------


@pytest.mark.parametrize("images", [clip(), clip(1), clip(3, 40, 72), clip(CHUNK + 4)], ids=lambda images: len(images))
def test_the_score_is_the_cores(weights, images):
    total, table, _ = score(images)
    each = {name: core_score(weights, name, images) for name in PAPER_WEIGHTS}
    assert total == pytest.approx(sum(PAPER_WEIGHTS[name] * value for name, value in each.items()), abs=1e-5)
    lines = table.splitlines()
    assert lines[0] == "| reward | score | weight | unit |" and len(lines) == 6
    assert lines[2:5] == [
        f"| {title} of Moving Shapes | {each[name]:.4f} | {PAPER_WEIGHTS[name]} | cosine |"
        for title, name in (("Preference model", "hps"), ("CLIP", "clip"), ("InternVideo2", "internvideo2"))
    ]
    assert lines[5].startswith(f"| **weighted sum** | **{total:.4f}**")


def test_every_frame_has_its_score_and_a_video_reward_one_for_all(weights):
    images = clip(CHUNK + 2)
    (scores,) = score_clips(rewards(), [images], [PROMPT])
    assert {len(values) for values in scores.values()} == {len(images)}
    for i in (0, CHUNK, CHUNK + 1):
        assert scores["hps"][i].item() == pytest.approx(core_score(weights, "hps", images[i : i + 1]), abs=1e-5)
    assert scores["hps"].std() > 1e-4 and (scores["internvideo2"] == scores["internvideo2"][0]).all()


def test_a_single_reward_counts_as_it_is(weights):
    total = score(clip(), choice="shapes internvideo2 (embedded)", internvideo2_weight=0.0)[0]
    assert total == pytest.approx(core_score(weights, "internvideo2", clip()), abs=1e-5)


def test_a_prompt_of_400_words_is_scored_whole_or_cut_and_the_table_tells(weights):
    choice = "shapes clip (embedded)"
    whole, table, _ = score(clip(), LONG, choice)
    cut, cut_table, _ = score(clip(), LONG, choice, long_prompts="truncate")
    assert len(LONG.split()) > 400 and whole != pytest.approx(cut, abs=1e-6)
    assert whole == pytest.approx(core_score(weights, "clip", clip(), LONG), abs=1e-5)
    network = rewards(choice)["clip"].network
    tokens, parts = network.count_tokens(LONG), len(network.segments(LONG))
    assert parts > 5 and f"reads 77 tokens: the prompt of {tokens} was scored in {parts} parts" in table
    assert "was cut off there" in cut_table
    assert "tokens" not in score(clip(), PROMPT, choice)[1]


def test_overshoot_is_clamped_and_alpha_ignored():
    images = clip() * 1.2 - 0.1
    assert score(images)[0] == pytest.approx(score(images.clamp(0, 1))[0])
    with_alpha = torch.cat([clip(), torch.zeros(8, 64, 64, 1)], dim=-1)
    assert score(with_alpha)[0] == score(clip())[0]


@pytest.mark.parametrize(
    ("images", "prompt", "message"),
    [
        (clip().fill_(float("nan")), PROMPT, "images: frames hold NaN"),
        (clip() * 255, PROMPT, r"images: frames from .* 0\.\.1 is needed"),
        (clip() * 2 - 1, PROMPT, r"images: frames from .* 0\.\.1 is needed"),
        (clip()[:0], PROMPT, "images: frames of shape .* nothing empty"),
        (clip(), " \n", "^prompt: is empty; write what the clip shall show"),
    ],
)
def test_what_cannot_be_scored_is_refused(images, prompt, message):
    with pytest.raises(ValueError, match=message):
        score(images, prompt)


def test_scores_that_are_no_numbers_are_refused():
    loaded = rewards("shapes hps (embedded)")
    loaded["hps"].network.visual.conv1.weight.data[0] = float("inf")
    with pytest.raises(ValueError, match=r"Preference model .* no numbers; choose the precision fp32"):
        run("T2VTurboRewardScorer", reward=loaded, images=clip(), prompt=PROMPT)


# --- the plot ----------


def heights(picture):
    """Mean row of the curve's pixels in every column that it crosses, of the first panel."""
    drawn = (picture[:HEIGHT] - torch.tensor(LINE) / 255).abs().amax(-1) < 0.1
    rows = torch.arange(HEIGHT)[:, None] * drawn
    columns = drawn.any(0)
    return (rows.sum(0) / drawn.sum(0))[columns]


def test_the_plot_has_a_panel_per_reward_and_follows_the_scores():
    scores = {"a": torch.tensor([0.1, 0.2, 0.3, 0.4]), "b": torch.full((4,), 0.5)}
    picture = plot_scores(scores)
    assert picture.shape == (2 * HEIGHT, WIDTH, 3) and 0 <= picture.min() < picture.max() <= 1
    rising, level = heights(picture), heights(picture[HEIGHT:])
    assert rising[0] - rising[-1] > 0.7 * 100 and (rising.diff() < 3).all()
    assert level.max() - level.min() < 2
    noise = heights(plot_scores({"a": torch.tensor([0.3001, 0.3, 0.3001])}))
    assert noise.max() - noise.min() < 4, "noise is no trend"
    assert len(heights(plot_scores({"a": torch.tensor([0.3])}))) in range(4, 10), "one frame is one dot"


def test_the_scorers_plot_is_that_of_its_scores():
    *_, picture = score(clip())
    assert picture.shape == (1, 3 * HEIGHT, WIDTH, 3)
    assert not torch.equal(picture, score(clip(seed=1))[2])


# --- the best of several ----------


def test_the_best_clip_wins_however_the_clips_come():
    clips = [clip(seed=seed) * (0.2 + 0.2 * seed) for seed in range(4)]
    totals = [score(images)[0] for images in clips]
    expected = max(range(4), key=lambda i: totals[i])
    images, index, total, table = best_of(clips)
    assert torch.equal(images, clips[expected]) and index == expected and total == pytest.approx(max(totals))
    lines = table.splitlines()[2:]
    assert [line.split(" | ")[1].strip("*") for line in lines] == [f"{value:.4f}" for value in totals]
    assert [i for i, line in enumerate(lines) if line.startswith("| **")] == [expected]
    batched = best_of([torch.cat(clips)], frames=8)
    halves = best_of([torch.cat(clips[:2]), torch.cat(clips[2:])], frames=8)
    for found in (batched, halves):
        assert torch.equal(found[0], images) and found[1:] == (index, total, table)
    reversed_images, reversed_index, *_ = best_of(clips[::-1])
    assert torch.equal(reversed_images, images) and reversed_index == 3 - expected


def test_clips_of_other_sizes_and_prompts_of_their_own():
    clips, prompts = [clip(), clip(3, 40, 72, seed=1)], [PROMPT, "a blue square"]
    totals = [score(*pair)[0] for pair in zip(clips, prompts)]
    _, index, total, table = best_of(clips, prompts)
    assert total == pytest.approx(max(totals)) and index == totals.index(max(totals))
    columns = [f"{title} of Moving Shapes" for title in ("Preference model", "CLIP", "InternVideo2")]
    weighted = [f"{title} × {weight}" for title, weight in zip(columns, PAPER_WEIGHTS.values())]
    assert table.splitlines()[0] == f"| clip | weighted sum | {' | '.join(weighted)} |"
    assert best_of([clip(), clip()])[1] == 0, "of equal clips the first"


def test_mistakes_with_several_clips_name_the_clip():
    broken = clip()
    broken[5] = float("inf")
    with pytest.raises(ValueError, match="images of clip 1: frames hold NaN or infinite"):
        best_of([clip(), broken])
    with pytest.raises(ValueError, match="frames=3: a batch of 8 images is no whole number of such clips"):
        best_of([clip()], frames=3)
    with pytest.raises(ValueError, match="prompt: 2 prompts for 3 clips"):
        best_of([clip()] * 3, [PROMPT] * 2)
    with pytest.raises(ValueError, match=r"^prompt of clip 1: is empty; write what the clip shall show"):
        best_of([clip()] * 2, [PROMPT, " "])
    with pytest.raises(ValueError, match=r"^prompt: is empty"):
        best_of([clip()] * 2, [""])


# --- several clips out of one latent ----------


def several(clips, frames=8):
    return run("T2VTurboEmptyLatentVideo", width=64, height=64, frames=frames, clips=clips)[0]


def test_each_clip_has_its_frames_places_and_the_first_is_as_ever():
    assert [list(latent) for latent in several(1)] == [["samples"]]
    places = [latent.get("batch_index") for latent in several(3, frames=2)]
    assert places == [None, [2, 3], [4, 5]]
    assert [latent["samples"].shape for latent in several(3, frames=2)] == [(2, 4, 8, 8)] * 3


def test_every_clip_is_that_of_the_following_seed():
    model, text, _ = load()
    first, second, third = (test_nodes.sample(model, text, latent, seed=7)["samples"] for latent in several(3))
    for found, seed in ((first, 7), (second, 8), (third, 9)):
        assert torch.equal(found, test_nodes.sample(model, text, seed=seed)["samples"])
    teacher, text, _ = load(TEACHER)
    inputs = {"model": teacher, "positive": encode(text), "negative": encode(text, ""), "steps": 2}
    inputs |= {"cfg": 7.5, "fps": 0}
    found = run("T2VTurboTeacherSampler", latent=several(2)[1], seed=2**64 - 1, **inputs)[0]["samples"]
    assert torch.equal(found, run("T2VTurboTeacherSampler", latent=several(1)[0], seed=0, **inputs)[0]["samples"])


# --- presets, headless ----------


def preset(name):
    return ROOT / "workflows" / "api" / f"{name}.json"


def test_best_of_n_saves_the_best_clip_and_tells_why(tmp_path, capsys):
    graph = json.loads(preset("best_of_n").read_text())
    assert headless.main([str(preset("best_of_n")), "--out", str(tmp_path), "--set", "5.steps=1", "4.clips=3"]) == 0
    *table, path = capsys.readouterr().out.splitlines()
    assert len(table) == 5 and path == str(tmp_path / "video" / "T2V-Turbo_00001_.mp4")
    (best,) = [i for i, line in enumerate(table[2:]) if "**" in line]
    model, text, vae = load(precision="auto")
    latents = [test_nodes.sample(model, text, steps=1, seed=graph["5"]["inputs"]["seed"] + i) for i in range(3)]
    images = [vae.decode(latent["samples"]) for latent in latents]
    assert best_of(images)[1] == best
    write_video(tmp_path / "again.mp4", to_uint8(images[best].movedim(-1, 1)), 8)
    assert (read_video(path) == read_video(tmp_path / "again.mp4")).all()


def test_score_video_scores_a_file(tmp_path, capsys):
    write_video(tmp_path / "reference.mp4", (clip(12) * 255).byte().numpy(), 8)
    folders = ["--out", str(tmp_path), "--input", str(tmp_path)]
    assert headless.main([str(preset("score_video")), *folders]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| reward | score | weight | unit |" and len(lines) == 6
    assert headless.main([str(preset("score_video")), *folders, "--set", "4.prompt="]) == 2
    assert "prompt: is empty" in capsys.readouterr().err
    settings = {"3.reward=foo": "reward: 'foo' does not lie in", "3.hps_weight=nan": "hps_weight='nan' is not allowed"}
    for setting, message in (settings | {"3.hps_weight=-1": "a number from 0.0 to 10.0"}).items():
        assert headless.main([str(preset("score_video")), *folders, "--set", setting]) == 2
        assert message in capsys.readouterr().err


def test_nodes_without_lists_run_once_for_every_entry():
    graph_inputs = {"a": [1, 2, 3], "b": [10, 20], "c": ["x"]}
    results = run_node(lambda a, b, c: (f"{a}{b}{c}",), graph_inputs)
    assert results == [("110x",), ("220x",), ("320x",)]
    assert merge_outputs(lambda: None, results) == [["110x", "220x", "320x"]]
    assert run_node(lambda: (1,), {}) == [(1,)] and merge_outputs(print, [{"ui": {}}]) == []


# --- devices ----------


def test_every_model_is_loaded_before_it_scores_and_once_per_reward(monkeypatch):
    loaded = rewards()
    asked = []
    host = type(test_nodes.host())
    monkeypatch.setattr(host, "load", lambda self, patcher, memory=0: asked.append((patcher, memory)))
    score_clips(loaded, [clip(2), clip(2)], [PROMPT] * 2)
    order = [reward.patcher for reward in loaded.values() for _ in range(2)]
    assert [patcher for patcher, _ in asked] == order and all(memory > 0 for _, memory in asked)
