"""Prompts as a user gives them: in words, and in text files with one a line."""

from __future__ import annotations

from pathlib import Path

from ...core.text_files import TextError, is_unicode, read_text


def read_prompts(prompts: list[str], file: Path | None, encoding: str | None = None) -> list[str]:
    """The prompts of the command line and of the file, without empty lines.

    Raises:
        ValueError: if there is none, or one holds what is no text.
    """
    if encoding and not file:
        raise ValueError(f"--encoding {encoding} is that of a file of prompts: name one with --prompts")
    lines = read_lines(file, "--prompts", encoding) if file else []
    found = [prompt.strip() for prompt in [*prompts, *lines] if prompt.strip()]
    if not found:
        raise ValueError('no prompt: write one, such as "a red circle moves right", or name a file with --prompts')
    broken = [prompt for prompt in found if not is_unicode(prompt)]
    if broken:
        raise ValueError(f"prompt {broken[0]!a} holds bytes that are no text here; write it in UTF-8")
    return found


def read_lines(file: Path, option: str, encoding: str | None = None) -> list[str]:
    """The lines of a text file that are not blank.

    Args:
        encoding: set by --encoding, see ``open_text``.

    Raises:
        ValueError: if it is missing or no text.
    """
    try:
        text = read_text(file, encoding, "--encoding ")
    except OSError as error:
        raise ValueError(f"{option} {file}: cannot be read ({error.strerror}); name a text file") from error
    except TextError as error:
        raise ValueError(f"{option} {error}") from error
    return [line for line in text.split("\n") if line.strip()]
