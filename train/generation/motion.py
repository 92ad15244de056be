"""Motion guidance of a sampling: as asked for, else as a student was distilled, else as usual."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.motion.prior import MotionPrior
from ...core.pipeline import Pipeline
from .request import GenerateRequest


@dataclass(frozen=True)
class MotionSettings:
    """Motion guidance as ``Pipeline.sample`` takes it.

    Attributes:
        strength: lambda in the paper's unit, 0 = none; None where there is nothing to guide.
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
        settings = {"motion_strength": self.strength, "tau": self.tau}
        if self.prior is None:
            return settings
        about = {"motion": self.prior_file, "motion_source": self.prior.origin.source, "combination": self.combination}
        return settings | about


def settle_motion(request: GenerateRequest, model: Pipeline, prior: MotionPrior | None) -> MotionSettings:
    """What was asked for, with what a student was distilled with, or else the usual, in place of what was not.

    Raises:
        ValueError: for a tau that this student cannot take.
    """
    if request.tau is not None and model.is_student and not model.unet.takes_motion:
        raise ValueError(
            f"--tau {request.tau:g} needs a student that was distilled with motion guidance (--student mg)"
        )
    guided = model.unet.takes_motion or prior is not None
    own = model.motion_strength if guided else None
    return MotionSettings(
        own if request.motion_strength is None else request.motion_strength,
        model.tau if request.tau is None else request.tau,
        prior,
        request.motion.name if request.motion else "",
        request.combination or "released",
    )
