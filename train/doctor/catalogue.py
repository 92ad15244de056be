"""The checks that there are, in the order of the report."""

from __future__ import annotations

from .findings import TORCH
from .running import Check

INSTALL = "install the package and what it needs again: `python -m pip install -e .` in its folder"


def _check(name: str, title: str, remedy: str, module: str = "") -> Check:
    return Check(name, title, f"{__package__}.checks.{module or name}:examine", remedy)


QUICK = [
    _check("versions", "Versions", INSTALL),
    _check("devices", "Devices", f"torch cannot be used: {TORCH}"),
    _check("folders", "Folders", "set T2V_TURBO_MODELS to a folder where you may write"),
    _check("checkpoints", "Checkpoints", INSTALL),
]
USUAL = [
    *QUICK,
    _check("video", "Video files", "install both again: `python -m pip install --force-reinstall av pillow`"),
    _check("clips", "Clips of the embedded model", INSTALL),
]
FULL = _check("full", "Full size, on random weights", f"use --dtype bf16, or {TORCH}", "full_size")
ONLINE = _check("online", "Network", "check the network; everything but `download` works without")
COMFYUI = _check("comfyui", "ComfyUI", "name ComfyUI's folder with --comfyui")
