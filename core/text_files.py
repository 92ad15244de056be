"""The one way to open text: as UTF-8 with or without a byte-order mark, as UTF-16 with one, or as it is said to be.

Programs write what they like: Excel, Notepad and PowerShell begin a file with a byte-order mark, which tells its
encoding, and end lines by CR LF. Written is UTF-8 with LF, whole or not at all.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

# The longer ones first: that of UTF-32 begins like that of UTF-16.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class TextError(ValueError):
    """A text file that cannot be read; the message names the file, the reason and the remedy."""


# --- reading ---------


@contextmanager
def open_text(
    path: str | Path, encoding: str | None = None, option: str = "", newline: str | None = None
) -> Iterator[TextIO]:
    """A text file, open for reading while the block runs.

    Args:
        encoding: of a file without a byte-order mark, which says more than any setting; None = UTF-8.
        option: how the user sets ``encoding``, such as "encoding=", for the error; "" = not at all.
        newline: as in ``open``.

    Raises:
        TextError: for an unknown encoding, and in the block for bytes that are no text in it.
        OSError: if the file cannot be opened.
    """
    check_encoding(encoding, option)
    # Opened once, as it may be a pipe.
    with Path(path).open("rb") as file:
        head = file.peek(4)
        marked = next((name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)
        if not (marked or encoding) and b"\0" in head[:4]:
            raise TextError(_refusal(path, "is no UTF-8 text (it holds zero bytes)", option, "utf-16-le"))
        chosen = marked or encoding or "utf-8"
        try:
            yield TextIOWrapper(file, chosen, newline=newline)
        except UnicodeDecodeError as error:
            raise TextError(_refusal(path, f"is no {chosen.upper()} text ({_place(error)})", option)) from error


def check_encoding(encoding: str | None, option: str) -> None:
    """Refuse a name that is none of a text encoding.

    Raises:
        TextError: with what may be taken.
    """
    try:
        "".encode(encoding or "utf-8")
    except (LookupError, UnicodeError) as error:
        raise TextError(f"{option}{encoding} is unknown; use utf-8, utf-16, latin-1, cp1252 or another name") from error


def _place(error: UnicodeDecodeError) -> str:
    before = error.object[max(0, error.start - 20) : error.start].decode("ascii", "replace").replace("\ufffd", "?")
    return f"byte 0x{error.object[error.start]:02x} after {before!r}"


def _refusal(path: str | Path, reason: str, option: str, example: str = "latin-1") -> str:
    other = f", or name its encoding, such as {option}{example}" if option else ""
    return f"{path}: {reason}; save it as UTF-8{other}"


def read_text(path: str | Path, encoding: str | None = None, option: str = "") -> str:
    """The whole of a text file, its lines ended by LF; see ``open_text``."""
    with open_text(path, encoding, option) as file:
        return file.read()


def read_json(path: str | Path, encoding: str | None = None, option: str = "") -> Any:
    """The value in a JSON file; see ``open_text``.

    Raises:
        TextError: also for what is not JSON.
    """
    text = read_text(path, encoding, option)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TextError(f"{path}: is not valid JSON ({error})") from error


# --- writing ---------


def write_text(path: str | Path, text: str) -> None:
    """Write under a temporary name of this process, then rename; nothing half-written stays.

    A file name of bytes that are no UTF-8 is written by its escapes, which JSON reads back.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON for people to read, as ``write_text`` does."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def name_text(path: Path) -> str:
    """The name of a file as text: bytes in it that are no UTF-8 are told by their escapes."""
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")


def is_unicode(text: str) -> bool:
    """Whether ``text`` can be written as UTF-8; not so half a surrogate pair, or a file name of other bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
