"""How long a prompt may be."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from .adapter import Model


def positions(model: Model) -> int | None:
    """The tokens that a model has positions for; None where it has no limit of its own."""
    config = model.config
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    table = getattr(getattr(model.hf.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)  # RoBERTa counts from behind the padding token on
    return limit if not limit or padding is None else limit - padding - 1


def check_length(model: Model, ids: Sequence[int]) -> None:
    """Raise `InputError` for more tokens than the model has positions."""
    limit = positions(model)
    if limit and len(ids) > limit:
        raise InputError(f"the prompt has {len(ids)} tokens, {model.name} takes at most {limit}; shorten it")
