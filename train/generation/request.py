"""What ``t2v-turbo generate`` is asked for, refused where it means nothing, before a model is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ...core.diffusion.schedule import TRAIN_TIMESTEPS, solver_grid

# A teacher's sampling must begin in noise: the least timestep, of 0..999, of its first step.
NOISY = 900


@dataclass(frozen=True)
class GenerateRequest:
    """Prompts and how their clips are made; None = the model's own or the usual.

    Attributes:
        prompts: one clip each.
        model: name of a family; ``checkpoints`` is the folder of its files.
        student: by name or checkpoint file; None = the teacher.
        loras: to merge, FILE or FILE:STRENGTH.
        guidance: usual scale, 1 = none.
        motion: file of a prior that the teacher follows.
        motion_strength: lambda in the paper's unit, 0 = none.
        tau: fraction of the sampling that is guided by motion.
        combination: how a prior's score enters a step.
        seed: of the first prompt; it counts up.
        best_of: seeds per prompt, of which the clip of highest ``reward`` is kept; with ``keep_all`` the others too.
        reward: NAME[:WEIGHT],…
        out: a file for one prompt, or a folder, whose files are of ``format``.

    Raises:
        ValueError: for settings out of range, or that have no effect together.
    """

    prompts: tuple[str, ...]
    model: str
    student: str | None
    loras: tuple[str, ...]
    checkpoints: Path | None
    steps: int | None
    guidance: float | None
    motion: Path | None
    motion_strength: float | None
    tau: float | None
    combination: str | None
    seed: int
    best_of: int | None
    reward: str | None
    keep_all: bool
    frames: int | None
    height: int | None
    width: int | None
    fps: float | None
    out: str
    format: str
    device: str
    dtype: str

    def __post_init__(self):
        check_sampling(self)
        check_motion(self)
        check_best_of(self)


def check_sampling(request: GenerateRequest) -> None:
    """Refuse steps and guidance out of range."""
    steps, guidance, teacher = request.steps, request.guidance, request.student is None
    limit = 1000 if teacher else 200
    if steps is not None and not 1 <= steps <= limit:
        raise ValueError(f"--steps {steps} is outside 1..{limit}: use 4 to 16 for a student, 50 for a teacher")
    if teacher and steps is not None:
        check_grid(steps)
    if guidance is not None and not 1 <= guidance <= 100:
        raise ValueError(f"--guidance {guidance:g} is outside 1..100: 1 is no guidance, 7.5 is usual")


def check_grid(steps: int) -> None:
    """Refuse a teacher's steps whose grid leaves the noisiest timesteps out, as the clip begins in pure noise."""
    start = int(solver_grid(steps)[-1])
    if start < NOISY:
        divisor = max(n for n in range(1, steps) if TRAIN_TIMESTEPS % n == 0)
        raise ValueError(
            f"--steps {steps} would begin at timestep {start} of {TRAIN_TIMESTEPS - 1}, where a clip is no longer pure "
            f"noise: use {divisor}, which divides {TRAIN_TIMESTEPS}"
        )


def check_motion(request: GenerateRequest) -> None:
    """Refuse combinations of the motion options that mean nothing."""
    prior, strength, tau, teacher = request.motion, request.motion_strength, request.tau, request.student is None
    if prior and not teacher:
        raise ValueError(
            f"--motion {prior} needs --teacher: a student cannot follow a reference clip; one that was distilled "
            "with motion guidance (--student mg) takes --motion-strength alone"
        )
    if strength and teacher and not prior:
        raise ValueError(
            f"--motion-strength {strength:g} with --teacher needs --motion and a prior, which "
            "`t2v-turbo motion extract clip.mp4` makes from a reference clip"
        )
    if tau is not None and teacher and not prior:
        raise ValueError(f"--tau {tau:g} with --teacher needs --motion: without a prior nothing is guided")
    if request.combination and not prior:
        raise ValueError(f"--combination {request.combination} needs --teacher --motion: it is how a prior is followed")
    if strength is not None and not 0 <= strength < math.inf:
        raise ValueError(f"--motion-strength {strength:g} must be 0 or more: 500 is usual, 0 is none")
    if tau is not None and not 0 <= tau <= 1:
        raise ValueError(f"--tau {tau:g} is outside 0..1: 0.5 guides the noisier half of the sampling")


def check_best_of(request: GenerateRequest) -> None:
    """Refuse options of the best of several seeds that mean nothing."""
    if request.best_of is None and (request.reward is not None or request.keep_all):
        raise ValueError("--reward and --keep-all choose among several clips: say how many with --best-of 8")
    if request.best_of is not None and request.best_of < 1:
        raise ValueError(f"--best-of {request.best_of} must be 1 or more: 4 to 16 are usual")
