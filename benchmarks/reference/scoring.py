"""How likely answers are, written plainly: log P(answer | prompt) = Σ_i log P(token_i | prompt, tokens before it).

By whole runs of the model with logits at all positions: a record in one padded batch, as ROME's evaluation does it, or
each sequence by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from knowedit.answers import Answer
from knowedit.models.adapter import Model
from knowedit.prompts import Query


@torch.no_grad()
def batched(model: Model, pairs: Sequence[tuple[str, str]]) -> list[Answer]:
    """Answers to (prompt, target), all in one padded batch."""
    queries = [model.query(*pair) for pair in pairs]
    rows = [query.steps[-1].ids for query in queries]
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    log_p = model.hf(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    return [_answer(query, log_p[r]) for r, query in enumerate(queries)]


@torch.no_grad()
def one_by_one(model: Model, pairs: Sequence[tuple[str, str]]) -> list[Answer]:
    """Answers to (prompt, target), each sequence by itself."""
    queries = [model.query(*pair) for pair in pairs]
    runs = (model.hf(input_ids=torch.tensor([query.steps[-1].ids])).logits[0] for query in queries)
    return [_answer(query, logits.log_softmax(-1)) for query, logits in zip(queries, runs, strict=True)]


def _answer(query: Query, log_p: Tensor) -> Answer:
    reads = [(step.read, token) for step, token in zip(query.steps, query.target_ids, strict=True)]
    ranks = tuple(1 + int((log_p[i] > log_p[i, t]).sum()) for i, t in reads)
    return Answer(tuple(log_p[i, t].item() for i, t in reads), ranks)
