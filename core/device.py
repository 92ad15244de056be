"""Devices and precisions: which there are, which to take, and how much memory is left."""

from __future__ import annotations

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What a person may ask for.
PRECISIONS = ("auto", *DTYPES)
# What "auto" may take where numbers need the range of fp32, which bf16 has and fp16 has not: rewards and training.
WIDE_PRECISIONS = ("bf16", "fp32")


def pick_device(name: str, option: str = "--device ") -> torch.device:
    """The device that ``name`` means; "auto" takes an accelerator if there is one.

    Args:
        option: how the user wrote it, for the error.

    Raises:
        ValueError: if torch cannot use it here.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{option}{name} cannot be used here ({reason}); use cpu or auto") from error


def pick_dtype(name: str, device: torch.device, auto: tuple[str, ...] = tuple(DTYPES)) -> torch.dtype:
    """The number format that ``name`` means on a device.

    "auto" is bf16 on cards that compute in it, fp16 on other cards and on mps, fp32 on a CPU.

    Args:
        auto: what "auto" may take; where it would take another format, it takes fp32.

    Raises:
        ValueError: for an unknown name.
    """
    if name == "auto":
        usual = usual_dtype(device)
        return DTYPES[usual if usual in auto else "fp32"]
    if name not in DTYPES:
        raise ValueError(f"precision '{name}' is unknown; use {', '.join(PRECISIONS)}")
    return DTYPES[name]


def pick_autocast(precision: str, device: torch.device, auto: tuple[str, ...] = tuple(DTYPES)) -> str:
    """The precision of an autocast, "no", "bf16" or "fp16", with "auto" as in ``pick_dtype``."""
    if precision != "auto":
        return precision
    found = dtype_name(pick_dtype("auto", device, auto))
    return "no" if found == "fp32" else found


def usual_dtype(device: torch.device) -> str:
    """Name of the format that a device is fastest in without losing what matters."""
    if device.type == "cpu":
        return "fp32"
    if device.type == "mps":
        return "fp16"
    if device.type == "cuda":
        # Cards before Ampere emulate bf16, slower than fp32.
        return "bf16" if torch.version.hip or torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    return "bf16"


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a number format, as in ``DTYPES``."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on a device: free on the card, and what torch holds there without use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    if device.type == "xpu":
        unused = torch.xpu.memory_reserved(device) - torch.xpu.memory_allocated(device)
        return torch.xpu.get_device_properties(device).total_memory - torch.xpu.memory_allocated(device) - unused
    import psutil

    return psutil.virtual_memory().available
