"""BERT's tokens, out of a vocabulary file beside the weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...checkpoints.networks import CheckpointError
from ...text_files import TextError, read_text


class WordPiece:
    """Lower-cased WordPiece tokens of a fixed length.

    Args:
        vocabulary: a BERT ``vocab.txt``: one token a line, the line number is its id. Read at first use.
        length: tokens of a caption, with [CLS] and [SEP].
    """

    def __init__(self, vocabulary: Path, length: int):
        self.vocabulary, self.length = vocabulary, length
        self._encoder = None

    @property
    def encoder(self):
        """Raises: CheckpointError: if the vocabulary is missing or is none."""
        if self._encoder is None:
            self._encoder = _read_vocabulary(self.vocabulary)
        return self._encoder

    def count(self, caption: str) -> int:
        """Tokens that ``caption`` needs, uncut, with [CLS] and [SEP]."""
        return len(self.encoder.encode(caption).ids)

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Captions -> ids and mask (1 = a token, 0 = padding), (B, L) int64; cut at the limit, keeping [SEP]."""
        ids = torch.zeros(len(captions), self.length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, caption in enumerate(captions):
            found = self.encoder.encode(caption).ids
            if len(found) > self.length:
                found = [*found[: self.length - 1], found[-1]]
            ids[row, : len(found)] = torch.tensor(found)
            mask[row, : len(found)] = 1
        return ids, mask


def _read_vocabulary(path: Path):
    from tokenizers import BertWordPieceTokenizer  # comes with transformers

    if not path.is_file():
        raise CheckpointError(f"{path}: no vocabulary; put the vocab.txt of the model's BERT beside the weights")
    try:
        lines = read_text(path).split("\n")
    except TextError as error:
        raise CheckpointError(f"{path}: no vocabulary ({error}); fetch the model's vocab.txt again") from error
    tokens = {token: number for number, token in enumerate(lines) if token}
    missing = {"[PAD]", "[UNK]", "[CLS]", "[SEP]"} - set(tokens)
    if missing or tokens["[PAD]"] != 0:
        raise CheckpointError(f"{path}: no BERT vocabulary ({sorted(missing) or '[PAD] is not its first line'})")
    return BertWordPieceTokenizer(tokens, lowercase=True)
