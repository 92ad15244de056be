"""``t2v-turbo score`` and ``generate --best-of`` as a user calls them, with small random reward models in a folder."""

import csv
import gzip
import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from test_rewards import LONG, SMALL, VOCABULARY, randomized

from t2v_turbo.core.checkpoints.locations import PACKAGED_WEIGHTS
from t2v_turbo.core.rewards import PAPER_WEIGHTS, build_reward, load_mixture, load_reward, reward_path, save_reward
from t2v_turbo.core.rewards.best_of import best_of
from t2v_turbo.core.rewards.scoring import score_clip
from t2v_turbo.core.video import from_uint8, iterate_video, read_metadata, read_video, write_video
from t2v_turbo.train.cli import main
from t2v_turbo.train.scoring import rewards as reward_models
from t2v_turbo.train.scoring import scoring
from t2v_turbo.train.scoring.best_of import read_weights

PROMPT, OTHER = "a red circle moves right", "a blue square"


@pytest.fixture(scope="module")
def rewards(tmp_path_factory, random_shapes):
    """The embedded family's folder with small reward models; "hps" and "clip" see different frames of the same size."""
    folder = tmp_path_factory.mktemp("with-rewards")
    for path in random_shapes.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    for seed, name in enumerate(PAPER_WEIGHTS):
        reward = randomized(build_reward(name, SMALL[name], folder), seed)
        save_reward(reward, name, reward_path(name, "shapes", folder))
    return folder


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T2V_TURBO_MODELS", str(tmp_path / "models"))


@pytest.fixture
def run(rewards, capsys):
    """Runs the command; returns its exit code, what it printed, and its complaints."""

    def call(*words, checkpoints=rewards):
        code = main(["score", "--device", "cpu", "--checkpoints", str(checkpoints), *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def scores(run):
    """The rows of the command's JSON."""

    def call(*words, **options):
        code, out, _ = run("--json", *words, **options)
        assert code == 0
        return json.loads(out)["scores"]

    return call


def clip(path, frames=6, seed=0, **tags):
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 32, 40, 3), dtype=np.uint8)
    write_video(path, pixels, 8, tags)
    return path


def load_small(folder, name):
    return load_reward(name, family="shapes", folder=folder, dtype=torch.float32)


def rows_of(markdown):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if "|" in line]


# --- what is scored ----------


def test_a_clip_and_a_prompt(run, scores, rewards):
    """The scores are those of the reward models on the frames of the file."""
    clip("a.mp4")
    code, out, _ = run("a.mp4", PROMPT)
    assert code == 0
    header, _, *table = rows_of(out)
    assert header == ["reward", "score", "unit", "range"]
    assert [row[0] for row in table] == list(PAPER_WEIGHTS)
    frames = from_uint8(read_video("a.mp4"))[None]
    (row,) = scores("a.mp4", PROMPT)
    for name, shown, unit, bounds in table:
        expected = load_small(rewards, name).score(frames, [PROMPT]).item()
        assert row[name] == pytest.approx(expected, abs=1e-5)
        assert float(shown) == pytest.approx(expected, abs=1e-4)
        assert (unit, bounds) == ("cosine", "-1 to 1")


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("frames", [1, 3, 20])
def test_one_encoding_serves_all_prompts(name, frames, rewards):
    """In chunks or at once, one prompt or several, short or long: the reward's own score."""
    reward = randomized(build_reward(name, SMALL[name], rewards))
    pixels = np.random.default_rng(1).integers(0, 256, (frames, 20, 36, 3), dtype=np.uint8)
    prompts = (PROMPT, OTHER, " ".join(LONG.split()[:100]))
    expected = [reward.score(from_uint8(pixels)[None], [prompt]).item() for prompt in prompts]
    assert score_clip(reward, list(pixels), prompts).tolist() == pytest.approx(expected, abs=1e-4)


def test_image_rewards_see_as_many_frames_as_asked(scores, rewards):
    clip("a.mp4", 9)
    pixels = from_uint8(read_video("a.mp4"))[None]
    (row,) = scores("a.mp4", PROMPT, "--frames", "2")
    assert row["hps"] == pytest.approx(load_small(rewards, "hps").score(pixels[:, [0, 4]], [PROMPT]).item(), abs=1e-5)
    video = load_small(rewards, "internvideo2").score(pixels, [PROMPT]).item()
    assert row["internvideo2"] == pytest.approx(video, abs=1e-5)


def test_a_long_clip_is_seen_evenly_in_bounded_memory(scores, rewards, monkeypatch):
    shades = np.linspace(0, 255, 100).astype(np.uint8)
    write_video("long.mp4", np.broadcast_to(shades[:, None, None, None], (100, 32, 40, 3)).copy(), 24)
    seen = [int(frame.mean()) for frame in scoring.read_evenly("long.mp4", 10)]
    assert seen == pytest.approx(shades[::10].tolist(), abs=3)
    assert len(scoring.read_evenly("long.mp4", 100)) == 100
    alive = []

    def counted(*args):
        alive.append(0)
        for frame in iterate_video(*args):
            alive[-1] += 1
            yield frame

    monkeypatch.setattr(scoring, "iterate_video", counted)
    scores("long.mp4", PROMPT)
    assert alive == [scoring.MOST_FRAMES + 1, scoring.MOST_FRAMES]


def test_one_frame(scores, rewards):
    clip("a.gif", 1)
    (row,) = scores("a.gif", PROMPT)
    frame = from_uint8(read_video("a.gif"))[None]
    for name in PAPER_WEIGHTS:
        assert row[name] == pytest.approx(load_small(rewards, name).score(frame, [PROMPT]).item(), abs=1e-5)


def test_long_captions(scores, run, caplog):
    """420 words: in segments by default, cut off if asked to; a warning tells which."""
    clip("a.mp4")
    (whole,), (cut,) = scores("a.mp4", LONG), scores("a.mp4", LONG, "--long-captions", "truncate")
    (beginning,) = scores("a.mp4", " ".join(LONG.split()[:90]), "--long-captions", "truncate")
    assert cut["clip"] == pytest.approx(beginning["clip"], abs=1e-6)
    assert abs(whole["clip"] - cut["clip"]) > 1e-6
    assert "segments of whole sentences" in caplog.text
    assert "cut off there" in caplog.text


def test_rewards_are_chosen_by_name(scores):
    clip("a.mp4")
    assert list(scores("a.mp4", PROMPT, "--rewards", "clip, hps")[0]) == ["file", "prompt", "clip", "hps"]


def test_only_the_rewards_that_are_there(scores, rewards, tmp_path):
    shutil.copy(reward_path("hps", "shapes", rewards), tmp_path)
    clip("a.mp4")
    assert list(scores("a.mp4", PROMPT, checkpoints=tmp_path)[0]) == ["file", "prompt", "hps"]


def test_published_files_below_a_folder(scores, rewards, tmp_path):
    """Where `download --folder` puts them."""
    path = reward_path("clip", folder=tmp_path / "elsewhere")
    assert path == tmp_path / "elsewhere" / "rewards" / "clip" / "open_clip_model.safetensors"
    path.parent.mkdir(parents=True)
    shutil.copy(reward_path("clip", "shapes", rewards), path)
    clip("a.mp4")
    (row,) = scores("a.mp4", PROMPT, "--model", "videocrafter2", checkpoints=tmp_path / "elsewhere")
    assert row["clip"] == scores("a.mp4", PROMPT, "--rewards", "clip")[0]["clip"]


# --- which prompt ----------


def test_a_clip_carries_its_prompt(scores):
    clip("a.mp4", prompt=OTHER)
    clip("b.gif", prompt=OTHER, note="a: b")
    clip("c.mp4")
    clip("d.mp4", prompt='{"3": {"class_type": "KSampler"}}')  # ComfyUI's graph is no prompt
    for name in ("c", "d"):
        with open(f"{name}.txt", "w") as file:
            file.write("a caption\n")
    found = {row["file"]: row["prompt"] for row in scores(".")}
    assert found == {"a.mp4": OTHER, "b.gif": OTHER, "c.mp4": "a caption", "d.mp4": "a caption"}
    assert scores("a.mp4", PROMPT)[0]["prompt"] == PROMPT


def test_words_are_told_apart(scores):
    """Clips and prompts in any order; --prompt takes what looks like a clip."""
    clip("a.mp4")
    clip("b.mp4")
    assert [row["prompt"] for row in scores(OTHER, "a.mp4", PROMPT)] == [OTHER, PROMPT]
    assert [row["prompt"] for row in scores("a.mp4", "--prompt", "b.mp4")] == ["b.mp4"]
    with open("prompts.txt", "w") as file:
        file.write(f"{PROMPT}\n\n{OTHER}\n")
    assert [row["prompt"] for row in scores("a.mp4", "--prompts", "prompts.txt")] == [PROMPT, OTHER]


def test_matrix(run, scores):
    for seed, name in enumerate(("a.mp4", "b.mp4", "c.mp4")):
        clip(name, seed=seed)
    words = ["a.mp4", "b.mp4", "c.mp4", "--prompt", PROMPT, "--prompt", OTHER, "--rewards", "hps,clip"]
    single = {(row["file"], row["prompt"]): row["clip"] for row in scores(*words)}
    assert len(single) == 6
    _, out, _ = run(*words)
    hps, by_clip = out.split("\nclip\n")
    assert hps.startswith("hps\n")
    header, _, *table = rows_of(by_clip)
    assert header == ["clip", PROMPT, OTHER]
    for name, *cells in table:
        assert [float(cell) for cell in cells] == pytest.approx([single[name, PROMPT], single[name, OTHER]], abs=1e-4)
    assert len({cell for _, *cells in table for cell in cells}) > 3


def test_a_table_of_prompts(run, scores):
    """A row each, in the table's order; the scores as CSV serve as such a table again."""
    os.mkdir("clips")
    clip("clips/a.mp4", seed=1)
    clip("clips/b.mp4", seed=2)
    with open("clips/captions.csv", "w") as file:
        file.write(f'file,prompt\nb.mp4,{OTHER}\na.mp4,"{PROMPT}, slowly"\n')
    rows = scores("clips", "--table", "captions.csv")
    assert [(row["file"], row["prompt"]) for row in rows] == [("b.mp4", OTHER), ("a.mp4", f"{PROMPT}, slowly")]
    code, out, _ = run("clips", "--table", "clips/captions.csv", "--out", "scores.csv")
    assert code == 0 and out.startswith("scores.csv: 2 scores, mean hps ")
    with open("scores.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [{name: float(row[name]) for name in PAPER_WEIGHTS} for row in written] == [
        {name: pytest.approx(row[name]) for name in PAPER_WEIGHTS} for row in rows
    ]
    assert scores("clips", "--table", "scores.csv") == rows


def test_a_broken_clip_is_named_and_counted(run):
    os.mkdir("clips")
    clip("clips/a.mp4", prompt=PROMPT)
    clip("clips/c.mp4")
    with open("clips/b.mp4", "wb") as file:
        file.write(b"no video" * 100)
    code, out, error = run("clips", "--json")
    assert code == 1
    found = json.loads(out)
    assert [row["file"] for row in found["scores"]] == ["a.mp4"]
    assert [row["file"] for row in found["problems"]] == ["b.mp4", "c.mp4"]
    assert "2 of 3 clips cannot be scored:" in error
    assert "clips/b.mp4: cannot be read as a video" in error
    assert "c.mp4: no prompt in its tags, and no caption" in error
    assert run("clips", "--out", "scores.csv")[0] == 1
    with open("scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["hps"]) for row in rows] == [bool(not row["problem"]) for row in rows] == [True, False, False]


def test_a_stopped_run_leaves_no_table(rewards, monkeypatch, tmp_path):
    clip("a.mp4", prompt=PROMPT)
    with open("scores.csv", "w") as file:
        file.write("before")
    monkeypatch.setattr(csv.DictWriter, "writerow", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    assert main(["score", "a.mp4", "--out", "scores.csv", "--device", "cpu", "--checkpoints", str(rewards)]) == 2
    # What was scored is kept for the next time, under a name that no one takes for the table.
    assert sorted(path.name for path in tmp_path.iterdir()) == [".scores.csv.kept", "a.mp4", "scores.csv"]
    assert (tmp_path / "scores.csv").read_text() == "before"


def test_a_stopped_run_goes_on(run, scores, monkeypatch, tmp_path):
    os.mkdir("clips")
    for name in "abc":
        clip(f"clips/{name}.mp4", prompt=PROMPT)
    whole, judged, stopped = scoring.score_file, [], []

    def score_file(path, *rest):
        if path.name == "c.mp4" and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        judged.append(path.name)
        return whole(path, *rest)

    monkeypatch.setattr(scoring, "score_file", score_file)
    assert run("clips", "--out", "scores.csv")[0] == 130
    assert judged == ["a.mp4", "b.mp4"]
    assert not os.path.exists("scores.csv")
    with open(".scores.csv.kept", "a") as file:
        file.write('\n[{"clip": ["cut of')
    clip("clips/b.mp4", prompt="a blue cross")  # another clip by now
    judged.clear()
    assert run("clips", "--out", "scores.csv")[0] == 0
    assert judged == ["b.mp4", "c.mp4"]
    with open("scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = scores("clips")
    assert [row["prompt"] for row in rows] == [PROMPT, "a blue cross", PROMPT]
    assert [float(row["hps"]) for row in rows] == pytest.approx([row["hps"] for row in expected], abs=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "scores.csv"]


# --- mistakes: one clear line, exit code 2, nothing written ----------

MISTAKES = {
    "nothing": ([], "no clip to score: try"),
    "a prompt alone": ([PROMPT], f"no clip to score (nothing is there of the name {PROMPT})"),
    "missing clip": (["none.mp4", PROMPT], "none.mp4: no such video file"),
    "wrong file": (["captions.csv", PROMPT], "captions.csv: cannot be read as a video"),
    "empty prompt": (["a.mp4", ""], "prompt 1 is empty"),
    "blank prompt": (["a.mp4", PROMPT, "--prompt", "  "], "prompt 2 is empty"),
    "no prompt": (["a.mp4"], "a.mp4: no prompt in its tags, and no caption: neither a.txt nor a.json has one"),
    "missing prompts": (["a.mp4", "--prompts", "none.txt"], "--prompts none.txt: cannot be read"),
    "prompts that are no text": (["a.mp4", "--prompts", "a.mp4"], "--prompts a.mp4: is no UTF-8 text"),
    "no prompts": (["a.mp4", "--prompts", "empty.txt"], "empty.txt: holds no prompt"),
    "no videos": (["empty"], "empty: holds no videos"),
    "unknown reward": (["a.mp4", PROMPT, "--rewards", "nice"], "unknown reward 'nice'; known are hps"),
    "no such reward here": (
        ["a.mp4", PROMPT, "--rewards", "pickscore"],
        "reward_pickscore.safetensors: no such checkpoint file for the reward 'pickscore'; the folder holds hps, clip, "
        "internvideo2; the published one is fetched with `t2v-turbo download pickscore`",
    ),
    "unknown model": (["a.mp4", PROMPT, "--model", "sora"], "unknown model 'sora'"),
    "frames": (["a.mp4", PROMPT, "--frames", "0"], "--frames 0 must be 1 or more"),
    "out": (["a.mp4", PROMPT, "--out", "scores.xls"], "cannot write '.xls'; use .csv"),
    "out in no folder": (["a.mp4", PROMPT, "--out", "none/scores.csv"], "none/scores.csv"),
    "table and prompt": (["a.mp4", PROMPT, "--table", "captions.csv"], "--table has the prompts"),
    "missing table": (["empty", "--table", "none.csv"], "none.csv: no such file; it is looked for here and"),
    "table without columns": (["--table", "wrong.csv"], "wrong.csv: none of its 1 rows can be used; row 1: a first"),
    "table of missing clips": (["--table", "captions.csv"], "none of 2 clips can be scored: x.mp4: no such video"),
    "the same with --out": (["--table", "captions.csv", "--out", "o.csv"], "be scored: x.mp4: no such video file"),
    "out that cannot be written": (["a.mp4", PROMPT, "--out", "/proc/o.csv"], "/proc/o.csv: cannot write here"),
    "path outside": (["--table", "outside.csv"], "outside.csv: none of its 1 rows can be used; row 1: the path"),
    "unknown encoding": (["a.mp4", PROMPT, "--encoding", "klingon"], "--encoding klingon is unknown; use utf-8"),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(run, tmp_path, words, message):
    clip("a.mp4")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "captions.csv").write_text(f"file,prompt\nx.mp4,{PROMPT}\ny.mp4,{PROMPT}\n")
    (tmp_path / "wrong.csv").write_text("video,text\na.mp4,x\n")
    (tmp_path / "outside.csv").write_text(f"file,prompt\n../a.mp4,{PROMPT}\n")
    before = sorted(tmp_path.rglob("*"))
    code, out, error = run(*words)
    assert (code, out) == (2, "")
    *bar, line = error.splitlines()  # of a table of clips there is a progress bar
    assert line.startswith("t2v-turbo score: ") and not (bar and words[0] != "--table")
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_table_that_names_clips_twice_is_no_matrix(run):
    """Four rows of two clips and two prompts, but not all pairs."""
    clip("a.mp4")
    clip("b.mp4", seed=1)
    with open("twice.csv", "w") as file:
        file.write(f"file,prompt\na.mp4,{PROMPT}\na.mp4,{PROMPT}\nb.mp4,{OTHER}\nb.mp4,{OTHER}\n")
    code, out, _ = run("--table", "twice.csv", "--rewards", "hps")
    assert code == 0
    assert [row[0] for row in rows_of(out)[2:6]] == ["a.mp4", "a.mp4", "b.mp4", "b.mp4"]


@pytest.mark.parametrize("content", [None, b"no gzip", gzip.compress(b"x")[:-6]])
def test_a_damaged_merges_list_is_not_the_clips_fault(run, tmp_path, content):
    clip("a.mp4")
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(PACKAGED_WEIGHTS / "shapes" / "reward_hps.safetensors", folder)
    if content:
        (folder / "merges.txt.gz").write_bytes(content)
    code, _, error = run("a.mp4", PROMPT, "--rewards", "hps", checkpoints=folder)
    assert code == 2
    assert "models/merges.txt.gz: cannot be read as the merges list" in error and "a.mp4" not in error


def test_an_empty_prompt_in_a_table(run):
    clip("a.mp4")
    with open("captions.csv", "w") as file:
        file.write(f"file,prompt\na.mp4,{PROMPT}\na.mp4,\n")
    code, _, error = run("--table", "captions.csv")
    assert code == 1
    assert "a.mp4: its prompt is empty" in error


def test_missing_models(run, tmp_path):
    clip("a.mp4")
    code, _, error = run("a.mp4", PROMPT, checkpoints=tmp_path / "none")
    assert code == 2
    assert "no reward model is there" in error and "t2v-turbo download hps clip internvideo2" in error
    code, _, error = run("a.mp4", PROMPT, "--model", "videocrafter2", "--rewards", "hps", checkpoints=tmp_path / "none")
    assert code == 2
    assert "rewards/hps/HPS_v2.1_compressed.pt: no such checkpoint file" in error
    assert "fetch it with `t2v-turbo download hps`" in error


def test_a_damaged_model(run, rewards, tmp_path):
    clip("a.mp4")
    whole = reward_path("hps", "shapes", rewards).read_bytes()
    reward_path("hps", "shapes", tmp_path).write_bytes(whole[: len(whole) // 2])
    code, _, error = run("a.mp4", PROMPT, checkpoints=tmp_path)
    assert code == 2
    assert "reward_hps.safetensors: not a complete safetensors file" in error


def test_a_missing_library_is_told(run, monkeypatch):
    clip("a.mp4")
    message = "No module named 'tokenizers'"

    def absent(*_, **__):
        raise ImportError(message)

    monkeypatch.setattr(reward_models, "load_reward", absent)
    code, _, error = run("a.mp4", PROMPT)
    assert code == 2
    assert message in error


def test_scores_that_are_not_finite(rewards):
    """What a model gives in too narrow a precision."""
    reward = load_small(rewards, "clip")
    reward.visual.proj.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="needs more precision"):
        scoring.finite_scores(reward, [np.zeros((8, 8, 3), np.uint8)], (PROMPT,))


# --- the best of several seeds ----------


@pytest.fixture
def generate(rewards, capsys):
    def call(*options, checkpoints=rewards):
        small = ["--frames", "2", "--height", "16", "--width", "24", "--steps", "1", "--device", "cpu"]
        code = main(["generate", *small, "--checkpoints", str(checkpoints), *map(str, options)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_best_is_kept_and_the_table_says_why(generate, tmp_path, rewards):
    code, out, _ = generate(PROMPT, "--best-of", "4", "--reward", "hps", "--seed", "3", "--out", "best.mp4")
    assert code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["best.mp4"]
    header, _, *table = rows_of(out)
    assert header == ["seed", "hps", "total", ""]
    assert [row[0] for row in table] == ["3", "4", "5", "6"]
    (winner,) = [row for row in table if row[3] == "best"]
    assert float(winner[2]) == max(float(row[2]) for row in table) > min(float(row[2]) for row in table)
    assert out.splitlines()[-1] == "best.mp4"
    tags = read_metadata("best.mp4")
    assert tags["seed"] == winner[0]
    told = json.loads(tags["best_of"])
    assert told["seeds"] == [3, 6] and told["weights"] == {"hps": 1.0}
    assert told["scores"]["hps"] == told["total"] == pytest.approx(float(winner[1]), abs=1e-4)
    assert generate(PROMPT, "--seed", winner[0], "--out", "again.mp4")[0] == 0
    assert (read_video("again.mp4") == read_video("best.mp4")).all()
    score_of_file = load_small(rewards, "hps").score(from_uint8(read_video("best.mp4"))[None], [PROMPT]).item()
    assert told["total"] == pytest.approx(score_of_file, abs=0.05)


def test_several_rewards_count_with_the_papers_weights(generate):
    _, out, _ = generate(PROMPT, "--best-of", "2", "--reward", "hps,clip,internvideo2", "--out", "best.mp4")
    told = json.loads(read_metadata("best.mp4")["best_of"])
    assert told["weights"] == PAPER_WEIGHTS
    assert told["total"] == pytest.approx(sum(PAPER_WEIGHTS[name] * told["scores"][name] for name in PAPER_WEIGHTS))
    assert rows_of(out)[0] == ["seed", *PAPER_WEIGHTS, "total", ""]


def test_keep_all_and_several_prompts(generate, tmp_path):
    """Every prompt has seeds of its own; the others lie beside the best under their seeds, with their scores."""
    options = ["--best-of", "2", "--reward", "hps", "--keep-all", "--out", "clips"]
    code, out, _ = generate(PROMPT, OTHER, *options)
    assert code == 0
    names = sorted(path.name for path in (tmp_path / "clips").iterdir())
    assert len(names) == 4
    seeds = {name: int(read_metadata(tmp_path / "clips" / name)["seed"]) for name in names}
    assert sorted(seeds.values()) == [0, 1, 2, 3]
    for stem in ("000-a-red-circle-moves-right", "001-a-blue-square"):
        best, other = (name for name in names if name.startswith(stem))
        (best, other) = (best, other) if best == f"{stem}.mp4" else (other, best)
        assert other == f"{stem}-seed{seeds[other]}.mp4"
        totals = [json.loads(read_metadata(tmp_path / "clips" / name)["best_of"])["total"] for name in (best, other)]
        assert totals[0] > totals[1]
    assert out.count("| best |") == 2


@pytest.fixture
def judges(rewards):
    return load_mixture({"clip": 1.0}, "shapes", folder=rewards, dtype=torch.float32)


def test_of_equals_the_first_wins(judges):
    """And every other clip goes out once."""
    pictures = {seed: torch.rand(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(4)}
    totals = {seed: judges.score(frames, [PROMPT]).total.item() for seed, frames in pictures.items()}
    highest = max(totals, key=totals.get)
    pictures[4] = pictures[highest]
    out = []
    best, table = best_of(judges, pictures.get, PROMPT, range(5), lambda one: out.append(one.seed))
    assert best.seed == highest and torch.equal(best.frames, pictures[highest])
    assert sorted([*out, best.seed]) == list(range(5))
    assert [row[0] for row in table[1:] if row[-1]] == [highest]


@pytest.mark.parametrize(("value", "message"), [(math.nan, "seed 7: frames hold NaN"), (3.0, "seed 7: frames from 3")])
def test_frames_that_cannot_be_scored(judges, value, message):
    with pytest.raises(ValueError, match=message):
        best_of(judges, lambda _: torch.full((1, 1, 3, 8, 8), value), PROMPT, [7])


def test_a_total_that_is_no_number_names_its_seed_and_the_remedy(judges):
    judges.rewards["clip"].visual.proj.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"^seed 7: the rewards give nan; use fp32$"):
        best_of(judges, lambda _: torch.zeros(1, 1, 3, 8, 8), PROMPT, [7], remedy="use fp32")


def test_weights_of_rewards():
    assert read_weights("hps") == {"hps": 1.0}
    assert read_weights("hps, internvideo2") == {"hps": 0.2, "internvideo2": 0.5}
    assert read_weights("hps:1,pickscore:0.05") == {"hps": 1.0, "pickscore": 0.05}
    for text, message in (("", "names no reward"), ("nice", "unknown reward"), ("hps,pickscore", "no weight for it"),
                          ("hps:much", "is no number"), ("hps,hps", "twice"), ("hps:-1", "hps:-1 is below 0"),
                          ("hps:0,clip:0", "all weights are 0")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_weights(text)


BEST_OF_MISTAKES = {
    "no number": (["--reward", "hps"], "say how many with --best-of 8"),
    "no name": (["--best-of", "2", "--reward", ""], "names no reward"),
    "zero": (["--best-of", "0"], "--best-of 0 must be 1 or more"),
    "unknown": (["--best-of", "2", "--reward", "nice"], "unknown reward 'nice'"),
    "unknown model": (["--best-of", "2", "--model", "sora"], "unknown model 'sora'"),
    "missing": (["--best-of", "2", "--reward", "pickscore"], "t2v-turbo download pickscore"),
}


@pytest.mark.parametrize(("options", "message"), BEST_OF_MISTAKES.values(), ids=BEST_OF_MISTAKES)
def test_best_of_mistakes(generate, tmp_path, options, message):
    code, _, error = generate(PROMPT, *options)
    assert code == 2
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())
