"""Which lambda and tau suit a model of the embedded family: oracle scores and energies over a grid of both."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ...core.pipeline import Pipeline
from ...core.video import to_uint8
from ..results import KeptRows
from ..seeds import generator_for
from ..shapes.world.captions import evaluation_prompts
from .motion_transfer import BATCH, Guidance, judge, rate, transfer_table
from .report import Section, curves, write_report

TEACHER = [
    "The teacher follows a reference clip that moves in a known direction, while the prompt names another colour and "
    "shape and no direction. `direction` is how often the oracle sees the reference's direction, by chance a quarter.",
    "The energy is how far the clip's temporal attention is from the reference's; `energy` is the mean at the last "
    "guided step, in per cent of that without guidance.",
]
STUDENT = [
    "A student that was distilled with motion guidance, sampled on the fixed prompts; `direction` is how often the "
    "oracle sees the direction that the prompt names.",
]


def grid(strengths: list[float], taus: list[float]) -> list[Guidance]:
    """All pairs; without strength tau means nothing, so that comes once, measured over the longest tau."""
    unguided = [Guidance(0.0, max(taus))] if 0 in strengths else []
    return unguided + [Guidance(*pair) for pair in product(sorted(set(strengths) - {0}), sorted(set(taus)))]


# --- the student, whose lambda is an input ----------


def run_prompts(
    model: Pipeline, guidances: list[Guidance], prompts: int, steps: int, seed: int, kept: KeptRows, made_from: dict
) -> dict[Guidance, list[dict]]:
    """Per lambda and tau, the oracle's score of a student's clip of every fixed prompt.

    Raises:
        ValueError: if the student has no input for lambda.
    """
    model.check_motion(max(one.strength for one in guidances), None, ())
    results = {}
    for one in guidances:
        origin = made_from | asdict(one) | {"prompts": prompts, "steps": steps, "seed": seed}
        results[one] = kept.get(origin, partial(_judge_prompts, model, one, prompts, steps, seed))["results"]
    return results


def _judge_prompts(model: Pipeline, guidance: Guidance, prompts: int, steps: int, seed: int) -> dict:
    pairs, results = evaluation_prompts(prompts), []
    for first in tqdm(range(0, prompts, BATCH), desc=f"lambda {guidance.strength:g}, tau {guidance.tau:g}"):
        part = pairs[first : first + BATCH]
        generators = [generator_for("noise", seed, first + i) for i in range(len(part))]
        results += judge_student(model, part, generators, guidance, steps)
    return {"results": results}


def judge_student(
    model: Pipeline,
    prompts: list[tuple[str, dict]],
    generators: list[torch.Generator],
    guidance: Guidance,
    steps: int,
    scale: float | None = None,
) -> list[dict]:
    """The oracle's score of a student's clip of every (prompt, what it asks for), as ``judge`` has it.

    Args:
        generators: one per prompt, of all its noise.
        scale: guidance scale, None = the family's.
    """
    latents = model.sample(
        [prompt for prompt, _ in prompts], model.noise(len(prompts), generators), steps, scale, generators,
        motion=guidance.strength, tau=guidance.tau,
    )  # fmt: skip
    clips = model.decode(latents, chunk=64)
    return [judge(to_uint8(clip), expected) for clip, (_, expected) in zip(clips, prompts)]


# --- what came out ----------


def sweep_table(results: dict[Guidance, list[dict]]) -> list[list]:
    """``transfer_table``, and where there are energies how far guidance lowered them."""
    table = transfer_table(results)
    unguided = next((found for one, found in results.items() if not one.strength), None)
    if unguided and "energy" in unguided[0]:
        table[0].append("energy")
        for row, found in zip(table[1:], results.values()):
            last = min(found[0]["energy"], key=int)
            row.append(round(100 * mean_energy(found, last) / mean_energy(unguided, last), 1))
    return table


def mean_energy(results: list[dict], timestep: str) -> float:
    return sum(result["energy"][timestep] for result in results) / len(results)


def best(results: dict[Guidance, list[dict]]) -> Guidance:
    """The guidance with the highest total: the mean of what was asked for and how well it is drawn."""
    return max(results, key=lambda one: rate(results[one], "total"))


def write_sweep(path: Path, results: dict[Guidance, list[dict]]) -> Path:
    """The report: the table, the scores over lambda, and for a teacher the course of the energy."""
    energies = "energy" in next(iter(results.values()))[0]
    sections = [Section("Scores", ["In per cent."], table=sweep_table(results))]
    for name in ("direction", "total"):
        settings = {"xlabel": "lambda", "ylabel": name, "xscale": "symlog", "ylim": (0, 1)}
        sections.append(Section(f"{name} over lambda", svg=curves(scores_by_tau(results, name), **settings)))
    if energies:
        for tau in sorted({one.tau for one in results if one.strength}):
            settings = {"xlabel": "timestep, from noise to picture", "ylabel": "energy", "yscale": "log"}
            svg = curves(courses(results, tau), xlim=(1000, None), **settings)
            sections.append(Section(f"Energy during the sampling, tau {tau:g}", svg=svg))
    return write_report(path, "Motion guidance by lambda and tau", TEACHER if energies else STUDENT, sections)


def scores_by_tau(results: dict[Guidance, list[dict]], name: str) -> dict[str, tuple[list[float], list[float]]]:
    """Per tau, the mean of a score over lambda; without guidance is where every line begins."""
    series = {}
    for tau in sorted({one.tau for one in results}):
        shown = {one.strength: rate(results[one], name) for one in results if one.tau == tau or not one.strength}
        series[f"tau {tau:g}"] = sorted(shown), [shown[strength] for strength in sorted(shown)]
    return series


def courses(results: dict[Guidance, list[dict]], tau: float) -> dict[str, tuple[list[int], list[float]]]:
    """Per lambda, the mean energy at the guided timesteps of one tau; that without guidance for comparison."""
    series = {}
    for one, found in results.items():
        if one.tau == tau or not one.strength:
            timesteps = list(found[0]["energy"])
            series[f"lambda {one.strength:g}"] = list(map(int, timesteps)), [mean_energy(found, t) for t in timesteps]
    return series
