"""Seeds of the command line: what torch's generators take."""

from __future__ import annotations

import argparse
import hashlib

import torch

SEEDS = 2**64


def seed_value(text: str) -> int:
    """A seed as the user wrote it, for argparse.

    Raises:
        argparse.ArgumentTypeError: for anything but a whole number in the range.
    """
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < SEEDS:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 0 to {SEEDS - 1}")
    return number


def seeds_from(first: int, count: int) -> list[int]:
    """``count`` seeds that follow each other; after the largest comes 0."""
    return [(first + i) % SEEDS for i in range(count)]


def generator_for(*key: int | str) -> torch.Generator:
    """A CPU generator that depends on ``key`` alone; different keys give independent streams."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
