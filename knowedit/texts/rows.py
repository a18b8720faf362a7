"""Rows of token ids that text is read in, and everything of a model that decides them.

A row is one special token, `per_row` tokens of text and, in a masked model, one more special token. Only the text
counts (`text_of`): the first position of a row holds an attention sink, whose keys are like no others. A decoder's
first token is its BOS, else its EOS, else token 0.
"""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor

from ..errors import InputError, ModelError
from ..models.adapter import Model
from ..models.length import positions

PER_ROW = 64  # prompts are short, and short rows are sampled faster: attention and its cache cost less
BATCH_ROWS = 128  # enough for a product of matrices, few enough for little memory


def text_of(model: Model) -> slice:
    """The positions of a row that hold text."""
    return slice(1, -1 if model.masked else None)


def framed(model: Model, ids: Tensor) -> Tensor:
    """Text (rows, tokens) with the special tokens around it, where the model takes it."""
    first, last = frame(model)
    sides = [ids.new_full((len(ids), 1), token) for token in (first, last) if token is not None]
    return torch.cat([sides[0], ids, *sides[1:]], dim=1).to(model.device)


def frame(model: Model) -> tuple[int, int | None]:
    """The special tokens around a row's text."""
    tok = model.tokenizer
    if not model.masked:
        return next(token for token in (tok.bos_token_id, tok.eos_token_id, 0) if token is not None), None
    first, last = (
        next((token for token in pair if token is not None), None)
        for pair in ((tok.cls_token_id, tok.bos_token_id), (tok.sep_token_id, tok.eos_token_id))
    )
    if first is None or last is None:
        raise ModelError(f"the tokenizer of {model.name} has no tokens to begin and end a text with (CLS and SEP)")
    return first, last


def special(model: Model) -> list[int]:
    """The tokens that are no text."""
    return sorted(token for token in model.tokenizer.all_special_ids if token < model.vocabulary)


def fitting(model: Model, per_row: int) -> int:
    """`per_row`, or as many as fit into the model's positions beside the tokens that frame a row."""
    limit = positions(model)
    return per_row if not limit else max(1, min(per_row, limit - (2 if model.masked else 1)))


def tokenization(model: Model) -> dict:
    """What turns text into token ids, as a hash."""
    tok = model.tokenizer
    if (backend := getattr(tok, "backend_tokenizer", None)) is not None:
        state = json.loads(backend.to_str())
        state = {name: value for name, value in state.items() if name not in ("truncation", "padding")}  # of a call
    else:
        state = [type(tok).__name__, sorted(tok.get_vocab().items())]
    text = json.dumps([state, frame(model), special(model)], sort_keys=True)
    return {"tokenizer": hashlib.sha256(text.encode()).hexdigest()}


def check_per_row(per_row: int) -> None:
    if not isinstance(per_row, int) or per_row < 1:
        raise InputError(f"rows of {per_row!r} tokens are wanted, expected a number from 1 on")
