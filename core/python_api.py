"""What ``import t2v_turbo`` offers to Python: a model by name, on the device and in the format that suit it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from .checkpoints.lora import split_strength
from .device import DTYPES, pick_device, pick_dtype
from .pipeline import Pipeline
from .pipeline import load as load_pipeline


def load(
    model: str = "shapes",
    student: str | Path | None = "default",
    folder: str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    loras: str | Path | Sequence[str | Path | tuple[str | Path, float]] = (),
) -> Pipeline:
    """Load a model to make clips with: ``load("shapes")("a red circle moves right", steps=4)``.

    Args:
        model: "shapes", which is embedded, or "videocrafter2", after `t2v-turbo download`.
        student: "mg", "no-mg", "v1", the path of a checkpoint, or "default", the first of them that is there;
            None = the teacher.
        folder: where the model's files lie; None = in the package, or below the models folder (``T2V_TURBO_MODELS``).
        device: "auto" (an accelerator if there is one), "cpu", "cuda", "cuda:1", "mps", "xpu", or a torch.device.
        dtype: "auto" (bf16 on cards that have it, fp16 on other cards, fp32 on a CPU), "fp32", "bf16", "fp16", or the
            torch.dtype of one of them.
        loras: to merge into the UNet: files, FILE:STRENGTH, or pairs of a file and its strength.

    Raises:
        ValueError: for an unknown model, student, device or format.
        CheckpointError: for a file that is missing, damaged or of another model.
    """
    device = pick_device(str(device), "device=")
    return load_pipeline(model, student, folder, device, as_dtype(dtype, device), as_loras(loras))


def as_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """A number format by name or as itself.

    Raises:
        ValueError: for one that no model is loaded in.
    """
    if isinstance(dtype, str):
        return pick_dtype(dtype, device)
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype={dtype} is none of {', '.join(map(str, DTYPES.values()))}")
    return dtype


def as_loras(loras: str | Path | Sequence[str | Path | tuple[str | Path, float]]) -> list[tuple[str | Path, float]]:
    """Pairs of a LoRA's file and its strength, from one file or several, each FILE, FILE:STRENGTH or such a pair."""
    loras = [loras] if isinstance(loras, str | Path) else loras
    return [split_strength(lora) if isinstance(lora, str | Path) else lora for lora in loras]
