"""The noise schedule and the two timestep grids: the solver's, for training, and the sampler's.

| here | paper |
|---|---|
| alpha_bar | cumulative product of 1 − beta |
| alpha, sigma | sqrt(alpha_bar), sqrt(1 − alpha_bar) |
| x | z_t, noisy latents (B, C, F, H, W) |
| eps, x0 | predicted noise, predicted clean latents |
"""

from __future__ import annotations

import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000
# Solver grid of the distillation: 200 steps of 5 training timesteps.
SOLVER_STEPS = 200


def draw_noise(shape: tuple[int, ...], generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
    """Standard normal noise (B, C, F, H, W) from one generator, or from one per sample.

    Drawn in fp32 where the generator is, on the CPU by default, so that one seed means one video on every device; per
    sample, so that batching changes no clip; and frame by frame, so that a seed gives the noise that ComfyUI draws for
    a batch of frames.
    """
    generators = generator if isinstance(generator, list) else [generator] * shape[0]
    channels, frames = shape[1:3]
    drawn = [
        torch.randn((frames, channels, *shape[3:]), generator=one, device=one.device if one else None)
        for one in generators
    ]
    return torch.stack([noise.transpose(0, 1) for noise in drawn])


def expand(coefficient: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, …) with the number of axes of ``like``, on its device."""
    return coefficient.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


class Lookup:
    """A table (N,) that is indexed where the indices are: on a card, without the CPU waiting for it.

    It is copied to a device when it is first asked there.
    """

    def __init__(self, table: Tensor):
        self._copies = {table.device: table}
        self.table = table

    def __call__(self, index: Tensor) -> Tensor:
        """Entries at ``index`` (B,), int64: (B,) on its device."""
        if index.device not in self._copies:
            self._copies[index.device] = self.table.to(index.device)
        return self._copies[index.device][index]


class NoiseSchedule:
    """Stable Diffusion's schedule (beta linear in its square root), float32."""

    def __init__(self, start: float = 0.00085, end: float = 0.012):
        self.betas = torch.linspace(start**0.5, end**0.5, TRAIN_TIMESTEPS, dtype=torch.float32) ** 2
        self.alpha_bar = torch.cumprod(1 - self.betas, dim=0)  # (1000,)
        self.alpha_bar_at = Lookup(self.alpha_bar)

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at timesteps ``t`` (B,), shaped to multiply ``like``."""
        alpha_bar = self.alpha_bar_at(t)
        return expand(alpha_bar.sqrt(), like), expand((1 - alpha_bar).sqrt(), like)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """alpha · x0 + sigma · noise at timesteps ``t`` (B,)."""
        alpha, sigma = self.coefficients(t, x0)
        return alpha * x0 + sigma * noise

    def predict_x0(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """(x − sigma · eps) / alpha at timesteps ``t`` (B,)."""
        alpha, sigma = self.coefficients(t, x)
        return (x - sigma * eps) / alpha


def solver_grid(steps: int = SOLVER_STEPS) -> Tensor:
    """Ascending timesteps of a DDIM grid, int64 (steps,): (i + 1) · (1000 // steps) − 1; 4, 9, …, 999 for 200.

    Raises:
        ValueError: if ``steps`` is outside 1..1000.
    """
    if not 1 <= steps <= TRAIN_TIMESTEPS:
        raise ValueError(f"steps={steps} is outside 1..{TRAIN_TIMESTEPS}")
    return (torch.arange(steps) + 1) * (TRAIN_TIMESTEPS // steps) - 1


def sampling_timesteps(steps: int, grid_steps: int = SOLVER_STEPS) -> Tensor:
    """Descending timesteps of the few-step sampler, int64 (steps,): the training grid from the top, evenly strided.

    4 steps give 999, 749, 499, 249.

    Raises:
        ValueError: if ``steps`` is outside 1..grid_steps.
    """
    if not 1 <= steps <= grid_steps:
        raise ValueError(f"steps={steps} is outside 1..{grid_steps}: a student is trained for 1 to 16")
    return solver_grid(grid_steps).flip(0)[:: grid_steps // steps][:steps]
