"""What chunking and checkpointing save: the peak memory of a motion score, every row in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm

from ...core.families import VIDEOCRAFTER2
from ...core.motion.probe import read_reference
from ...core.motion.score import motion_score
from ...core.networks.config import UNetConfig
from ...core.networks.unet import UNet3D
from ..memory import MEBIBYTE, AllocatedMemory, ResidentMemory

TIMESTEP = 799  # of all clips; memory does not depend on it
CONTEXT_LENGTH = 77
# Batch at once or clip by clip, without and with checkpointing; the first row is what the others are compared with.
ROWS = [(whole, checkpointing) for whole in (True, False) for checkpointing in (False, True)]


@dataclass(frozen=True)
class Setting:
    """A motion score to measure."""

    config: UNetConfig
    batch: int
    frames: int
    height: int  # of the latents
    width: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    seed: int = 0
    chunk: int = 1
    checkpointing: bool = False


class Cost(NamedTuple):
    """What a score took, and what it is."""

    peak: int  # bytes beyond the weights and inputs
    seconds: float
    score: np.ndarray  # (B, C, F, H, W)
    weights: int  # of the UNet


def scaled(channels: int) -> UNetConfig:
    """VideoCrafter2's UNet at another width, with as many heads and norm groups as wide; 320 is itself.

    Heads of its own size would make the first temporal transformer, which has eight at any width, the largest part.

    Raises:
        ValueError: if there is none of that width.
    """
    usual = VIDEOCRAFTER2.unet
    step = usual.model_channels // usual.norm_groups  # channels of a norm group
    if channels < step or channels % step:
        raise ValueError(f"--channels {channels} is no multiple of {step}: use 80, 160 or 320")
    head_channels = channels * usual.head_channels // usual.model_channels
    return replace(usual, model_channels=channels, head_channels=head_channels, norm_groups=channels // step)


def can_measure(device: torch.device) -> bool:
    """Whether a peak can be read there."""
    return device.type == "cuda" or (device.type == "cpu" and ResidentMemory.is_told())


def measure_rows(setting: Setting) -> dict[Setting, Cost]:
    """The cost of each row, the batch at once first.

    Raises:
        ValueError: if there is not enough memory, or so little is taken that the peak is not the score's.
    """
    costs = {}
    for whole, checkpointing in tqdm(ROWS, desc="motion memory", unit="row"):
        row = replace(setting, chunk=setting.batch if whole else 1, checkpointing=checkpointing)
        try:
            # A new process for each: what one has freed, its allocator may keep.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                costs[row] = pool.submit(measure, row).result()
        except (BrokenProcessPool, torch.OutOfMemoryError) as error:
            told = f"the score at {row.chunk} clips at a time did not fit in memory ({error})"
            raise ValueError(f"{told}: take fewer clips or frames, or smaller ones") from error
    return costs


# --- in a process of its own ----------


def measure(setting: Setting) -> Cost:
    """The cost of one score; the process must be a new one.

    Raises:
        ValueError: if the score takes no more than was taken before it.
    """
    device, channels = torch.device(setting.device), setting.config.in_channels
    generator = torch.Generator().manual_seed(setting.seed)
    unet = random_unet(setting.config, setting.seed).to(device, setting.dtype)
    shape = setting.batch, channels, setting.frames, setting.height, setting.width
    x, x_ref = torch.randn(shape, generator=generator), torch.randn((1, *shape[1:]), generator=generator)
    context = torch.randn((setting.batch, CONTEXT_LENGTH, setting.config.context_dim), generator=generator)
    x, x_ref, context = x.to(device), x_ref.to(device), context.to(device)
    t = torch.full((setting.batch,), TIMESTEP, device=device)
    reference = read_reference(unet, x_ref, t[:1], context[:1])  # of one clip: this takes less than any score
    warm_up()
    with AllocatedMemory(device) if device.type == "cuda" else ResidentMemory() as memory:
        started = time.perf_counter()
        found = motion_score(
            unet, x, t, context, reference, chunk=setting.chunk, checkpointing=setting.checkpointing
        ).score.cpu()
        seconds = time.perf_counter() - started
    if memory.peak is None:
        raise ValueError("the score takes too little memory to be measured: take more or larger clips")
    weights = sum(parameter.numel() for parameter in unet.parameters())
    return Cost(memory.peak, seconds, found.numpy(), weights)


def warm_up() -> None:
    """Load what torch loads at the first checkpointed pass: of recent versions 100 MiB, and no part of the score."""
    checkpoint(torch.square, torch.ones(1, requires_grad=True), use_reentrant=False).backward()


def random_unet(config: UNetConfig, seed: int) -> UNet3D:
    """A UNet with weights everywhere, also where a new one has zeros and so gives no gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet3D(config)
        for parameter in unet.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    return unet.eval()


# --- what came out ----------


def memory_table(costs: dict[Setting, Cost]) -> list[list]:
    """Header and a row per setting, compared with the first."""
    first = next(iter(costs.values()))
    table = [["clips at a time", "checkpointing", "peak (MiB)", "of the first", "seconds", "ratio", "score"]]
    for setting, cost in costs.items():
        table.append([
            setting.chunk, "on" if setting.checkpointing else "off", f"{cost.peak / MEBIBYTE:.0f}",
            f"{100 * cost.peak / first.peak:.0f} %", f"{cost.seconds:.1f}", f"{cost.seconds / first.seconds:.2f}",
            deviation(cost.score, first.score),
        ])  # fmt: skip
    return table


def deviation(score: np.ndarray, first: np.ndarray) -> str:
    """How far a score is from the first: the largest difference, relative to the largest value."""
    if np.array_equal(score, first):
        return "equal"
    return f"differs by {np.abs(score - first).max() / np.abs(first).max():.0e}"
