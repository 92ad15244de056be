"""Folders: the models folder and the temporary one, whether they can be written to and what room they have."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ....core.checkpoints.locations import models_folder
from ..findings import Finding, Options, attempt, readable

# Bytes: of the usual download, teacher and student, and of any clip's file.
DOWNLOAD, CLIP = 13_500_000_000, 200_000_000
ELSEWHERE = "name a folder where you may write: set T2V_TURBO_MODELS to it"


def examine(options: Options) -> Iterator[Finding]:
    yield attempt("models", partial(models, options.folder), ELSEWHERE)
    yield attempt("temporary files", temporary, "set TMPDIR (TEMP on Windows) to a folder where you may write")


def models(folder: Path | None) -> Finding:
    """A models folder without room or write access matters only to downloads, and so does none; None = the usual."""
    try:
        folder = folder or models_folder()
    except ValueError:
        return Finding("models", "warn", "none, as this user has no home folder", ELSEWHERE)
    place = existing(folder)
    free, writable = shutil.disk_usage(place).free, can_write(place)
    there = os.path.isdir(folder)
    value = f"{folder}, {readable(free)} free" + ("" if there else ", not there yet")
    data = {"path": str(folder), "exists": there, "writable": writable, "free": free}
    if os.path.exists(folder) and not there:
        return Finding("models", "fail", f"{folder} is a file", ELSEWHERE, data)
    if not writable:
        return Finding("models", "warn", f"{value}, cannot be written to", ELSEWHERE, data)
    if free < DOWNLOAD and not there:
        value += f", too little for `t2v-turbo download` ({readable(DOWNLOAD)})"
        return Finding("models", "warn", value, ELSEWHERE, data)
    return Finding("models", "ok", value, data=data)


def temporary() -> Finding:
    folder = Path(tempfile.gettempdir())
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0" * 4096)
    free = shutil.disk_usage(folder).free
    data = {"path": str(folder), "free": free}
    if free < CLIP:
        return Finding("temporary files", "fail", f"{folder}, {readable(free)} free", "make room there", data)
    return Finding("temporary files", "ok", f"{folder}, {readable(free)} free", data=data)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    # Path.is_dir would raise in a home folder that is closed to this user.
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.isdir(place))


def can_write(folder: Path) -> bool:
    """Tried, for permissions alone do not tell of file systems that are mounted read-only."""
    if not os.access(folder, os.W_OK):
        return False
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
