"""What a model answers: the probability and rank of a target, and the model's own first choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import NamedTuple

import torch
from torch import Tensor

from .facts import Fact
from .models.adapter import Model
from .models.passes.batches import batches, padded
from .models.passes.replay import capture
from .progress import Progress, silent
from .prompts import Query

BATCH_TOKENS = 768


@dataclass(frozen=True)
class Answer:
    """A target after a prompt: the log-probability of each of its tokens given those before it (nats), and their ranks,
    1 for the model's first choice.

    - `top`: the model's first choices for the first token with their probabilities, if they were asked for.
    """

    log_p: tuple[float, ...]
    ranks: tuple[int, ...]
    top: tuple[tuple[str, float], ...] = ()

    @property
    def probability(self) -> float:
        """Of the whole target."""
        return exp(sum(self.log_p))

    @property
    def nll(self) -> float:
        """The mean negative log-likelihood of the target's tokens."""
        return -sum(self.log_p) / len(self.log_p)

    @property
    def per_token(self) -> float:
        """p̃, the geometric mean of the probabilities of the target's tokens."""
        return exp(-self.nll)

    @property
    def rank(self) -> int:
        """Of the target's first token."""
        return self.ranks[0]

    @property
    def greedy(self) -> bool:
        """Every token of the target is the first choice."""
        return all(rank == 1 for rank in self.ranks)

    @property
    def known(self) -> bool:
        return self.rank == 1

    def as_dict(self) -> dict:
        """For JSON."""
        names = ("probability", "per_token", "rank", "greedy", "top")
        return {name: getattr(self, name) for name in names}


def ask(model: Model, queries: Sequence[Query], top: int = 5, progress: Progress = silent) -> list[Answer]:
    """The answer to each of the queries, teacher-forced, in their order. `progress` counts queries.

    Prompts of about one length share a batch, and queries that read the same tokens share a row.
    """
    reads: dict[tuple[int, ...], list[_Read]] = {}  # by the row of token ids that they are read in
    for i, query in enumerate(queries):
        for row in query.rows(model.masked):
            reads.setdefault(row.ids, []).extend(_Read(i, *read) for read in row.reads)
    rows = list(reads)
    parts: list[dict[int, tuple]] = [{} for _ in queries]  # by the index of the read
    for batch in batches([len(ids) for ids in rows], tokens=BATCH_TOKENS):
        chosen = [(r, read) for r, i in enumerate(batch) for read in reads[rows[i]]]
        for (_, read), part in zip(chosen, _read(model, [rows[i] for i in batch], chosen, top), strict=True):
            parts[read.query][read.at] = part
        progress(sum(len(part) == len(query.target_ids) for part, query in zip(parts, queries, strict=True)))
    return [_answer(part) for part in parts]


def ask_facts(model: Model, facts: Sequence[Fact], chat: bool = False) -> list[Answer]:
    """The answer to the main prompt of each of the facts, in their order."""
    return ask(model, [model.query(fact.prompt, fact.target, fact.subject, chat=chat) for fact in facts])


class _Read(NamedTuple):
    """A token of a query's target that is read `at` an index of a row."""

    query: int
    at: int
    token: int


@torch.no_grad()
def _read(model: Model, rows: list[tuple[int, ...]], reads: list[tuple[int, _Read]], top: int) -> list[tuple]:
    """For each read, given with the number of its row: log-probability and rank of its token, the first choices."""
    log_p = _log_p(model, rows, [(r, read.at) for r, read in reads])
    of_token = log_p.gather(1, torch.tensor([read.token for _, read in reads], device=log_p.device)[:, None])
    ranks = (1 + (log_p > of_token).sum(1)).tolist()
    best, tokens = log_p.topk(min(top, log_p.shape[1]))
    words = [[model.tokenizer.decode([token]) for token in choices] for choices in tokens.tolist()]
    choices = [tuple(zip(w, p, strict=True)) for w, p in zip(words, best.exp().tolist(), strict=True)]
    return list(zip(of_token[:, 0].tolist(), ranks, choices, strict=True))


def _log_p(model: Model, rows: list[tuple[int, ...]], places: list[tuple[int, int]]) -> Tensor:
    """Log-probabilities at (row, index) places, (places, vocabulary)."""
    tokens, seen = padded(rows)
    *_, output = capture(model, tokens.to(model.device), mask=seen.to(model.device) if model.masked else None)
    row, index = torch.tensor(places, device=output.device).T
    return model.logits(model.normed(output[row, index])).float().log_softmax(-1)


def _answer(reads: dict[int, tuple]) -> Answer:
    """The reads of a target by their position."""
    log_p, ranks, tops = zip(*(reads[position] for position in sorted(reads)), strict=True)
    return Answer(log_p, ranks, tops[0])
