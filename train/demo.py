"""The whole pipeline on the embedded world, each stage resumable, and the report that compares its models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.checkpoints.locations import family_folder
from ..core.pipeline import load
from ..core.text_files import read_json, write_json
from ..core.video import write_video
from .config import load_config
from .distill import STUDENT, distill
from .experiments.report import Clip, Section, curve, write_report
from .preprocess import preprocess
from .shapes.evaluation import COLUMNS, Setting, sample_clips
from .shapes.world.captions import evaluation_prompts
from .shapes.world.dataset import write_dataset
from .shapes.world.oracle import score, summarize
from .training.trainer import read_stats

INTRODUCTION = [
    "Made by `t2v-turbo demo`: a small data set was rendered, turned into training records by the teacher, and a "
    "student was distilled from them. The teacher needs 50 steps with two network evaluations each; the student "
    "needs 4 with one.",
    "The scores are the oracle's, which measures colour, shape and motion in the pixels. The student of this demo "
    "saw a few hundred steps only; the shipped one was trained longer by the same commands, and then with rewards.",
]
SHOWN = 6  # prompts whose clips the report shows


@dataclass(frozen=True)
class DemoRequest:
    """What ``t2v-turbo demo`` is asked for.

    Attributes:
        out: folder of everything.
        clips: to render, half of either style.
        steps: of the student's training.
        prompts: to score on.
    """

    out: Path
    clips: int
    steps: int
    prompts: int


@dataclass(frozen=True)
class Contestant:
    """A model and a number of steps that the report compares; ``student`` as in ``core.pipeline.load``."""

    name: str
    student: str | Path | None
    setting: Setting


def demo(request: DemoRequest) -> Path:
    """Render, preprocess, distil, sample and score; returns the report's page. A stopped call goes on where it was."""
    render_clips(request.out / "clips", request.clips)
    make_records(request.out)
    make_student(request.out, request.steps)
    contestants = contestants_of(request.out)
    rows = [compete(contestant, request) for contestant in contestants]
    return write_page(request.out, contestants, rows)


def contestants_of(out: Path) -> list[Contestant]:
    """What the report compares; the shipped student where there is one."""
    contestants = [
        Contestant("teacher", None, Setting(False, 50)),
        Contestant("teacher", None, Setting(False, 4)),
        Contestant("student of this demo", out / "student" / STUDENT, Setting(True, 4)),
        Contestant("shipped student", "default", Setting(True, 4)),
    ]
    return [one for one in contestants if one.student != "default" or shipped_student().exists()]


def shipped_student() -> Path:
    return family_folder("shapes") / STUDENT


# --- the stages, each resumable ---------


def render_clips(folder: Path, count: int) -> None:
    """Half of the clips of either style, as mp4 with captions."""
    print("1/5 rendering clips", flush=True)
    for style in ("short", "dense"):
        write_dataset(folder / style, count // 2, seed=7, style=style)


def make_records(out: Path) -> None:
    print("2/5 preprocessing: what does the teacher say?", flush=True)
    for style in ("short", "dense"):
        overrides = [f"videos={out / 'clips' / style}", f"records={out / 'records' / style}", f"caption={style}"]
        preprocess(load_config("preprocess", "shapes", overrides))


def make_student(out: Path, steps: int) -> None:
    print("3/5 distilling the student", flush=True)
    overrides = [
        f"records={out / 'records' / 'short'},{out / 'records' / 'dense'}",
        f"out={out / 'student'}",
        f"steps={steps}",
        "batch_size=16",
        "warmup=20",
        "ema_decay=0.98",
        "save_every=50",
        "log_every=2",
    ]
    distill(load_config("distill", "shapes", overrides))


def compete(contestant: Contestant, request: DemoRequest) -> dict:
    """Sample and score one contestant, or read what was kept; its clips lie in ``out/samples``."""
    setting, folder = contestant.setting, request.out / "samples"
    stem = f"{contestant.name} {setting.steps} steps".replace(" ", "-")
    kept, made_from = folder / f"{stem}.json", {"prompts": request.prompts, "trained": request.steps}
    if kept.exists() and (stored := read_json(kept))["made_from"] == made_from:
        return stored
    print(f"4/5 sampling: {contestant.name}, {setting.steps} steps", flush=True)
    model = load("shapes", contestant.student)
    pairs = evaluation_prompts(request.prompts)
    clips = list(sample_clips(model, [prompt for prompt, _ in pairs], setting.steps))
    files = write_samples(clips, pairs, folder / stem)
    scores = summarize(score(clip, expected) for clip, (_, expected) in zip(clips, pairs))
    row = {"made_from": made_from, "scores": scores, "files": files}
    write_json(kept, row)
    return row


def write_samples(clips: list[np.ndarray], pairs: Iterable, folder: Path) -> list[str]:
    """Write the first clips enlarged, as browsers blur small ones; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for i, (clip, (prompt, _)) in enumerate(zip(clips[:SHOWN], pairs)):
        path = folder / f"{i:02d}.mp4"
        write_video(path, clip.repeat(3, axis=1).repeat(3, axis=2), 8, {"prompt": prompt})
        files.append(str(path))
    return files


def write_page(out: Path, contestants: list[Contestant], rows: list[dict]) -> Path:
    print("5/5 writing the report", flush=True)
    header = ["model", "steps", *COLUMNS]
    body = [
        [one.name, one.setting.steps, *(round(100 * row["scores"][name], 1) for name in COLUMNS)]
        for one, row in zip(contestants, rows)
    ]
    prompts = [prompt for prompt, _ in evaluation_prompts(rows[0]["made_from"]["prompts"])]
    sections = [
        Section("Scores", ["In per cent, higher is better."], table=[header, *body]),
        Section("Loss", svg=curve(read_stats(out / "student"), "loss", "consistency distillation")),
    ]
    for one, row in zip(contestants, rows):
        clips = [Clip(Path(file), prompt) for file, prompt in zip(row["files"], prompts)]
        sections.append(Section(f"{one.name}, {one.setting.steps} steps", clips=clips))
    return write_report(out / "index.html", "T2V-Turbo on Moving Shapes", INTRODUCTION, sections)
