"""BERT through transformers, as the text side of InternVideo2 and ImageReward."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from .config import BERTConfig
from .wordpiece import WordPiece


class BERTText(nn.Module):
    """Captions -> hidden states (B, L, D).

    Args:
        config: sizes.
        folder: where ``config.vocabulary`` lies.
        image_width: width of the image tokens that every layer looks at (BLIP's variant); None = text alone.
    """

    def __init__(self, config: BERTConfig, folder: Path | None = None, image_width: int | None = None):
        super().__init__()
        self.config = config
        self.bert = _plain_bert(config) if image_width is None else _blip_bert(config, image_width)
        # Made again at a known place: buffers outside the state dict would be lost when weights are put in place.
        for name, _ in list(self.bert.embeddings.named_buffers(recurse=False)):
            rows = torch.arange(config.max_positions, device="cpu")[None]
            value = rows if name == "position_ids" else torch.zeros_like(rows)
            self.bert.embeddings.register_buffer(name, value, persistent=False)
        self.words = WordPiece((folder or Path()) / Path(config.vocabulary).name, config.context_length)

    @property
    def device(self) -> torch.device:
        return self.bert.embeddings.word_embeddings.weight.device

    def forward(self, ids: Tensor, mask: Tensor, image: Tensor | None = None) -> Tensor:
        """ids, mask (B, L), image tokens (B, N, E) or None -> hidden states (B, L, D)."""
        seen = {} if image is None else {"encoder_hidden_states": image, "encoder_attention_mask": _all_seen(image)}
        return self.bert(ids.to(self.device), attention_mask=mask.to(self.device), **seen).last_hidden_state

    def encode(self, captions: list[str], image: Tensor | None = None) -> Tensor:
        """Captions -> hidden state of [CLS], (B, D)."""
        return self(*self.words(captions), image)[:, 0]


def _all_seen(image: Tensor) -> Tensor:
    return torch.ones(image.shape[:2], dtype=torch.long, device=image.device)


def _sizes(config: BERTConfig) -> dict:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    }


# transformers is imported where it is needed: that takes seconds, and most commands have no BERT.


def _plain_bert(config: BERTConfig) -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**_sizes(config)), add_pooling_layer=False)


def _blip_bert(config: BERTConfig, image_width: int) -> nn.Module:
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    special = {"bos_token_id": None, "eos_token_id": None, "sep_token_id": None, "pad_token_id": 0}
    sizes = _sizes(config) | special | {"encoder_hidden_size": image_width, "is_decoder": True}
    return BlipTextModel(BlipTextConfig(**sizes), add_pooling_layer=False)
