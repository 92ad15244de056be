"""The files that clips go to, checked before there are clips."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ...core.video import WRITABLE_SUFFIXES, check_writable


def output_files(prompts: Sequence[str], out: str, suffix: str) -> list[Path]:
    """Where each prompt's video goes: ``out`` itself for one prompt, else files in the folder ``out``.

    Raises:
        VideoError: if a file cannot be written there.
    """
    if not names_folder(out, len(prompts)):
        if len(prompts) > 1:
            raise ValueError(f"--out {out} names one file for {len(prompts)} prompts: name a folder")
        if Path(out).suffix.lower() not in WRITABLE_SUFFIXES:
            raise ValueError(
                f"--out {out}: cannot write '{Path(out).suffix}'; use {' or '.join(WRITABLE_SUFFIXES)}, or {out}/ for "
                "a folder"
            )
        return [check_writable(out)]
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    slugs = [re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "clip" for prompt in prompts]
    if suffix == "png":
        return [_numbered_pictures(out / f"{i:03d}-{slug}") for i, slug in enumerate(slugs)]
    return [check_writable(out / f"{i:03d}-{slug}.{suffix}") for i, slug in enumerate(slugs)]


def _numbered_pictures(folder: Path) -> Path:
    """The name for the pictures of a clip in a folder of its own."""
    folder.mkdir(exist_ok=True)
    return check_writable(folder / "%05d.png")


def names_folder(out: str, prompts: int) -> bool:
    """Whether ``out`` is a folder: it is there, ends like one, or has no suffix, or none of a clip for many prompts."""
    if out.endswith(("/", os.sep)) or Path(out).is_dir():
        return True
    suffix = Path(out).suffix.lower()
    return not suffix or (prompts > 1 and suffix not in WRITABLE_SUFFIXES)


def beside(target: Path, seed: int) -> Path:
    """Where the clip of a seed that was not the best goes, beside the best one."""
    return target.with_name(f"{target.stem}-seed{seed}{target.suffix}")
