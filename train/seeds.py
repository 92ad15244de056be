"""Seeds as torch takes them, and a generator of its own for every purpose."""

from __future__ import annotations

import hashlib

import torch

SEEDS = 2**64


def seeds_from(first: int, count: int) -> list[int]:
    """``count`` seeds that follow each other; after the largest comes 0."""
    return [(first + i) % SEEDS for i in range(count)]


def generator_for(*key: int | str) -> torch.Generator:
    """A CPU generator that depends on ``key`` alone; different keys give independent streams."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
