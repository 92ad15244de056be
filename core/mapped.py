"""Tensors that are mapped from a file: bringing them elsewhere without a copy of the file in memory."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

# Reading pages, changing the format and copying to a card overlap; more threads bring nothing.
THREADS = 4
MADV_DONTNEED = 4


class MappedFiles:
    """Where in memory the files of a folder lie that are mapped at the moment; nowhere on systems that do not tell.

    Args:
        folder: of the files whose tensors were just read.
    """

    def __init__(self, folder: Path):
        maps = Path("/proc/self/maps")
        lines = maps.read_text(errors="replace").splitlines() if sys.platform == "linux" and maps.exists() else []
        found = [line.split(maxsplit=5) for line in lines]
        there = [fields[0] for fields in found if len(fields) == 6 and Path(fields[5]).parent == folder.resolve()]
        self.ranges = [tuple(int(address, 16) for address in span.split("-")) for span in there]

    def release(self, tensor: Tensor) -> None:
        """Take a tensor's pages out of this process; they stay in the system's cache, from where they come back.

        Without this a loaded file would count as memory in use until all of it is copied.
        """
        start, stop = span(tensor)
        start, stop = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
        if start < stop and any(first <= start and stop <= last for first, last in self.ranges):
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), MADV_DONTNEED)


def span(tensor: Tensor) -> tuple[int, int]:
    """Addresses of the first byte of a tensor's values and the one after the last, if they are contiguous."""
    start = tensor.data_ptr()
    return start, start + tensor.numel() * tensor.element_size()


def bring(
    state: dict[str, Tensor],
    device: str | torch.device,
    dtype: torch.dtype,
    source: MappedFiles | None = None,
    change: Callable[[str, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Tensors on a device in a number format, several at a time; what is there already is not copied.

    Args:
        source: the files that they may be mapped from, whose pages are released as they are copied; None = no file.
        change: (key, tensor) -> the tensor to bring instead.
    """

    def one(key: str, value: Tensor) -> Tensor:
        there = (change(key, value) if change else value).to(device=device, dtype=dtype)
        if source and there.data_ptr() != value.data_ptr():
            source.release(value)
        return there

    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(state, pool.map(one, state, state.values())))
