"""The demo from an empty folder to its report, on random weights and a handful of steps, and a second call."""

import re

import pytest

from t2v_turbo.core import video
from t2v_turbo.core.checkpoints import locations
from t2v_turbo.train.cli import main
from t2v_turbo.train.experiments import report
from t2v_turbo.train.training.trainer import read_stats


@pytest.fixture
def demo(random_shapes, tmp_path, monkeypatch):
    """Runs the command with random weights in place of the packaged ones; returns its exit code."""
    monkeypatch.setattr(locations, "PACKAGED_WEIGHTS", random_shapes.parent)
    monkeypatch.chdir(tmp_path)
    named = random_shapes.parent / "shapes"
    if not named.exists():
        named.symlink_to(random_shapes)
    return lambda *options: main(["demo", "--clips", "4", "--steps", "3", "--prompts", "2", *options])


def test_demo_and_again(demo, tmp_path, capsys):
    assert demo() == 0
    out = tmp_path / "demo"
    page = (out / "index.html").read_text()
    assert str(out / "index.html") in capsys.readouterr().out
    assert page.count("<video") == 2 * 4  # two prompts, four contestants
    assert "<svg" in page
    rows = re.findall(r"<tr>\s*<td>(.*?)</td><td[^>]*>(\d+)</td>", page)
    assert rows == [
        ("teacher", "50"), ("teacher", "4"), ("student of this demo", "4"), ("shipped student", "4"),
    ]  # fmt: skip
    assert [line["step"] for line in read_stats(out / "student")][-1] == 3
    clips = sorted((out / "samples").rglob("*.mp4"))
    assert len(clips) == 8
    assert video.read_video(clips[0]).shape == (8, 192, 192, 3)

    made = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".tar", ".mp4", ".safetensors")}
    assert demo() == 0
    kept = [path for path in made if path.stat().st_mtime_ns == made[path]]
    assert {path.suffix for path in kept} == {".tar", ".mp4", ".safetensors"}
    assert all(path in kept for path in made if path.suffix != ".safetensors")


def test_report_escapes_text(tmp_path):
    sections = [report.Section("A & B", ["<script>alert(1)</script>"], table=[["x"], ["<b>"]])]
    page = report.write_report(tmp_path / "index.html", "T", ["i"], sections).read_text()
    assert "<script>" not in page
    assert "A &amp; B" in page
    assert "&lt;b&gt;" in page


def test_curve_draws_the_values():
    stats = [{"step": i, "loss": 1 / (i + 1)} for i in range(50)] + [{"step": 50, "other": 3}]
    svg = report.curve(stats, "loss", "the loss")
    assert svg.startswith("<svg")
    assert svg.rstrip().endswith("</svg>")
    assert report.running_mean((1.0, 3.0, 5.0), 2) == [1, 2, 4]
