"""The statistics of a run: `stats.jsonl`, one JSON object a line, and the same as TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from pathlib import Path

logger = logging.getLogger(__name__)


class Stats:
    """Both logs of a run, without what a stopped run wrote after its last checkpoint.

    Args:
        folder: of the run.
        step: from which it goes on.

    Raises:
        OSError: if the disk is full.
    """

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.path, self.step = folder, folder / "stats.jsonl", step
        self._cut()
        self._hook, threading.excepthook = threading.excepthook, self._quiet
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)
        self.since = time.perf_counter()

    def _cut(self) -> None:
        kept = [line for line in read_stats(self.folder) if line["step"] <= self.step]
        partial = self.path.with_name("stats.jsonl.part")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(partial, self.path)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line, with the mean time of a step since the last one.

        Raises:
            OSError: if the disk is full.
        """
        now = time.perf_counter()
        values = values | {"seconds_per_step": (now - self.since) / (step - self.step)}
        self.step, self.since = step, now
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step} | {k: float(f"{v:.6g}") for k, v in values.items()}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        self.board.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # all is written already
            self.board.close()
        threading.excepthook = self._hook

    def _quiet(self, args: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread, which keeps its error for the next call: no need for a traceback too."""
        if not issubclass(args.exc_type, OSError):
            self._hook(args)


def read_stats(folder: Path) -> list[dict]:
    """The lines of a run's `stats.jsonl`; [] if there is none. A line cut off by a crash is left out."""
    path = Path(folder) / "stats.jsonl"
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            logger.warning("%s: left out a broken line", path)
    return lines
