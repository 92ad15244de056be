"""A clip of the published model's full size, on random weights: whether memory suffices, and how long it takes.

Nothing is downloaded: the networks are built on the device itself, in the precision of the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from ....core.checkpoints.locations import family_folder
from ....core.checkpoints.networks import WithoutInitialisation
from ....core.device import dtype_name, pick_device, pick_dtype
from ....core.families import VIDEOCRAFTER2, FamilyConfig
from ....core.networks.text import TextEncoder
from ....core.networks.unet import UNet3D
from ....core.networks.vae import VideoVAE
from ....core.pipeline import Pipeline
from ...memory import REMEMBERING, allocated_peak, process_peak, reset_allocated_peak
from ..findings import Finding, Options, attempt, progress, readable
from .devices import room

# Deviation of weights, times the root of the inputs of a unit: activations neither vanish nor grow beyond fp16.
GAIN = 0.7
# Bytes that Python, torch and its kernels take of a CPU's memory.
LIBRARIES = 600_000_000
# Activations of the UNet that are alive at its peak, in units of the widest level's first one.
ALIVE = 32
PROMPT = "a corgi surfing a wave at sunset"
SMALLER = "close other programs that use this device; `generate` with smaller --height, --width or --frames needs less"
NOT_FINITE = "random weights leave the range of fp16 sooner than trained ones; try --dtype bf16 or fp32"


class Workload(NamedTuple):
    """What is sampled."""

    frames: int
    height: int
    width: int
    steps: int

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.width}x{self.height} in {self.steps} step{'s' * (self.steps > 1)}"


def examine(options: Options, family: FamilyConfig = VIDEOCRAFTER2) -> Iterator[Finding]:
    try:
        device = pick_device(options.device or "auto")
    except ValueError:
        yield Finding(options.device, "skip", "cannot be used here, see the devices")
        return
    dtype = pick_dtype(options.dtype or "auto", device)
    work = workload(family, device)
    memory = suffices(family, device, dtype, work)
    yield memory
    if memory.status == "ok":
        yield from clips(family, device, dtype, work)


def suffices(family: FamilyConfig, device: torch.device, dtype: torch.dtype, work: Workload) -> Finding:
    """Whether the memory of a device suffices, by estimate."""
    name, needed, free = f"{device} {dtype_name(dtype)}", memory_needed(family, device, dtype, work), room(device)
    data = {"needed": needed, "free": free, "parameters": parameters(family)}
    value = f"about {readable(needed)} of memory for {data['parameters'] / 1e9:.2f} B weights and {work}"
    if needed > free:
        remedy = "--dtype bf16 halves it" if dtype.itemsize > 2 else SMALLER
        return Finding(name, "skip", f"needs {value}, and {readable(free)} are free", remedy, data)
    return Finding(name, "ok", value, data=data)


def workload(family: FamilyConfig, device: torch.device) -> Workload:
    """A usual clip; on a CPU one step of a small one."""
    if device.type == "cpu":
        return Workload(family.frames, min(64, family.height), min(64, family.width), 1)
    return Workload(family.frames, family.height, family.width, 4)


def clips(family: FamilyConfig, device: torch.device, dtype: torch.dtype, work: Workload) -> Iterator[Finding]:
    """Build the model and sample two clips."""
    if device.type == "cpu":
        progress(f"a usual clip takes a CPU many minutes, so this makes {work}")
    begin = time.perf_counter()
    progress(f"{device} {dtype_name(dtype)}: random weights")
    model = random_model(family, device, dtype)
    synchronize(device)
    yield Finding("weights", "ok", f"built in {time.perf_counter() - begin:.1f} s")
    reset_allocated_peak(device)
    for name in ("first clip", "second clip"):
        progress(f"{device} {dtype_name(dtype)}: {name}, {work}")
        yield attempt(name, partial(one_clip, name, model, work), SMALLER)
    yield peak(device)


def one_clip(name: str, model: Pipeline, work: Workload) -> Finding:
    """Seconds of each part of a clip, and whether its numbers are finite."""
    generator = torch.Generator().manual_seed(0)
    noise = model.noise(1, generator, work.frames, work.height, work.width)
    seconds = {}
    timed(seconds, "text", model.device, lambda: model.encode([PROMPT]))
    latents = timed(
        seconds, "sampling", model.device, lambda: model.sample([PROMPT], noise, work.steps, generator=generator)
    )
    frames = timed(seconds, "decoding", model.device, lambda: model.decode(latents))
    total = seconds["sampling"] + seconds["decoding"]  # sampling encodes the text once more
    value = "{total:.2f} s: sampling {sampling:.2f}, of which text {text:.2f}; decoding {decoding:.2f}"
    data = {key: round(value, 3) for key, value in seconds.items()} | {"total": round(total, 3)}
    value = value.format(**data)
    if not (latents.isfinite().all() and frames.isfinite().all()):
        return Finding(name, "fail", f"{value}; holds NaN or infinite numbers", NOT_FINITE, data)
    return Finding(name, "ok", value, data=data)


def timed(seconds: dict[str, float], name: str, device: torch.device, work: Callable):
    """Do the work, and note under ``name`` what it took."""
    synchronize(device)
    begin = time.perf_counter()
    result = work()
    synchronize(device)
    seconds[name] = time.perf_counter() - begin
    return result


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


# --- random weights ----------


def random_model(family: FamilyConfig, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """A student with motion guidance of the family's size; the text encoder is on the CPU, as ``load`` has it."""
    on_device, on_cpu = (torch.Generator(place).manual_seed(0) for place in (device, "cpu"))
    unet = random_network(unet_of(family), device, dtype, on_device)
    vae = random_network(vae_of(family), device, dtype, on_device)
    return Pipeline(family, unet, vae, random_network(text_of(family), torch.device("cpu"), dtype, on_cpu))


def unet_of(family: FamilyConfig) -> UNet3D:
    return on_meta(lambda: UNet3D(family.unet.as_student(motion=True)))


def vae_of(family: FamilyConfig) -> VideoVAE:
    return on_meta(lambda: VideoVAE(family.vae))


def text_of(family: FamilyConfig) -> TextEncoder:
    merges = family.text.merges and family_folder(family.name) / family.text.merges
    return on_meta(lambda: TextEncoder(family.text, merges))


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"), WithoutInitialisation():
        return build()


@torch.no_grad()
def random_network(
    network: nn.Module, device: torch.device, dtype: torch.dtype, generator: torch.Generator
) -> nn.Module:
    """Put random weights in a network on "meta", straight on a device and in a number format."""
    assert not list(network.buffers()), "buffers would be left empty"
    network.to(dtype).to_empty(device=device)
    for module in network.modules():
        is_norm = isinstance(module, nn.GroupNorm | nn.LayerNorm)
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim > 1:
                weight.normal_(0, GAIN / weight[0].numel() ** 0.5, generator=generator)
            else:
                weight.fill_(1.0 if is_norm and name == "weight" else 0.0)
    return network.eval().requires_grad_(False)


# --- memory ----------


def parameters(family: FamilyConfig) -> int:
    networks = unet_of(family), vae_of(family), text_of(family)
    return sum(weight.numel() for network in networks for weight in network.parameters())


def memory_needed(family: FamilyConfig, device: torch.device, dtype: torch.dtype, work: Workload) -> int:
    """About how many bytes of the device's memory; the text encoder visits it."""
    vae = vae_of(family).to(dtype)
    height, width = work.height // family.vae.downsampling, work.width // family.vae.downsampling
    sampling = ALIVE * family.unet.model_channels * work.frames * height * width * dtype.itemsize
    libraries = LIBRARIES if device.type == "cpu" else 0
    return parameters(family) * dtype.itemsize + max(sampling, vae.frame_memory(height, width)) + libraries


def peak(device: torch.device) -> Finding:
    """The most memory that was in use."""
    if device.type in REMEMBERING:
        size, of = allocated_peak(device), str(device)
    elif device.type == "mps":
        size, of = torch.mps.driver_allocated_memory(), "mps at the end"
    else:
        size, of = process_peak(), "the process, its libraries among it"
    return Finding("peak memory", "ok", f"{readable(size)} of {of}", data={"bytes": size})
