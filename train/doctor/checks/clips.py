"""A clip of the embedded model on every device in every precision, compared with the stored one.

What is compared is the relative difference of latents, ||z - reference|| / ||reference||. Measured on a CPU with torch
2.6 to 2.15, it is below 1e-6 in fp32, 0.001 in fp16 and 0.010 in bf16: two to three units of rounding (2^-11 and 2^-8).
The limits are five times that; fp32 has fp16's, for cards compute convolutions in TF32, whose mantissa is as long. A
clip of another seed differs by more than 1, and a device that computes wrongly comes no nearer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ....core.checkpoints.locations import family_folder
from ....core.checkpoints.networks import CheckpointError
from ....core.device import DTYPES, usual_dtype
from ....core.families import SHAPES
from ....core.pipeline import load
from ...shapes.world.captions import parse_prompt
from ...shapes.world.oracle import Measurement, compare, measure
from ..findings import TORCH, Finding, Options, attempt, progress
from ..reference import PROMPT, altered, read_latents, sample
from .devices import chosen_devices, chosen_dtypes

LIMITS = {"fp32": 0.005, "bf16": 0.05, "fp16": 0.005}
# Seconds of a first clip, beyond which the second is left out.
PATIENCE = 2.0
BROKEN = f"this device computes wrongly: bring the driver up to date and {TORCH}, or use another --device or --dtype"
ALTERED = "the embedded weights are not those that were shipped: see the checkpoints"


def examine(options: Options) -> Iterator[Finding]:
    folder = options.weights or family_folder(SHAPES.name)
    try:
        expected, remedy = read_latents(folder), ALTERED if altered(folder) else BROKEN
        load(SHAPES.name, folder=folder, device="meta")
    except CheckpointError:
        yield Finding("model", "skip", "cannot be loaded, see the checkpoints")
        return
    try:
        devices = chosen_devices(options)
    except ValueError:
        yield Finding(options.device, "skip", "cannot be used here, see the devices")
        return
    for device in devices:
        for dtype in chosen_dtypes(options, device):
            name = f"{device} {dtype}"
            if options.dtype is None and is_emulated(dtype, device):
                yield Finding(name, "skip", f"this card has no {dtype} of its own", f"--dtype {dtype} tries it")
                continue
            progress(f"{name}: a clip")
            make = partial(compared, name, folder, device, dtype, expected, remedy)
            yield attempt(name, make, remedy_for)


def is_emulated(dtype: str, device: torch.device) -> bool:
    """Whether a card computes in a format only by way of another."""
    return device.type == "cuda" and dtype == "bf16" and usual_dtype(device) != dtype


def compared(
    name: str, folder: Path, device: torch.device, dtype: str, expected: Tensor, remedy: str = BROKEN
) -> Finding:
    """Sample and decode the clip of the reference, twice if that is quick, and judge it."""
    model = load(SHAPES.name, folder=folder, device=device, dtype=DTYPES[dtype])
    seconds = []
    while not seconds or (len(seconds) < 2 and seconds[0] < PATIENCE):
        begin = time.perf_counter()
        latents = sample(model)
        frames = model.decode(latents)
        seconds.append(time.perf_counter() - begin)
    took = ", ".join(f"{which} {value:.2f} s" for which, value in zip(("first clip", "second"), seconds))
    right, value, data = judge(latents.float().cpu(), frames[0], expected, LIMITS[dtype])
    data |= {"seconds": [round(value, 3) for value in seconds]}
    return Finding(name, "ok" if right else "fail", f"{took}; {value}", "" if right else remedy, data)


def judge(latents: Tensor, frames: Tensor, expected: Tensor, limit: float) -> tuple[bool, str, dict]:
    """Compare latents with the expected ones, and what frames (F, 3, H, W) show with the prompt.

    Returns:
        Whether all is right, what was found in words, and in numbers.
    """
    if not (latents.isfinite().all() and frames.isfinite().all()):
        return False, "holds NaN or infinite numbers", {"limit": limit}
    difference = float((latents - expected).norm() / expected.norm())
    seen = measure(frames.permute(0, 2, 3, 1))
    right = difference <= limit and compare(seen, parse_prompt(PROMPT)).semantic == 1
    value = f"differs by {difference:.5f} (limit {limit:g}); shows {describe(seen)}"
    return right, value, {"limit": limit, "difference": round(difference, 7), "shows": describe(seen)}


def describe(seen: Measurement) -> str:
    """What the oracle saw, in words."""
    if seen.color is None:
        return "nothing"
    motion = {None: "turns", "still": "stands still"}.get(seen.direction, f"moves {seen.direction}")
    return f"a {seen.color} {seen.shape or 'thing'} that {motion}"


def remedy_for(error: Exception) -> str:
    """What to do where sampling raised this."""
    text = str(error).lower()
    if "out of memory" in text:
        return "close other programs that use this device, or use another --device"
    if "no kernel image" in text or "not compiled with" in text:
        return f"this torch was not built for this device: {TORCH}"
    return f"{TORCH}, bring the driver up to date, or use another --device or --dtype"
