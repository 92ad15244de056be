"""Means and rates of samples with their 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z95 = 1.96  # deviations of a normal distribution that hold 95 %


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval, in the unit of the samples."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def wilson(hits: float, n: int) -> tuple[float, float]:
    """95 % confidence interval of a rate, Wilson's, which stays inside 0..1 and holds for few samples too."""
    share, z2 = hits / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of independent samples by the normal approximation, which a few dozen justify; one sample tells nothing."""
    samples = np.asarray(values, float)
    mean = float(samples.mean())
    half = Z95 * float(samples.std(ddof=1)) / math.sqrt(len(samples)) if len(samples) > 1 else math.inf
    return Interval(mean, mean - half, mean + half)


def difference(after: Sequence[float], before: Sequence[float]) -> Interval:
    """Mean difference of paired outcomes: sample i of both was made from the same prompt and noise."""
    return mean_interval(np.asarray(after, float) - np.asarray(before, float))
