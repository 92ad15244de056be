"""A clip of the embedded model on every device in every precision, compared with the stored one.

Limits of the relative difference of latents, ||z - reference|| / ||reference||: measured on CPUs with torch 2.6 to 2.15,
it is below 1e-6 in fp32, 0.001 in fp16 and 0.010 in bf16, which is 2 to 3 units of rounding of a format (2^-11, 2^-8).
The limits are 5 times that; fp32 has fp16's, for cards compute convolutions in TF32, whose mantissa is as long. Clips of
another seed differ by more than 1, and a device that computes wrongly gives no better.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ...core.config import SHAPES
from ...core.device import DTYPES, usual_dtype
from ...core.model import family_folder, load
from ..shapes.captions import parse_prompt
from ..shapes.oracle import Measurement, compare, measure
from .devices import chosen_devices, chosen_dtypes
from .findings import Finding, Options, attempt, progress
from .reference import PROMPT, read_latents, sample
from .versions import TORCH

LIMITS = {"fp32": 0.005, "bf16": 0.05, "fp16": 0.005}
# Seconds of a first clip, beyond which the second is left out.
PATIENCE = 2.0
BROKEN = f"this device computes wrongly: bring the driver up to date and {TORCH}, or use another --device or --dtype"


def examine(options: Options) -> Iterator[Finding]:
    folder = options.weights or family_folder(SHAPES.name)
    expected = read_latents(folder)
    try:
        devices = chosen_devices(options)
    except ValueError:
        yield Finding(options.device, "skip", "cannot be used here, see the devices")
        return
    for device in devices:
        for dtype in chosen_dtypes(options, device):
            yield one_clip(folder, device, dtype, expected, asked=options.dtype is not None)


def one_clip(folder: Path, device: torch.device, dtype: str, expected: Tensor, asked: bool) -> Finding:
    name = f"{device} {dtype}"
    if not asked and device.type == "cuda" and dtype == "bf16" and usual_dtype(device) != dtype:
        return Finding(name, "skip", "this card has no bf16 of its own; --dtype bf16 tries it nevertheless")
    progress(f"{name}: a clip")
    return attempt(name, lambda: compared(name, folder, device, dtype, expected), remedy_for)


def compared(name: str, folder: Path, device: torch.device, dtype: str, expected: Tensor) -> Finding:
    """Sample and decode the clip of the reference, twice if that is quick, and judge it."""
    model = load(SHAPES.name, folder=folder, device=device, dtype=DTYPES[dtype])
    seconds = []
    while not seconds or (len(seconds) < 2 and seconds[0] < PATIENCE):
        begin = time.perf_counter()
        latents = sample(model)
        frames = model.decode(latents)
        seconds.append(time.perf_counter() - begin)
    return judge(name, latents.float().cpu(), frames[0], expected, LIMITS[dtype], seconds)


def judge(name: str, latents: Tensor, frames: Tensor, expected: Tensor, limit: float, seconds: list[float]) -> Finding:
    """Compare latents with the expected ones, and what frames (F, 3, H, W) show with the prompt."""
    took = ", ".join(f"{which} {value:.2f} s" for which, value in zip(("first clip", "second"), seconds))
    data = {"seconds": [round(value, 3) for value in seconds], "limit": limit}
    if not (latents.isfinite().all() and frames.isfinite().all()):
        return Finding(name, "fail", f"{took}; the clip holds NaN or infinite numbers", BROKEN, data)
    difference = float((latents - expected).norm() / expected.norm())
    seen = measure(frames.permute(0, 2, 3, 1))
    right = compare(seen, parse_prompt(PROMPT)).semantic == 1
    value = f"{took}; differs by {difference:.5f} (limit {limit:g}); shows {describe(seen)}"
    data |= {"difference": round(difference, 7), "shows": describe(seen)}
    if difference <= limit and right:
        return Finding(name, "ok", value, data=data)
    return Finding(name, "fail", value, BROKEN, data)


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
    if isinstance(error, ValueError):
        return "see the checkpoints"
    return f"{TORCH}, bring the driver up to date, or use another --device or --dtype"
