"""Captions beyond a reward model's text limit: cut at sentence ends into segments within it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\n+")


def split_caption(caption: str, limit: int, count: Callable[[str], int]) -> list[str]:
    """Cut ``caption`` into as few consecutive segments as whole sentences allow.

    A sentence beyond the limit is cut between words, and a word beyond it in halves. No word is lost.

    Args:
        caption: any text that is not blank.
        limit: most tokens of a segment.
        count: tokens that a text needs, with those at its start and end.
    """
    if count(caption) <= limit:
        return [caption]
    segments = [""]
    for piece in _pieces(caption, limit, count):
        joined = f"{segments[-1]} {piece}".strip()
        if count(joined) <= limit:
            segments[-1] = joined
        else:
            segments.append(piece)
    return [segment for segment in segments if segment]


def _pieces(caption: str, limit: int, count: Callable[[str], int]) -> Iterator[str]:
    for sentence in filter(None, map(str.strip, SENTENCE_END.split(caption))):
        if count(sentence) <= limit:
            yield sentence
        else:
            for word in sentence.split():
                yield from _halves(word, limit, count)


def _halves(word: str, limit: int, count: Callable[[str], int]) -> Iterator[str]:
    if count(word) <= limit or len(word) == 1:
        yield word
    else:
        middle = len(word) // 2
        yield from _halves(word[:middle], limit, count)
        yield from _halves(word[middle:], limit, count)
