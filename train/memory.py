"""How much memory work takes: the ways to measure it, each named for what it sees.

- ``AllocatedMemory``: what torch's allocator gave out on a card, exact; what the driver takes beside it is not counted.
- ``ResidentMemory``: what Linux counts for the process, so all that work on a CPU takes: tensors, workspaces of
  libraries, what the allocator keeps. It sees a peak only above all earlier ones, so it is taken once a process.
- ``LiveTensors``: the tensors alone, exact and on any device, as often as one likes in a process; what kernels take
  beside them is not counted.
- ``allocated_peak`` and ``process_peak``: of all since the beginning, weights and libraries among them.

They give different figures, so none stands for another. The first three are ``with`` blocks that have a ``peak``.
"""

from __future__ import annotations

import re
import sys
import weakref
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..core.text_files import read_text

MEBIBYTE = 2**20
STATUS = Path("/proc/self/status")
# Kinds of devices whose allocator remembers its peak.
REMEMBERING = ("cuda", "xpu")


# --- the allocator of a card ----------


class AllocatedMemory:
    """Tensors on a card, as its allocator counts them.

    Attributes:
        peak: bytes at most inside the block, beyond what was allocated when it began.
    """

    def __init__(self, device: torch.device):
        self.device = device

    def __enter__(self) -> AllocatedMemory:
        reset_allocated_peak(self.device)
        self._before = getattr(torch, self.device.type).memory_allocated(self.device)
        return self

    def __exit__(self, *failure) -> None:
        self.peak = allocated_peak(self.device) - self._before


def reset_allocated_peak(device: torch.device) -> None:
    """Let ``allocated_peak`` begin here; nothing on devices that remember none."""
    if device.type in REMEMBERING:
        getattr(torch, device.type).reset_peak_memory_stats(device)


def allocated_peak(device: torch.device) -> int:
    """Bytes that were allocated at most, all weights among them, on a device that remembers it."""
    return getattr(torch, device.type).max_memory_allocated(device)


# --- the process ----------


class ResidentMemory:
    """Resident memory of this process, as Linux counts it. One block a process: an earlier peak hides a lower one.

    Attributes:
        peak: bytes at most inside the block, beyond what was resident when it began; None if an earlier peak was as
            high, so that nothing is known.
    """

    @staticmethod
    def is_told() -> bool:
        """Whether this system tells it."""
        return STATUS.exists()

    def __enter__(self) -> ResidentMemory:
        self._before, self._earlier = resident("VmRSS"), resident("VmHWM")
        return self

    def __exit__(self, *failure) -> None:
        peak = resident("VmHWM")
        self.peak = peak - self._before if peak > self._earlier else None


def resident(field: str) -> int:
    """Resident memory of this process in bytes: VmRSS = now, VmHWM = its peak.

    Not ``process_peak``, which is at least what the parent process held when it started this one.
    """
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", read_text(STATUS), re.MULTILINE)[1])


def process_peak() -> int:
    """Bytes that this process had at most since it began, libraries among them, on every system."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


# --- the tensors ----------


class LiveTensors(TorchDispatchMode):
    """Counts the tensors that are made inside the block and are alive.

    Attributes:
        live: bytes now.
        peak: bytes at most.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {_storage(leaf)._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _storage(leaf)._cdata not in given | self._known:
                self._add(_storage(leaf))
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        size, key = storage.nbytes(), storage._cdata
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()
