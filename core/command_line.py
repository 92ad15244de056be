"""What the command lines share: exit codes, mistakes told in one line, and output that never fails at a character."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable
from io import TextIOWrapper

EXIT_MISTAKE, EXIT_INTERRUPTED = 2, 130
# As if the signal for it had ended the process, which the shell's own tools let happen.
EXIT_BROKEN_PIPE = 141

# Mistakes of the user, states of the machine, and libraries that are not installed.
MISTAKES = (ValueError, OSError, ImportError)
# Errors of libraries about files, by the name of their class: importing the libraries for it would cost seconds.
LIBRARY_MISTAKES = {"SafetensorError", "FFmpegError"}
OUT_OF_MEMORY = re.compile(r"out of memory|(can't|cannot) allocate memory|not enough memory", re.IGNORECASE)
NO_ROOM, NO_ACCESS = "free some space and run the same command again", "choose another folder"
# Python's own words are "No usable temporary directory found in [...]"; torch needs one.
TEMPORARY = "set TMPDIR (TEMP on Windows) to a folder where you may write"
REMEDIES = {errno.ENOSPC: NO_ROOM, errno.EDQUOT: NO_ROOM, errno.EACCES: NO_ACCESS, errno.EROFS: NO_ACCESS}


def exit_code(work: Callable[[], int | None], name: str, verbose: bool = False) -> int:
    """Do the work of a command and return its exit code: that of ``work`` (None = 0), 2, 130 or 141.

    What users and machines do wrong ends in one line on standard error; anything else is a fault of this program and
    is raised.

    Args:
        name: of the command, which begins the line.
        verbose: show where a mistake was found.
    """
    escape_unprintable()
    try:
        try:
            return work() or 0
        finally:
            _flush()
    except BrokenPipeError:  # whoever reads the output, such as `head`, has seen enough
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        line = mistake(error)
        if line is None:
            raise
        if verbose:
            traceback.print_exc()
        print(f"{name}: {line}", file=sys.stderr)
        return EXIT_MISTAKE


def mistake(error: Exception) -> str | None:
    """What to tell the user of an error that was to be expected, in one line; None if it was not."""
    text = " ".join(_own_line(str(error)).split()) or type(error).__name__
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(text)):
        return (
            f"not enough memory ({text[:200]}); take a smaller size, fewer frames or a smaller batch, half precision "
            "(--dtype bf16), or another --device"
        )
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        remedy = TEMPORARY if "temporary directory" in error.strerror else REMEDIES.get(error.errno)
        return f"{place}{error.strerror}{f'; {remedy}' if remedy else ''}"
    foreseen = isinstance(error, MISTAKES) or any(kind.__name__ in LIBRARY_MISTAKES for kind in type(error).__mro__)
    return text if foreseen else None


def _own_line(text: str) -> str:
    """Of an error that a worker of a DataLoader passed on, its last line, behind the name of its class."""
    if "in DataLoader worker process" not in text:
        return text
    return text.strip().splitlines()[-1].partition(": ")[2]


# --- standard input and output ---------


def typed_text(word: str) -> str:
    """A word of the command line that is text for people: as UTF-8 where the locale, such as C, does not read it."""
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeError:
        return word


def escape_unprintable() -> None:
    """Let this process print what its terminal or pipe cannot show: such characters come out as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # not without a console, or in a notebook
            stream.reconfigure(errors="backslashreplace")


def can_print(text: str) -> bool:
    """Whether standard output shows ``text`` as it is."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeError:
        return False
    return True


def _flush() -> None:
    """Write out what was printed; where that fails it is dropped, or Python would try and fail again at its end."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
