"""Tables of clips: rows of .csv or .tsv (comma, semicolon or tab), .json and .jsonl, told apart by their content."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TextIO, TypeVar

from ...core.text_files import open_text

DELIMITERS = ",;\t"
# Their content says more, but what is not JSON in a file of this name is no CSV either.
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")

T = TypeVar("T")


class RowError(ValueError):
    """A row that cannot be used; the message says why. It is skipped and named, the others go on."""


@dataclass(frozen=True)
class BadRow:
    """A row that was skipped; row 1 is the first one below the header."""

    number: int
    reason: str


def read_table(
    table: Path,
    make: Callable[[dict], T],
    columns: Collection[str],
    encoding: str | None = None,
    option: str = "encoding=",
) -> list[T | BadRow]:
    """What ``make`` makes of every row, in the table's order, and a ``BadRow`` for each that it refuses.

    Args:
        make: row by column -> anything; raises a ``RowError`` for a row that cannot be used.
        columns: that are looked for: by them the delimiter is chosen.
        encoding, option: see ``open_text``.

    Raises:
        ValueError: if the file is no table, or no row can be used.
    """
    found, usable = [], 0
    with open_text(table, encoding, option, newline="") as file:
        for number, row in enumerate(_rows(file, table, columns), 1):
            try:
                if isinstance(row, RowError):
                    raise row
                found.append(make(row))
                usable += 1
            except RowError as error:
                found.append(BadRow(number, str(error)))
    if found and not usable:
        raise ValueError(f"{table}: none of its {len(found)} rows can be used; row 1: {found[0].reason}")
    return found


def path_inside(name: str, root: Path, remedy: str) -> str:
    """The path of a table, relative to the folder that it must stay in; an absolute one may lie there as well.

    Raises:
        RowError: if it leads out of the folder, or no file can be called so; with the remedy.
    """
    try:
        os.fsencode(name)
    except UnicodeError as error:
        raise RowError(f"the path {name!a} cannot be a file's name here ({error.reason})") from error
    if not name.strip() or "\0" in name:
        raise RowError("the path is empty" if not name.strip() else f"the path {name!a} holds a zero byte")
    path = os.path.normpath(name)
    if os.path.isabs(path):
        path = _below(path, root)
    if os.path.isabs(path) or path.split(os.sep)[0] == os.pardir or os.path.splitdrive(path)[0]:
        raise RowError(f"the path {name} leaves the folder {root}; {remedy}")
    return path


def _below(path: str, root: Path) -> str:
    """An absolute path relative to a folder, as both are written or with links followed; itself if it lies outside."""
    for resolve in (os.path.abspath, os.path.realpath):
        inside = os.path.relpath(resolve(path), resolve(root))
        if inside.split(os.sep)[0] != os.pardir:
            return inside
    return path


# --- rows ---------


def _rows(file: TextIO, table: Path, columns: Collection[str]) -> Iterator[dict | RowError]:
    first = next((line for line in file if line.strip()), "")
    start = first.lstrip()[:1]
    if start == "[":
        return _list_rows(_parsed(first + file.read(), table))
    if start == "{":
        return _object_rows(chain([first], file))
    if start and table.suffix.lower() in JSON_SUFFIXES:
        raise ValueError(f"{table}: is no table; it must be a list of JSON objects, or an object on every line")
    return _delimited_rows(chain([first], file), _delimiter(first, columns))


def _parsed(text: str, table: Path) -> list:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{table}: cannot be read as a table ({error})") from error


def _list_rows(rows: list) -> Iterator[dict | RowError]:
    rows.reverse()
    while rows:  # a row is freed once it is read
        row = rows.pop()
        yield row if isinstance(row, dict) else RowError(f"is no JSON object: {str(row)[:60]}")


def _object_rows(lines: Iterable[str]) -> Iterator[dict | RowError]:
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row = RowError(f"is no JSON object on one line ({error})")
        yield row if isinstance(row, dict | RowError) else RowError(f"is no JSON object: {line[:60]}")


def _delimited_rows(lines: Iterable[str], delimiter: str) -> Iterator[dict | RowError]:
    header = None
    for cells in filter(None, _records(lines, delimiter)):  # without blank lines
        if isinstance(cells, RowError):
            yield cells
        elif header is None:
            header = [name.strip() for name in cells]
        else:
            yield _named(header, cells, delimiter)


def _delimiter(header: str, columns: Collection[str]) -> str:
    """The one that fits a header line best; guessing from the rows fails where captions hold commas."""
    return max(DELIMITERS, key=lambda delimiter: _fit(header, delimiter, columns))


def _fit(header: str, delimiter: str, columns: Collection[str]) -> tuple[int, int]:
    """How well a header line can be divided so: the wanted columns that come out, then all."""
    names = {name.strip(' "\r\n') for name in header.split(delimiter)}
    return len(names & set(columns)), len(names)


def _named(header: list[str], cells: list[str], delimiter: str) -> dict | RowError:
    if any(cells[len(header) :]):
        return RowError(
            f"has {len(cells)} values for {len(header)} columns: put a caption that holds '{delimiter}' in quotes"
        )
    return dict.fromkeys(header) | dict(zip(header, cells))


def _records(lines: Iterable[str], delimiter: str) -> Iterator[list[str] | RowError]:
    taken: list[str] = []
    reader = csv.reader(_kept(lines, taken), delimiter=delimiter)
    while True:
        taken.clear()
        try:
            cells = next(reader)
            if len(taken) > 1:  # strictly, lest a quote that is never closed swallows the rows below it in silence
                next(csv.reader(taken, delimiter=delimiter, strict=True))
        except StopIteration:
            return
        except csv.Error as error:
            began = reader.line_num - len(taken) + 1
            cells = RowError(f"lines {began} to {reader.line_num}: a quote is not closed or not doubled ({error})")
        yield cells


def _kept(lines: Iterable[str], taken: list[str]) -> Iterator[str]:
    for line in lines:
        taken.append(line)
        yield line
