"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(table: Sequence[Sequence]) -> str:
    """A table whose first row is its header, as Markdown."""
    header, *rows = ([str(cell) for cell in row] for row in table)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows))
