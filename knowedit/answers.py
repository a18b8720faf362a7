"""What a model answers: the probability and rank of a target, and the model's own first choices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp

import torch
from torch import Tensor

from .facts import Fact
from .models.adapter import Model
from .models.passes.replay import capture
from .prompts import Query

TOKENS = 768  # of a batch

Row = tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """The answer to one query.

    - `probability`: of the whole target; `per_token`: the geometric mean of its tokens' probabilities.
    - `rank`: of its first token, 1 for the model's first choice; `greedy`: every token of it is the first choice.
    - `top`: the model's first choices for the first token with their probabilities.
    """

    probability: float
    per_token: float
    rank: int
    greedy: bool
    top: tuple[tuple[str, float], ...]

    @property
    def known(self) -> bool:
        return self.rank == 1


def ask(model: Model, queries: Sequence[Query], top: int = 5) -> list[Answer]:
    """The answer to each of the queries, in their order."""
    found = dict(answers(model, queries, top))
    return [found[i] for i in range(len(queries))]


def ask_facts(model: Model, facts: Sequence[Fact], chat: bool = False) -> list[Answer]:
    """The answer to the main prompt of each of the facts, in their order."""
    return ask(model, [model.query(fact.prompt, fact.target, fact.subject, chat=chat) for fact in facts])


def answers(model: Model, queries: Sequence[Query], top: int = 5) -> Iterator[tuple[int, Answer]]:
    """Answer many queries, teacher-forced, yielding (index, answer) as they come.

    Prompts of about one length share a batch, and queries that read the same tokens share a row.
    """
    rows: dict[Row, list[tuple[int, int, int]]] = {}  # token ids → (query, where it is read, what token)
    for i, query in enumerate(queries):
        for step, token in zip(query.steps, query.target_ids, strict=True):
            ids = step.ids if model.masked else query.steps[-1].ids  # a decoder reads all of a target in one row
            rows.setdefault(ids, []).append((i, step.read, token))
    found: dict[int, dict[int, tuple]] = {}
    for batch in _batches(sorted(rows, key=len)):
        for (i, position, _), read in zip(*_read(model, batch, rows, top), strict=True):
            found.setdefault(i, {})[position] = read
            if len(found[i]) == len(queries[i].target_ids):
                yield i, _answer(found.pop(i))


def _batches(rows: list[Row]) -> Iterator[list[Row]]:
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or (end + 1 - start) * len(rows[end]) > TOKENS:
            yield rows[start:end]
            start = end


@torch.no_grad()
def _read(model: Model, batch: list[Row], rows: dict[Row, list], top: int) -> tuple[list, list[tuple]]:
    """The reads of a batch, and of each: log-probability and rank of its token, the first choices."""
    reads = [(r, read) for r, ids in enumerate(batch) for read in rows[ids]]
    places = [(r, position) for r, (_, position, _) in reads]
    log_p = _log_p(model, batch, places)
    own = log_p.gather(1, torch.tensor([token for _, (*_, token) in reads], device=log_p.device)[:, None])
    ranks = (1 + (log_p > own).sum(1)).tolist()
    best, tokens = log_p.topk(min(top, log_p.shape[1]))
    words = [[model.tokenizer.decode([t]) for t in row] for row in tokens.tolist()]
    choices = [tuple(zip(w, p, strict=True)) for w, p in zip(words, best.exp().tolist(), strict=True)]
    return [read for _, read in reads], list(zip(own[:, 0].tolist(), ranks, choices, strict=True))


def _log_p(model: Model, batch: list[Row], places: list[tuple[int, int]]) -> Tensor:
    """Log-probabilities at (row, position) places, (places, vocabulary)."""
    longest = len(batch[-1])
    tokens = torch.tensor([[*row, *(row[-1:] * (longest - len(row)))] for row in batch], device=model.device)
    mask = None
    if model.masked:  # a decoder never looks at what comes after, so padding on the right needs no mask
        lengths = torch.tensor([len(row) for row in batch], device=model.device)
        mask = (torch.arange(longest, device=model.device)[None] < lengths[:, None]).long()
    *_, output = capture(model, tokens, mask=mask)
    at, positions = torch.tensor(places, device=output.device).T
    return model.logits(model.normed(output[at, positions])).float().log_softmax(-1)


def _answer(reads: dict[int, tuple]) -> Answer:
    log_p = [own for own, *_ in reads.values()]
    _, rank, top = reads[min(reads)]
    greedy = all(rank == 1 for _, rank, _ in reads.values())
    return Answer(exp(sum(log_p)), exp(sum(log_p) / len(log_p)), rank, greedy, top)
