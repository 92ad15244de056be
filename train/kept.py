"""Results that a stopped command finds again: rows of a JSON file, each bound to what it was made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from .records import write_json


class KeptRows:
    """A file of rows ``{"made_from": …, …}``, written anew after each, whole or not at all."""

    def __init__(self, path: Path):
        self.path = Path(path)

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
            return list(json.loads(self.path.read_text(encoding="utf-8"))["rows"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: no file of kept results ({error!r}); delete it or name another") from error
