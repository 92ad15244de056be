"""Motion scores of noised clips against their own motion: the guided branch of Algorithm 1, and what it costs.

Nearly all of the cost is the inversion, so one inversion of a clip serves all of its draws, and it may run on a coarser
grid than the authors' 200 steps. `t2v-turbo motion cost` tells what that changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.diffusion.ddim import DDIMSolver
from ...core.diffusion.guidance import cfg_model, guidance_edge
from ...core.motion.energies import find_energy
from ...core.motion.inversion import inversion_steps, prior_latents
from ...core.motion.probe import read_reference
from ...core.motion.score import MotionScore, motion_score
from ...core.pipeline import Pipeline
from ..config import PreprocessConfig


@dataclass(frozen=True)
class ScoreSettings:
    """How scores are made; part of the records' manifest."""

    method: str = "ddim"
    grid: int = 25
    energy: str = "mean"

    @classmethod
    def of(cls, config: PreprocessConfig) -> ScoreSettings:
        return cls(config.motion_method, config.motion_grid, config.motion_energy)

    def evaluations(self, timesteps: Sequence[int]) -> int:
        """UNet evaluations for the scores of one clip at ``timesteps``: its inversion, and two at each of them.

        One reads the reference's attention; the other gives the score, and with it the teacher's noise for the prompt.
        """
        return inversion_steps(timesteps, self.method, self.grid) + 2 * len(timesteps) if timesteps else 0


def is_guided(index: int, tau: float, solver: DDIMSolver) -> bool:
    """Whether a grid point is in the guided range, by the rule of ``ConsistencyDistillation.lambdas``."""
    return index >= guidance_edge(len(solver), tau)


class MotionScorer:
    """Scores noised clips.

    Args:
        model: with the teacher's UNet.
        batch: samples of one pass; memory grows with it.
        checkpointing: see ``motion_score``.

    Attributes:
        evaluations: of the UNet so far, one per sample.
    """

    def __init__(self, model: Pipeline, settings: ScoreSettings, batch: int = 1, checkpointing: bool = False):
        self.model, self.settings, self.batch, self.checkpointing = model, settings, batch, checkpointing
        self.energy, self.fps, self.evaluations = find_energy(settings.energy), model.family.fps, 0

    def references(
        self, x0: Tensor, context: Tensor, timesteps: Sequence[int], generator: torch.Generator
    ) -> dict[int, Tensor]:
        """A clip's latents z_ref at ``timesteps`` (at least one), from one inversion or from one noise.

        Args:
            x0: clean latents (1, C, F, H, W).
            context: embedding (1, L, D) of the clip's caption.
            generator: of the noise, which must not be that of the noised clip: the two would be the same.
        """
        predict = cfg_model(self.model.unet, context, context, 1, self.fps)
        method, grid = self.settings.method, self.settings.grid
        found = prior_latents(predict, x0, timesteps, self.model.schedule, method, grid, generator)
        self.evaluations += found.evaluations
        return found.latents

    def __call__(self, z: Tensor, t: Tensor, context: Tensor, z_ref: Tensor) -> MotionScore:
        """Scores of noised clips z against their references z_ref, both (B, C, F, H, W) at timesteps t (B,)."""
        parts = [self._score(*part) for part in zip(*(value.split(self.batch) for value in (z, t, context, z_ref)))]
        return MotionScore(*map(torch.cat, zip(*parts)))

    def _score(self, z: Tensor, t: Tensor, context: Tensor, z_ref: Tensor) -> MotionScore:
        self.evaluations += 2 * len(z)
        reference = read_reference(self.model.unet, z_ref, t, context, self.energy.keep, self.fps)
        return motion_score(
            self.model.unet, z, t, context, reference, self.energy, self.fps, self.batch, self.checkpointing
        )
