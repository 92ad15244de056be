"""Motion guidance of a sampling: as asked for, else as a student was distilled, else as usual."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from ...core.checkpoints.locations import family_folder, student_path
from ...core.motion.prior import MotionPrior
from ...core.pipeline import Pipeline
from .request import GenerateRequest

# Guided part of the sampling where nothing says otherwise.
TAU = 0.5


@dataclass(frozen=True)
class MotionSettings:
    """Motion guidance as ``Pipeline.sample`` takes it.

    Attributes:
        strength: lambda in the paper's unit, 0 = none; None = the family's, where there is anything to guide.
        tau: fraction of the sampling that is guided.
        prior: motion of a reference clip for the teacher to follow; ``prior_file`` is the name of its file.
        combination: how a prior's score enters a step.
    """

    strength: float | None
    tau: float
    prior: MotionPrior | None = None
    prior_file: str = ""
    combination: str = "released"

    def tags(self, model: Pipeline) -> dict:
        """What a clip's file says about motion guidance; {} where there was none."""
        if self.prior is None and not model.unet.takes_motion:
            return {}
        strength = model.family.motion_strength if self.strength is None else self.strength
        settings = {"motion_strength": strength, "tau": self.tau}
        if self.prior is None:
            return settings
        about = {"motion": self.prior_file, "motion_source": self.prior.origin.source, "combination": self.combination}
        return settings | about


def settle_motion(request: GenerateRequest, model: Pipeline, prior: MotionPrior | None) -> MotionSettings:
    """What was asked for, with what a student was distilled with, or else the usual, in place of what was not.

    Raises:
        ValueError: for a tau that this student cannot take.
    """
    own = {}
    if request.tau is not None and model.is_student and not model.unet.takes_motion:
        raise ValueError(
            f"--tau {request.tau:g} needs a student that was distilled with motion guidance (--student mg)"
        )
    if model.is_student and model.unet.takes_motion:
        folder = request.checkpoints or family_folder(model.family.name)
        own = distilled_motion(student_path(model.family.name, request.student, folder))
    return MotionSettings(
        own.get("motion_strength") if request.motion_strength is None else request.motion_strength,
        own.get("tau", TAU) if request.tau is None else request.tau,
        prior,
        request.motion.name if request.motion else "",
        request.combination or "released",
    )


def distilled_motion(path: Path) -> dict[str, float]:
    """``motion_strength`` and ``tau`` that a student was distilled with, as far as its file tells.

    Raises:
        ValueError: if what it tells makes no sense.
    """
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        told = (file.metadata() or {}).get("distill", "{}")
    try:
        settings = json.loads(told)
        found = {name: settings[name] for name in ("motion_strength", "tau") if settings.get(name) is not None}
        if not (0 <= found.get("motion_strength", 0) < math.inf and 0 <= found.get("tau", 0) <= 1):
            raise ValueError(f"{found} is out of range")
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: its settings of distillation cannot be read ({error}); export it again") from error
    return found if settings.get("motion") else {}
