"""Scores models of the embedded family with the oracle, on the fixed prompts: the table of docs/SHAPES.md."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ...core.networks.text import TextEncoder
from ...core.pipeline import Pipeline
from ...core.tables import markdown
from ...core.video import from_uint8, to_uint8
from ..results import KeptRows
from ..seeds import seeds_from
from .world.captions import evaluation_prompts
from .world.dataset import render_clip
from .world.oracle import accuracy, score, summarize
from .world.scene import COLORS, MOVES, SHAPES

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


# Clips on which the oracle itself is judged, as ``oracle.accuracy`` takes them.
CONDITIONS = {
    "clean, dense": {"style": "dense"},
    "clean, short": {"style": "short"},
    "noise 0.02": {"noise": 0.02},
    "noise 0.05": {"noise": 0.05},
    "noise 0.1": {"noise": 0.1},
    "blur 1 px": {"blur": 1.0},
    "short, as degraded": {"style": "short", "degraded": True},
}
TABLE = [Setting(False, steps) for steps in (50, 16, 8, 4)] + [Setting(True, steps) for steps in (16, 8, 4, 2, 1)]


def sample_clips(
    model: Pipeline,
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
            first = seed * 1_000_003 + start
            generators = [torch.Generator().manual_seed(one) for one in seeds_from(first, len(part))]
            noise = model.noise(len(part), generators)
            count = len(part)
            latents = model.sample(
                part, noise, steps, guidance, generators, callback=lambda _, count=count: bar.update(count)
            )
            for frames in model.decode(latents, chunk=64):
                yield to_uint8(frames)


def evaluate(model: Pipeline, setting: Setting, prompts: int = 200, seed: int = 0) -> dict:
    """Mean oracle scores of a model over the fixed prompts (0..1), with its name and the seconds it took."""
    pairs = evaluation_prompts(prompts)
    started = time.perf_counter()
    title = f"{setting.name}, {setting.steps} steps"
    clips = sample_clips(model, [prompt for prompt, _ in pairs], setting.steps, setting.guidance, seed, title=title)
    scores = [score(clip, expected) for clip, (_, expected) in zip(clips, pairs)]
    seconds = (time.perf_counter() - started) / len(pairs)
    measured = summarize(scores) | {"seconds_per_clip": round(seconds, 3)}
    return {"name": setting.name, "steps": setting.steps} | measured


def evaluate_table(
    models: dict[bool, Pipeline], settings: list[Setting], out: Path, prompts: int = 200, seed: int = 0
) -> list[dict]:
    """Rows of scores for ``settings``, kept in ``out`` (JSON) after each, so that a stopped run goes on.

    A kept row counts for the very weights and settings that it was made from. ``models`` maps "is a student" to the
    model.
    """
    kept = KeptRows(out)
    weights = {student: _weights_hash(model.unet) for student, model in models.items()}
    rows = []
    for setting in settings:
        made_from = asdict(setting) | {"prompts": prompts, "seed": seed, "weights": weights[setting.student]}
        rows.append(kept.get(made_from, partial(evaluate, models[setting.student], setting, prompts, seed)))
    return rows


def _weights_hash(network: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def table_settings(
    steps: Sequence[int] | None = None, student: bool | None = None, guidance: float | None = None
) -> list[Setting]:
    """The rows of the table, or those with these numbers of steps, or of the student or the teacher alone."""
    return [
        replace(setting, guidance=guidance)
        for setting in TABLE
        if (not steps or setting.steps in steps) and student in (None, setting.student)
    ]


def evaluate_oracle(clips: int = 500, seed: int = 0) -> Iterator[tuple[str, dict[str, float]]]:
    """The oracle's own hit rates on rendered clips, by condition, one after the other."""
    for name, condition in CONDITIONS.items():
        yield name, accuracy(clips, seed, **condition)


@torch.no_grad()
def evaluate_autoencoder(model: Pipeline, clips: int = 200, seed: int = 999) -> dict[str, dict]:
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


WORDS = {"color": COLORS, "shape": SHAPES, "direction": MOVES, "speed": ("slowly", "steadily", "quickly")}


@torch.no_grad()
def evaluate_text(text: TextEncoder) -> dict[str, float]:
    """How far changing one word moves the context: mean relative distance by kind of word, 0 = the word is not heard.

    Over all sentences "a COLOR SHAPE moves DIRECTION SPEED", two that differ in that word alone: the L2 distance of
    their contexts (77, D), divided by the distance of two sentences that differ in every word.
    """
    facts = list(product(*WORDS.values()))
    contexts = text.encode([f"a {color} {shape} moves {way} {pace}" for color, shape, way, pace in facts]).flatten(1)
    distances = torch.cdist(contexts, contexts)
    differs = torch.tensor([[[a != b for a, b in zip(one, other)] for other in facts] for one in facts])  # (N, N, 4)
    all_differ = distances[differs.all(-1)].mean()
    only = differs.sum(-1) == 1
    return {name: float(distances[only & differs[..., i]].mean() / all_differ) for i, name in enumerate(WORDS)}


def markdown_table(rows: list[dict]) -> str:
    """Rows of ``evaluate_table`` as a Markdown table, in per cent."""
    table = [["model", "steps", *COLUMNS]]
    for row in rows:
        table.append([row["name"], row["steps"], *(f"{100 * row[column]:.1f}" for column in COLUMNS)])
    return markdown(table)
