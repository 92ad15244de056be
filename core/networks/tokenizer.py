"""CLIP's tokens: byte-pair encoding by a merges list, in lower case.

The tokens are those of open_clip's SimpleTokenizer, which `tests/core/networks/test_text.py` compares; the
library itself takes seconds to import.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
import zlib
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

START, END = "<start_of_text>", "<end_of_text>"
# What one word is: a common English ending, letters, one digit, or signs.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# CLIP's vocabulary ends here; the list that open_clip ships is longer.
MAX_MERGES = 49152 - 256 - 2
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"


class CLIPTokenizer:
    """Prompts -> token ids.

    Args:
        merges: path of a gzipped merges list, a title line and a pair a line; None = CLIP's own, which open_clip
            ships. It is read at first use.
        context_length: ids of a prompt, with the start and the end.
    """

    def __init__(self, merges: Path | None = None, context_length: int = 77):
        self.merges, self.context_length = merges, context_length

    @cached_property
    def encoder(self):
        """Raises: ValueError: if the merges list is missing or damaged."""
        return _byte_pair_encoder(read_merges(self.merges or packaged_vocabulary()))

    def encode(self, prompt: str) -> list[int]:
        """Ids of a prompt, uncut, without the start and the end."""
        return self.encoder.encode(_clean(prompt)).ids

    def __call__(self, prompts: list[str]) -> Tensor:
        """Ids (B, L), int64: start, ids, end, zeros; a too long prompt is cut, keeping the end."""
        ids = torch.zeros(len(prompts), self.context_length, dtype=torch.long)
        start, end = (self.encoder.token_to_id(token) for token in (START, END))
        for row, prompt in zip(ids, prompts):
            found = [start, *self.encode(prompt)[: self.context_length - 2], end]
            row[: len(found)] = torch.tensor(found)
        return ids


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The pairs of a gzipped merges list, in order.

    Raises:
        ValueError: if it is missing or damaged.
    """
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
        merges = [tuple(line.split()) for line in lines[1 : MAX_MERGES + 1] if line.strip()]
        if not merges or any(len(pair) != 2 for pair in merges):
            raise ValueError("a pair on every line but the first was expected")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(
            f"{path}: cannot be read as the merges list of the text encoder ({error}); put the one that came with the "
            "weights there"
        ) from error
    return merges


def packaged_vocabulary() -> Path:
    """CLIP's merges list in open_clip's folder, found without importing it.

    Raises:
        ValueError: if open_clip is not installed.
    """
    found = importlib.util.find_spec("open_clip")
    if found is None:
        raise ValueError("CLIP's vocabulary comes with open_clip, which is missing: pip install open_clip_torch")
    return Path(found.submodule_search_locations[0]) / VOCABULARY


def _clean(text: str) -> str:
    """Mended letters, plain spaces, lower case."""
    from ftfy import fix_text

    text = html.unescape(html.unescape(fix_text(text)))
    return " ".join(text.split()).lower()


def _byte_pair_encoder(merges: list[tuple[str, str]]):
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    # Ids in the order of the published embedding: bytes, bytes that end a word, merges, the two marks.
    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    encoder = Tokenizer(models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="</w>"))
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    encoder.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in (START, END)])
    return encoder


def _byte_letters() -> list[str]:
    """A printable letter for every byte, printable bytes first: the alphabet of byte-level encodings."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]
