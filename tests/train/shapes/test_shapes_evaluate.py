"""The table of scores: kept rows count only for the weights and settings that they were made from."""

import json

import numpy as np
import pytest
import torch

from t2v_turbo.core.pipeline import load
from t2v_turbo.core.video import read_video
from t2v_turbo.train.cli import main
from t2v_turbo.train.shapes.evaluation import Setting, evaluate_table, markdown_table, sample_clips
from t2v_turbo.train.shapes.gallery import gallery


@pytest.fixture
def models(random_shapes):
    return {student: load("shapes", "default" if student else None, random_shapes) for student in (False, True)}


def test_table_goes_on_and_notices_other_weights(models, tmp_path):
    out, settings = tmp_path / "new" / "table.json", [Setting(False, 1), Setting(True, 1)]
    first = evaluate_table(models, settings[:1], out, prompts=2)
    stamp = first[0]["seconds_per_clip"]
    both = evaluate_table(models, settings, out, prompts=2)
    assert [row["name"] for row in both] == ["teacher (DDIM)", "student"]
    assert both[0]["seconds_per_clip"] == stamp  # kept, not made again
    assert len(json.loads(out.read_text())["rows"]) == 2

    with torch.no_grad():
        next(models[True].unet.parameters()).add_(1)
    evaluate_table(models, settings, out, prompts=2)
    evaluate_table(models, settings[:1], out, prompts=3)
    assert [row["made_from"]["prompts"] for row in json.loads(out.read_text())["rows"]] == [2, 2, 2, 3]

    table = markdown_table(both).splitlines()
    assert len(table) == 4
    assert table[2].startswith("| teacher (DDIM) | 1 | ")


def test_gallery_shows_every_clip_in_its_place(random_shapes, models, tmp_path):
    out = tmp_path / "grid.gif"
    assert not main(["shapes", "gallery", str(out), "--weights", str(random_shapes), "--rows", "2", "--columns", "3",
                     "--steps", "1"])  # fmt: skip
    assert read_video(out).shape == (8, 2 * 68, 3 * 68, 3)
    frames, prompts = gallery(models[True], 2, 3, 1)
    clips = list(sample_clips(models[True], prompts, 1))
    np.testing.assert_array_equal(frames[:, 68 + 2 : 68 + 66, 2 * 68 + 2 : 2 * 68 + 66], clips[5])


def test_table_command(random_shapes, tmp_path, capsys):
    out = tmp_path / "table.json"
    main(["shapes", "table", "--weights", str(random_shapes), "--prompts", "2", "--steps", "1", "--out", str(out)])
    assert "| student | 1 |" in capsys.readouterr().out
