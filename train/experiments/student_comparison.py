"""What motion guidance does to a student: the paper's Table 4 on the embedded world, with an oracle for VBench.

Every student is sampled on the same prompts from the same noise, so that what differs between two clips is the student.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ...core.families import SHAPES as FAMILY
from ...core.pipeline import Pipeline
from ..results import KeptRows
from ..seeds import generator_for
from ..shapes.world.captions import RULES, evaluation_prompts
from ..shapes.world.scene import COLORS, SHAPES
from .intervals import Interval, difference, mean_interval, wilson
from .loading import load_measured
from .motion_sweep import judge_student
from .motion_transfer import BATCH, Guidance
from .report import Section, curves

# Measures by field of a judged clip, in the order of the table.
MEASURES = {
    "color": "color", "shape": "shape", "direction": "direction", "speed": "speed", "semantic": "semantic",
    "smoothness": "smoothness", "steadiness": "steadiness", "sharpness": "sharpness", "quality": "quality",
    "total": "total", "moves": "dynamic degree", "displacement": "displacement (pixels per frame)",
}  # fmt: skip
RATES = ("color", "shape", "direction", "speed", "moves")
MOTION, STILL = "motion", "no motion"  # what prompts ask for
MAX_STEPS = 200  # of a student
INTRODUCTION = [
    "Students on the same prompts and the same noise, judged by the oracle of the embedded world; in per cent but for "
    "the displacement. `semantic` is the mean of color, shape and direction, `quality` that of smoothness, steadiness "
    "and sharpness, `total` that of both. The dynamic degree is the share of clips in which the object moves at all, "
    "the displacement the length of its path in pixels of a 64x64 frame, per frame.",
    "Intervals are of 95 %, over prompts. Differences are paired: the same prompt, the same noise. A star marks those "
    "whose interval excludes 0; where nothing differs, one in twenty gets a star by chance.",
]


# --- what is compared ----------


@dataclass(frozen=True)
class Student:
    """A student and the motion guidance that it is sampled with; lambda is 0 where it has no such input."""

    name: str
    model: Pipeline
    guidance: Guidance
    made_from: dict  # what its rows are bound to


@dataclass(frozen=True)
class Plan:
    """What all students are asked to make."""

    asks: str  # MOTION or STILL
    prompts: int
    draws: int  # clips per prompt
    steps: int
    scale: float | None  # guidance scale, None = the family's
    seed: int

    @property
    def title(self) -> str:
        draws = "" if self.draws == 1 else f", {self.draws} clips each"
        return f"{self.steps} steps, {self.prompts} prompts that ask for {self.asks}{draws}"

    def pairs(self) -> list[tuple[str, dict]]:
        """Prompts and what they ask for."""
        return evaluation_prompts(self.prompts) if self.asks == MOTION else still_prompts(self.prompts)


def still_prompts(n: int) -> list[tuple[str, dict]]:
    """n prompts that ask for an object that stays where it is, balanced over colours and shapes, in a fixed order."""
    objects, texts = list(product(COLORS, SHAPES)), RULES["short_still"]
    prompts = []
    for i in range(n):
        color, shape = objects[i % len(objects)]
        text = texts[(i + i // len(objects)) % len(texts)].format(color=color, shape=shape)
        prompts.append((text, {"color": color, "shape": shape, "direction": "still"}))
    return prompts


def load_student(
    name: str, folder: Path | None, device: torch.device, dtype: torch.dtype, strength: float | None, tau: float | None
) -> Student:
    """A student of the embedded family, by name or checkpoint file; see ``load_measured`` and ``guidance_of``."""
    model, made_from = load_measured(FAMILY.name, name, folder, device, dtype)
    return Student(name, model, guidance_of(model, strength, tau), made_from)


def guidance_of(model: Pipeline, strength: float | None, tau: float | None) -> Guidance:
    """The lambda and tau to sample a student with: as given, else as it was distilled."""
    if not model.unet.takes_motion:
        return Guidance(0.0)
    return Guidance(model.motion_strength if strength is None else strength, model.tau if tau is None else tau)


# --- clips and their scores ----------


def compare_students(students: list[Student], plan: Plan, kept: KeptRows) -> Section:
    """The table of a plan and a plot of its differences."""
    comparisons = compare({one.name: judge_clips(one, plan, kept) for one in students}, plan.prompts)
    return Section(plan.title, table=table_of(comparisons), svg=plot(comparisons))


def judge_clips(student: Student, plan: Plan, kept: KeptRows) -> list[dict]:
    """The oracle's score of every clip of a plan, draw after draw; every batch is kept when it is done."""
    pairs, results = plan.pairs(), []
    starts = list(product(range(plan.draws), range(0, plan.prompts, BATCH)))
    for draw, first in tqdm(starts, desc=f"{student.name}, {plan.steps} steps, {plan.asks}", unit="batch"):
        part = pairs[first : first + BATCH]
        # A clip is the same however many draws there are, so that more of them add to those that are kept.
        origin = student.made_from | asdict(student.guidance) | asdict(replace(plan, draws=1))
        origin |= {"draw": draw, "clips": [first, len(part)]}
        results += kept.get(origin, partial(_judge_part, student, plan, part, draw, first))["results"]
    return results


def _judge_part(student: Student, plan: Plan, pairs: list[tuple[str, dict]], draw: int, first: int) -> dict:
    generators = [generator_for("compare", plan.asks, plan.seed, draw, first + i) for i in range(len(pairs))]
    return {"results": judge_student(student.model, pairs, generators, student.guidance, plan.steps, plan.scale)}


# --- what came out ----------


@dataclass(frozen=True)
class Comparison:
    """One measure of all students."""

    measure: str
    means: dict[str, Interval]  # by student
    gains: dict[str, Interval]  # paired differences to the first student, by the others


def compare(results: dict[str, list[dict]], prompts: int) -> list[Comparison]:
    """Every measure that the prompts ask for, over students whose clips are of the same prompts in the same order."""
    comparisons = []
    for measure in MEASURES:
        values = {name: by_prompt(found, measure, prompts) for name, found in results.items()}
        first, *others = values
        if len(values[first]):
            means = {name: _mean(measure, found) for name, found in values.items()}
            gains = {name: difference(values[name], values[first]) for name in others}
            comparisons.append(Comparison(measure, means, gains))
    return comparisons


def by_prompt(results: list[dict], measure: str, prompts: int) -> np.ndarray:
    """Mean of a measure over each prompt's clips, of the prompts that ask for it.

    The clips of one prompt are alike, so that prompts, not clips, are the independent samples of an interval.
    """
    values = np.array([result[measure] for result in results], float)  # None becomes NaN
    means = values.reshape(-1, prompts).mean(axis=0)
    return means[~np.isnan(means)]


def _mean(measure: str, values: np.ndarray) -> Interval:
    if measure not in RATES:
        return mean_interval(values)
    return Interval(float(values.mean()), *wilson(float(values.sum()), len(values)))


def table_of(comparisons: list[Comparison]) -> list[list[str]]:
    """A row per measure: the students' means and their differences to the first, each with its interval."""
    first, *others = comparisons[0].means
    table = [["", first, *others, *(f"{name} − {first}" for name in others)]]
    for one in comparisons:
        means = [_shown(mean, one.measure) for mean in one.means.values()]
        gains = [_shown(gain, one.measure, "+") + " *" * gain.excludes_zero for gain in one.gains.values()]
        table.append([MEASURES[one.measure], *means, *gains])
    return table


def _shown(interval: Interval, measure: str, sign: str = "") -> str:
    """Rates and scores in per cent, a displacement as it is."""
    factor, digits = (1, 2) if measure == "displacement" else (100, 1)
    mean, low, high = (f"{factor * value:{sign}.{digits}f}" for value in interval)
    return f"{mean} ({low} to {high})"


def plot(comparisons: list[Comparison]) -> str:
    """The differences to the first student with their intervals, in points of per cent, as SVG."""
    shown = [one for one in comparisons if one.measure != "displacement"]  # which has another unit
    first, *others = shown[0].means
    series = {"no difference": ([0, 0], [-0.5, len(shown) - 0.5])}
    for i, name in enumerate(others):
        x, y = [], []
        for row, one in enumerate(shown):
            mean, low, high = (100 * value for value in one.gains[name])
            x += [low, mean, high, math.nan]  # NaN ends a line
            y += [row + (i + 1) / (len(others) + 1) - 0.5] * 4
        series[f"{name} − {first}"] = (x, y)
    labels = [MEASURES[one.measure] for one in shown]
    return curves(series, xlabel="points", yticks=range(len(shown)), yticklabels=labels, ylim=(len(shown) - 0.5, -0.5))
