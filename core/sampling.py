"""The settings of one sampling, filled in from a model's own and checked before the work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

from .diffusion.guidance import find_combination
from .diffusion.schedule import SOLVER_STEPS, TRAIN_TIMESTEPS, solver_grid
from .motion.prior import MotionPrior
from .text_files import is_unicode

# A teacher's sampling must begin in noise: the least timestep, of 0..999, of its first step.
NOISY = 900
RELEASED = "released"
SEEDS = 2**64


@dataclass(frozen=True)
class SamplingSettings:
    """How clips are sampled; None = the model's own.

    Attributes:
        steps: evaluations of the network: 1..200 for a student (4 to 16 are usual), 1..1000 for a teacher.
        guidance: usual guidance scale, 1..100, 1 = none; a student's omega is this minus 1.
        motion_strength: lambda in the paper's unit, 0 or more, 0 = none.
        tau: fraction of the sampling that is guided by motion, 0..1, from the noisiest step on.
        prior: motion of a reference clip, for a teacher to follow; ``prior_file`` is the name of its file, if any.
        combination: how the prior's score enters a step, a name of ``guidance.COMBINATIONS``.
        fps_condition: the network's frame rate input, 1 or more.
    """

    steps: int | None = None
    guidance: float | None = None
    motion_strength: float | None = None
    tau: float | None = None
    prior: MotionPrior | None = None
    combination: str | None = None
    fps_condition: int | None = None
    prior_file: str = ""

    def check(self, student: bool, takes_motion: bool, names: Mapping[str, str] | None = None) -> None:
        """Refuse what is out of range, or has no effect.

        Args:
            student: whether a student is sampled, not a teacher.
            takes_motion: whether it was distilled with motion guidance.
            names: what the caller's user calls a setting, where it is called otherwise.

        Raises:
            ValueError: naming the setting, its value and the remedy.
        """
        names = names or {}
        if self.steps is not None:
            check_steps(self.steps, student, names.get("steps", "steps"))
        limits = {"guidance": (1, 100, "1 is no guidance, 7.5 is usual"),
                  "motion_strength": (0, math.inf, "500 is usual, 0 is none"),
                  "tau": (0, 1, "0.5 guides the noisier half of the sampling"),
                  "fps_condition": (1, math.inf, "8 and 16 are usual")}  # fmt: skip
        for field, (low, high, usual) in limits.items():
            check_range(names.get(field, field), getattr(self, field), low, high, usual)
        if self.tau and self.prior is None and not takes_motion:
            needed = "a student that was distilled with it ('mg')" if student else "a motion prior"
            raise ValueError(f"tau={self.tau:g} is a part of motion guidance, which needs {needed}; leave tau out")
        if self.combination is not None:
            find_combination(self.combination)
            if self.prior is None:
                raise ValueError(f"combination={self.combination} is how a motion prior is followed; there is none")


def check_range(name: str, value: float | None, low: float, high: float, usual: str) -> None:
    """Refuse a number outside low..high, where one is given; an infinite one always."""
    if value is None:
        return
    if not isinstance(value, Real) or not low <= value <= high or not math.isfinite(value):
        limits = f"{low:g}..{high:g}" if math.isfinite(high) else f"a number of {low:g} or more"
        raise ValueError(f"{name}={value} is outside {limits}: {usual}")


def check_steps(steps: int, student: bool, name: str = "steps") -> None:
    """Refuse a number of steps that a sampler has no grid for.

    Raises:
        ValueError: also for a teacher's steps whose grid leaves the noisiest timesteps out.
    """
    limit = SOLVER_STEPS if student else TRAIN_TIMESTEPS
    if not isinstance(steps, Integral) or not 1 <= steps <= limit:
        raise ValueError(f"{name}={steps} is outside 1..{limit}: use 4 to 16 for a student, 50 for a teacher")
    start = TRAIN_TIMESTEPS if student else int(solver_grid(steps)[-1])
    if start < NOISY:
        divisor = max(n for n in range(1, steps) if TRAIN_TIMESTEPS % n == 0)
        raise ValueError(
            f"{name}={steps} would begin at timestep {start} of {TRAIN_TIMESTEPS - 1}, where a clip is no longer pure "
            f"noise: use {divisor}, which divides {TRAIN_TIMESTEPS}"
        )


def as_prompts(prompt: str | Sequence[str]) -> list[str]:
    """One prompt or several as a list.

    Raises:
        ValueError: for none, or for one that is no text.
    """
    prompts = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
    if not prompts:
        raise ValueError("no prompt: give a text, or a list of texts")
    for prompt in prompts:
        if not isinstance(prompt, str) or not is_unicode(prompt):
            raise ValueError(f"prompt {prompt!a} is no text: write one, such as 'a red circle moves right'")
    return prompts


def check_seed(seed: int) -> int:
    """Refuse what torch's generators do not take as a seed."""
    if not isinstance(seed, Integral) or not 0 <= seed < SEEDS:
        raise ValueError(f"seed={seed} is no whole number from 0 to {SEEDS - 1}")
    return int(seed)


def open_prior(prior: MotionPrior | str | Path | None) -> tuple[MotionPrior | None, str]:
    """A motion prior, read if it is a file, and the name of the file.

    Raises:
        CheckpointError: for a file that is no motion prior.
    """
    if isinstance(prior, str | Path):
        return MotionPrior.load(prior), Path(prior).name
    return prior, ""
