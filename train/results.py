"""Results that a stopped command finds again, each bound to what it was made from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..core.files import check_folder
from ..core.text_files import read_json, write_json


class KeptRows:
    """A file of rows ``{"made_from": …, …}``, written anew after each, whole or not at all.

    Raises:
        ValueError: if it cannot be written there.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        there = next(folder for folder in self.path.absolute().parents if os.path.exists(folder))
        check_folder(there / self.path.name)

    def find(self, made_from: dict) -> dict | None:
        """The row that was made from exactly this (JSON values), or None."""
        wanted = json.loads(json.dumps(made_from))
        return next((row for row in self._rows() if row["made_from"] == wanted), None)

    def get(self, made_from: dict, make: Callable[[], dict]) -> dict:
        """The row that was made from this, or what ``make`` gives, which is kept."""
        row = self.find(made_from)
        if row is None:
            row = {"made_from": made_from} | make()
            rows = [*self._rows(), row]  # read again: another process may have added some meanwhile
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {"rows": rows})
        return row

    def _rows(self) -> list[dict]:
        if not self.path.exists():
            return []
        try:
            return list(read_json(self.path)["rows"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: no file of kept results ({error!r}); delete it or name another") from error


class KeptLines:
    """The same for many small results: a line is appended for each, the thousandth as fast as the first.

    A line that was cut off when its command was killed is made again.

    Args:
        path: of the file; it need not be there.
        common: what all results depend on, beside what each was made from.
    """

    def __init__(self, path: Path, common: dict):
        self.path, self.common = Path(path), common
        self._results = dict(self._read())

    def find(self, made_from: dict) -> Any | None:
        """The result that was made from exactly this (JSON values), or None."""
        return self._results.get(_key(self.common | made_from))

    def add(self, made_from: dict, result: Any) -> None:
        """Keep a JSON value; the file is made with the first."""
        made_from = self.common | made_from
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps([made_from, result]))  # a line of its own, whatever stands before
        self._results[_key(made_from)] = result

    def _read(self) -> Iterator[tuple[str, Any]]:
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.exists() else []
        for line in lines:
            try:
                made_from, result = json.loads(line)
            except (ValueError, TypeError):
                continue
            yield _key(made_from), result


def _key(made_from: dict) -> str:
    return json.dumps(made_from, sort_keys=True)
