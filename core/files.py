"""Files that are written whole or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_folder(path: Path) -> Path:
    """Fail early where the folder of ``path`` cannot be written to.

    Raises:
        ValueError: naming the path.
    """
    probe = path.with_name(f".{path.name}.probe")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{path}: cannot write here ({error.strerror}); choose another folder") from error
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that replaces it when the block ends well, and is removed when it does not."""
    partial = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, shortened; it is compared, not trusted."""
    digest = hashlib.sha256()
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give model.folder, or fetch it with `t2v-turbo download`")
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()[:16]
