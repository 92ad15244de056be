"""Tensors that are mapped from a file: bringing them elsewhere without a copy of the file in memory."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

# Reading pages, changing the format and copying to a card overlap; more threads bring nothing.
THREADS = 4
MADV_DONTNEED = 4
CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


class MappedFiles:
    """Where in memory checkpoint files are mapped at the moment; nowhere on systems that do not tell."""

    def __init__(self):
        maps = Path("/proc/self/maps")
        lines = maps.read_text(errors="replace").splitlines() if sys.platform == "linux" and maps.exists() else []
        spans = [line.split(maxsplit=1)[0] for line in lines if line.endswith(CHECKPOINT_SUFFIXES)]
        self.ranges = [tuple(int(address, 16) for address in span.split("-")) for span in spans]

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
    change: Callable[[str, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Tensors on a device in a number format, several at a time; what is there already is not copied.

    The pages of a file from which they are mapped are released as they are copied.

    Args:
        change: (key, tensor) -> the tensor to bring instead.
    """
    files = MappedFiles()

    def one(key: str, value: Tensor) -> Tensor:
        there = (change(key, value) if change else value).to(device=device, dtype=dtype)
        if there is not value:
            files.release(value)
        return there

    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(state, pool.map(one, state, state.values())))


def convert(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A network in another number format, in place, with no second copy of it in memory on the way."""
    network.load_state_dict(bring(network.state_dict(), "cpu", dtype), assign=True)
    return network.to(dtype)  # what is not part of the state dict
