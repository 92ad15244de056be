"""Scores models of the embedded family with the oracle, on the fixed prompts: the table of the README."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ...core.model import Model
from ...core.video import from_uint8, to_uint8
from ..records import write_json
from .captions import evaluation_prompts
from .oracle import score, summarize
from .world import render_clip

COLUMNS = ("color", "shape", "direction", "smoothness", "steadiness", "sharpness", "total")


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    student: bool
    steps: int
    guidance: float | None = None  # usual scale; None = the family's

    @property
    def name(self) -> str:
        return "student" if self.student else "teacher (DDIM)"


TABLE = [Setting(False, steps) for steps in (50, 16, 8, 4)] + [Setting(True, steps) for steps in (16, 8, 4, 2, 1)]


def sample_clips(
    model: Model,
    prompts: list[str],
    steps: int,
    guidance: float | None = None,
    seed: int = 0,
    batch: int = 25,
    title: str = "sampling",
) -> Iterator[np.ndarray]:
    """Frames uint8 (F, H, W, 3) per prompt, in order; clip i depends on (seed, i) alone, not on the batching."""
    with tqdm(total=len(prompts) * steps, desc=title, unit="step") as bar:
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch]
            generators = [torch.Generator().manual_seed(seed * 1_000_003 + start + i) for i in range(len(part))]
            noise = model.noise(len(part), generators)
            count = len(part)
            latents = model.sample(
                part, noise, steps, guidance, generators, callback=lambda _, count=count: bar.update(count)
            )
            for frames in model.decode(latents, chunk=64):
                yield to_uint8(frames)


def evaluate(model: Model, setting: Setting, prompts: int = 200, seed: int = 0) -> dict[str, float]:
    """Mean oracle scores of a model over the fixed prompts (0..1), with the seconds it took."""
    pairs = evaluation_prompts(prompts)
    started = time.perf_counter()
    title = f"{setting.name}, {setting.steps} steps"
    clips = sample_clips(model, [prompt for prompt, _ in pairs], setting.steps, setting.guidance, seed, title=title)
    scores = [score(clip, expected) for clip, (_, expected) in zip(clips, pairs)]
    seconds = (time.perf_counter() - started) / len(pairs)
    return summarize(scores) | {"seconds_per_clip": round(seconds, 3)}


def evaluate_table(
    models: dict[bool, Model], settings: list[Setting], out: Path, prompts: int = 200, seed: int = 0
) -> list[dict]:
    """Rows of scores for ``settings``, kept in ``out`` (JSON) after each, so that a stopped run goes on.

    ``models`` maps "is a student" to the model.
    """
    made_from = {"prompts": prompts, "seed": seed}
    stored = json.loads(out.read_text()) if out.exists() else {}
    rows = stored.get("rows", []) if stored.get("made_from") == made_from else []
    done = {(row["student"], row["steps"]) for row in rows}
    for setting in settings:
        if (setting.student, setting.steps) in done:
            continue
        scores = evaluate(models[setting.student], setting, prompts, seed)
        rows.append({"student": setting.student, "name": setting.name, "steps": setting.steps} | scores)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, {"made_from": made_from, "rows": rows})
    return rows


@torch.no_grad()
def evaluate_autoencoder(model: Model, clips: int = 200, seed: int = 999) -> dict[str, dict]:
    """Oracle scores of rendered clips of both styles before and after the autoencoder, and the mean error (0..255)."""
    before, after, errors = [], [], []
    for i in tqdm(range(clips), desc="autoencoder", unit="clip"):
        clip = render_clip(seed, i, ("short", "dense")[i % 2])
        latents = model.vae.encode(from_uint8(clip.frames)[None], torch.Generator().manual_seed(i))
        decoded = to_uint8(model.decode(latents)[0])
        expected = clip.scene.expected()
        before.append(score(clip.frames, expected))
        after.append(score(decoded, expected))
        errors.append(np.abs(decoded.astype(float) - clip.frames).mean())
    return {"rendered": summarize(before), "decoded": summarize(after) | {"error": float(np.mean(errors))}}


def markdown_table(rows: list[dict]) -> str:
    """Rows of ``evaluate_table`` as a Markdown table, in per cent."""
    lines = ["| model | steps | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = " | ".join(f"{100 * row[column]:.1f}" for column in COLUMNS)
        lines.append(f"| {row['name']} | {row['steps']} | {cells} |")
    return "\n".join(lines)
