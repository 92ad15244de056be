"""What a check is asked, and what it finds."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

STATUSES = ("ok", "warn", "fail", "skip")
# A remedy of several checks.
TORCH = "choose the torch for your card at https://pytorch.org/get-started/locally"


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        device, dtype: only this one; None = every one that there is.
        folder: where ``download --folder`` put the published files; None = the models folder.
        comfyui: ComfyUI's folder.
        endpoint: address of a mirror of the hub; None = the hub, or HF_ENDPOINT.
        weights: the embedded family's files; None = those of the package.
    """

    device: str | None = None
    dtype: str | None = None
    folder: Path | None = None
    comfyui: Path | None = None
    endpoint: str | None = None
    weights: Path | None = None
    verbose: bool = False


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at; no other finding of its check has that name.
        status: "ok"; "warn", worth knowing; "fail", a problem; or "skip", not there or not looked at.
        value: what was found, in words.
        remedy: what to do about it; "" = nothing.
        data: numbers for programs: bytes, seconds, versions.
    """

    name: str
    status: str
    value: str
    remedy: str = ""
    data: dict = field(default_factory=dict)

    def __post_init__(self):
        assert self.status in STATUSES, self.status


def attempt(name: str, find: Callable[[], Finding], remedy: str | Callable[[Exception], str]) -> Finding:
    """What ``find`` returns; an exception becomes a problem with this remedy, or the one for that exception."""
    try:
        return find()
    except Exception as error:
        return failure(name, error, remedy if isinstance(remedy, str) else remedy(error))


def failure(name: str, error: Exception, remedy: str) -> Finding:
    """An exception as a problem: its type and the first line of its message. The log has the traceback."""
    log.info("%s", name, exc_info=error)
    lines = str(error).strip().splitlines() or ["no message"]
    return Finding(name, "fail", f"{type(error).__name__}: {lines[0][:300]}", remedy)


def progress(text: str) -> None:
    """Tell what is being done, where it takes long."""
    print(f"  ... {text}", file=sys.stderr, flush=True)


def readable(size: float) -> str:
    """A number of bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
