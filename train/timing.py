"""Where the time of a command goes, told in its log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .memory import allocated_peak

logger = logging.getLogger(__name__)


def tell_start() -> None:
    """Log the seconds since the process began: Python, and the libraries that the command imports."""
    import psutil

    logger.info("%-22s %6.2f s", "start and imports", time.time() - psutil.Process().create_time())


@contextmanager
def stage(name: str, device: torch.device | None = None) -> Iterator[None]:
    """Log the seconds that the block takes; what it asked of ``device`` is waited for, if anyone reads the log."""
    begin = time.perf_counter()
    yield
    if logger.isEnabledFor(logging.INFO):
        if device is not None and device.type != "cpu":
            torch.accelerator.synchronize(device)
        logger.info("%-22s %6.2f s", name, time.perf_counter() - begin)


def tell_peak(device: torch.device) -> None:
    """Log the most memory that was in use on a card."""
    if device.type == "cuda":
        logger.info("%-22s %6.2f GiB", "peak memory of the card", allocated_peak(device) / 2**30)
