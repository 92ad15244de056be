"""Clips that commands write: every format and name, and what cannot be written is told before the work."""

import json
import os

import numpy as np
import pytest
import torch

from t2v_turbo.core import video
from t2v_turbo.nodes.graph import cli as headless
from t2v_turbo.nodes.graph.execution import run_graph
from t2v_turbo.nodes.graph.native import SaveVideo, load_video, video_components
from t2v_turbo.train.cli import main
from t2v_turbo.train.generation import generate
from t2v_turbo.train.results import KeptRows

PROMPT = "a red circle moves right"


@pytest.fixture
def command(random_shapes, tmp_path, monkeypatch):
    """Runs `generate` in an empty folder; `loads` counts the models that were loaded."""
    monkeypatch.chdir(tmp_path)
    loads, load = [], generate.load
    monkeypatch.setattr(generate, "load", lambda *args, **options: loads.append(args) or load(*args, **options))

    def run(*options):
        small = ["--frames", "2", "--height", "16", "--width", "24", "--steps", "1", "--device", "cpu"]
        return main(["generate", PROMPT, *small, "--checkpoints", str(random_shapes), *map(str, options)])

    run.loads = loads
    return run


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("out", ["scene:1.mp4", "a.gif", "pipe:1.webp"])
def test_a_clip_and_its_tags(command, tmp_path, out):
    assert command("--out", out, "--fps", "7") == 0
    assert files(tmp_path) == [out]
    assert video.read_video(out).shape == (2, 16, 24, 3)
    assert video.read_metadata(out)["prompt"] == PROMPT
    assert video.video_duration(out) == pytest.approx(2 / 7, abs=0.01)


def test_numbered_pictures(command, tmp_path):
    os.mkdir("frames")
    assert command("--out", "frames/%02d.png") == 0
    (tmp_path / "prompts.txt").write_text("a blue cross")
    assert command("--prompts", "prompts.txt", "--out", "clips", "--format", "png") == 0
    (tmp_path / "prompts.txt").unlink()
    clips = ["clips/000-a-red-circle-moves-right/0000", "clips/001-a-blue-cross/0000"]
    assert files(tmp_path) == [f"{clip}{i}.png" for clip in clips for i in (0, 1)] + ["frames/00.png", "frames/01.png"]
    assert json.loads(video.read_metadata("frames/01.png")["settings"])["model"] == "shapes"
    assert video.read_metadata(f"{clips[1]}1.png")["prompt"] == "a blue cross"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--out", "a.gif", "--fps", "60"], "--fps 60 is outside 0.01..50, the rates that gif carries; write an .mp4"),
        (["--out", "clips", "--format", "webp", "--fps", "51"], "--fps 51 is outside 0.01..50"),
        (["--out", "a.mp4", "--fps", "0.0004"], "--fps 0.0004 is outside 0.01..240, the rates that mp4 carries"),
        (["--out", "a.mp4", "--fps", "nan"], "--fps nan is outside"),
        (["--out", "a.png"], "put their number into the name, such as %05d.png"),
        (["--out", "none/%05d.png"], "the folder none does not exist"),
        (["--out", "there/%05d.png"], "there/%05d.png: 00001.png is there, and clips would mix"),
        (["--out", "there/00001.png/a.mp4"], "does not exist"),
    ],
)
def test_what_cannot_be_written_is_told_before_a_model_is_loaded(command, tmp_path, capsys, options, reason):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "00001.png").touch()
    assert command(*options) == 2
    assert reason in capsys.readouterr().err
    assert command.loads == [] and files(tmp_path) == ["there/00001.png"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder that cannot be written to")
def test_a_folder_that_cannot_be_written_to(command, tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    for out in ("locked/a.mp4", "locked/%05d.png"):
        assert command("--out", out) == 2
        assert "cannot write here (Permission denied)" in capsys.readouterr().err
    assert command.loads == []


def test_rows_of_an_experiment(tmp_path):
    """Commands make their file of rows before their models."""
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "rows.json", tmp_path / "new" / ("n" * 250)):
        with pytest.raises(ValueError, match="cannot write here"):
            KeptRows(place)
    rows = KeptRows(tmp_path / "new" / "rows.json")
    assert files(tmp_path) == ["file"] and not (tmp_path / "new").exists()
    assert rows.get({"a": 1}, lambda: {"b": 2}) == {"made_from": {"a": 1}, "b": 2}


# --- the graph runner ---------


def graph(fps=8.0, **saving):
    """A graph whose first node leaves a trace, and that then saves what it cannot have."""
    saving = {"filename_prefix": "video/a", "format": "auto", "codec": "auto"} | saving
    return {
        "1": {"class_type": "LoadVideo", "inputs": {"file": "none.mp4"}},
        "2": {"class_type": "GetVideoComponents", "inputs": {"video": ["1", 0]}},
        "3": {"class_type": "CreateVideo", "inputs": {"images": ["2", 0], "fps": fps}},
        "4": {"class_type": "SaveVideo", "inputs": {"video": ["3", 0]} | saving},
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fps": 0.0004}, "node 3: CreateVideo: fps=0.0004 is outside 0.01..240"),
        ({"fps": 241}, "node 3: CreateVideo: fps=241 is outside"),
        ({"format": "webm"}, "node 4: SaveVideo: format='webm' is unknown; use auto or mp4"),
        ({"codec": "vp9"}, "node 4: SaveVideo: codec='vp9' is unknown; use auto or h264"),
        ({"filename_prefix": "n" * 300}, "cannot write here"),
        ({}, "file: 'none.mp4' does not lie in"),  # the first node's own mistake: nothing else was wrong
    ],
)
def test_a_graph_whose_video_cannot_be_saved(tmp_path, change, reason):
    with pytest.raises(ValueError, match=reason):
        run_graph(graph(**change), tmp_path, inputs=tmp_path)
    assert files(tmp_path) == []


def test_a_graph_whose_output_folder_is_a_file(tmp_path, capsys):
    (tmp_path / "graph.json").write_text(json.dumps(graph()))
    assert headless.main([str(tmp_path / "graph.json"), "--out", str(tmp_path / "graph.json")]) == 2
    assert "graph.json" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "codec"), [("a.h264", "libx264"), ("a.m2v", "mpeg2video"), ("a.mpg", "mpeg1video")])
def test_a_graph_loads_a_stream_without_a_length(tmp_path, name, codec):
    from test_video_reading import encode, numbered

    encode(tmp_path / name, map(numbered, range(12)), codec, options={"g": "12", "bf": "2"})
    images, sound, fps = video_components(*load(name, tmp_path))
    assert images.shape == (12, 48, 144, 3) and sound is None and fps == pytest.approx(24, rel=1e-3)


def load(name, folder):
    from t2v_turbo.nodes.host.plain import Folders, using_folders

    with using_folders(Folders(folder, folder)):
        return load_video(name)


def test_a_graph_saves_its_own_tags(tmp_path):
    from t2v_turbo.nodes.host.plain import Folders, using_folders

    clip = torch.rand(4, 17, 30, 3, generator=torch.Generator().manual_seed(0))
    with using_folders(Folders(tmp_path, tmp_path)):
        SaveVideo({"prompt": '{"1": "é"}', "workflow": "{}"})((clip, 12.0), "video/a")
    (path,) = tmp_path.rglob("*.mp4")
    assert video.read_metadata(path).items() >= {"prompt": '{"1": "é"}', "workflow": "{}"}.items()
    assert np.abs(video.read_video(path)[:, :17].astype(int) - video.to_uint8(clip.movedim(-1, 1))).mean() < 60
