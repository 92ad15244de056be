"""Devices: which there are, how large, and which number formats they compute in."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from ....core.device import DTYPES, free_memory, pick_device, usual_dtype
from ..findings import TORCH, Finding, Options, attempt, readable

DRIVER = f"bring the driver up to date, and {TORCH}"
# Seconds. A driver that hangs must not hang the report.
PATIENCE = 20
CONTROL_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def examine(options: Options) -> Iterator[Finding]:
    yield attempt("torch", build, TORCH)
    yield attempt("nvidia driver", nvidia, DRIVER)
    if options.device:
        yield attempt(options.device, lambda: describe(chosen_devices(options)[0]), DRIVER)
        return
    for device in all_devices():
        yield attempt(str(device), partial(describe, device), DRIVER)


def all_devices() -> list[torch.device]:
    """The CPU, then every accelerator that torch can use."""
    found = [torch.device("cpu")]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator().type
        found += [torch.device(kind, i) for i in range(torch.accelerator.device_count())]
    return found


def chosen_devices(options: Options) -> list[torch.device]:
    """Raises: ValueError: if the user named one that cannot be used."""
    return [pick_device(options.device)] if options.device else all_devices()


def chosen_dtypes(options: Options, device: torch.device) -> list[str]:
    """Names of the precisions to look at on a device."""
    if options.dtype == "auto":
        return [usual_dtype(device)]
    return [options.dtype] if options.dtype else list(DTYPES)


# --- torch and the driver ----------


def build() -> Finding:
    """The version of torch and what it was built for."""
    parts = {"cuda": torch.version.cuda, "hip": torch.version.hip, "xpu": getattr(torch.version, "xpu", None)}
    parts = {name: version for name, version in parts.items() if version}
    if torch.backends.cudnn.is_available():
        parts["cudnn"] = str(torch.backends.cudnn.version())
    built = ", ".join(f"{name} {version}" for name, version in parts.items()) or "CPU alone"
    version = str(torch.__version__)
    return Finding("torch", "ok", f"{version}, built for {built}", data={"version": version} | parts)


def nvidia() -> Finding:
    """NVIDIA's cards by their driver, and whether torch can use them."""
    name, cards = "nvidia driver", cards_of_driver()
    if not cards:
        return Finding(name, "skip", "no card found, or no nvidia-smi")
    driver = cards[0].rpartition(", ")[2]
    names = ", ".join(card.rpartition(", ")[0] for card in cards)
    value, data = f"{driver}, for {names}", {"version": driver}
    if torch.cuda.is_available():
        return Finding(name, "ok", value, data=data)
    reason, remedy = unusable()
    return Finding(name, "warn", f"{value}, which torch cannot use: {reason}", remedy, data)


def cards_of_driver() -> list[str]:
    """ "NAME, VERSION OF THE DRIVER" of each card."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    told = subprocess.run(query, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False)
    return [line.strip() for line in told.stdout.splitlines() if line.strip()] if told.returncode == 0 else []


def unusable() -> tuple[str, str]:
    """Why torch cannot use the card that the driver tells of, and the remedy."""
    if torch.version.cuda is None:
        return "it was built without CUDA", TORCH
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}", "unset that variable to use the card"
    try:
        torch.cuda.init()
        reason = "no reason given"
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return reason, DRIVER


# --- one device ----------


def describe(device: torch.device) -> Finding:
    """Its name, memory and number formats."""
    about = of_cpu() if device.type == "cpu" else of_accelerator(device)
    total, free = about["memory_total"], about["memory_free"]
    memory = f"{readable(total)} of memory, {readable(free)} free" if total else f"{readable(free)} free"
    traits = [memory, *about.pop("traits"), f"--dtype auto is {usual_dtype(device)}"]
    return Finding(str(device), "ok", f"{about['name']}; {'; '.join(traits)}", data=about)


def of_accelerator(device: torch.device) -> dict:
    if device.type == "mps":
        total, name = torch.mps.recommended_max_memory(), f"Apple GPU of {processor()}"
        return {"name": name, "memory_total": total, "memory_free": free_memory(device), "traits": []}
    about = getattr(torch, device.type).get_device_properties(device)
    found = {"name": about.name, "memory_total": about.total_memory, "memory_free": free_memory(device), "traits": []}
    if device.type == "cuda":
        capability = f"{about.major}.{about.minor}"
        bf16 = usual_dtype(device) == "bf16"
        found |= {"capability": capability, "bf16": bf16}
        found["traits"] = [f"compute capability {capability}", "bf16" if bf16 else "no bf16 of its own"]
    return found


def of_cpu() -> dict:
    cores, threads, formats = os.cpu_count() or 1, torch.get_num_threads(), fast_formats()
    return {
        "name": processor(),
        "memory_total": memory_limit(),
        "memory_free": room(torch.device("cpu")),
        "cores": cores,
        "threads": threads,
        "formats": formats,
        "traits": [f"{cores} cores, {threads} threads in use", ", ".join([instructions(), *formats])],
    }


def instructions() -> str:
    return torch.backends.cpu.get_cpu_capability()


def fast_formats() -> list[str]:
    """What the CPU has for 16 bits, as far as torch tells."""
    known = {"AVX-512 bf16": "_is_avx512_bf16_supported", "AMX": "_is_amx_tile_supported"}
    return [name for name, test in known.items() if getattr(torch.cpu, test, bool)()]


def processor() -> str:
    """The CPU's name."""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if named:
            return named[0]
    return platform.processor() or platform.machine()


def room(device: torch.device) -> int:
    """Bytes that can be allocated on a device, within the limit of a container."""
    free = free_memory(device)
    return min(free, memory_limit()) if device.type == "cpu" else free


def memory_limit() -> int:
    """Bytes of memory of the machine, or those that its container may use."""
    import psutil

    limits = [psutil.virtual_memory().total]
    for path in CONTROL_GROUPS:
        text = Path(path).read_text().strip() if Path(path).is_file() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)
