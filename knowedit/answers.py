"""What a model answers: the probability and rank of a target, and the model's own first choices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .models.adapter import Model
from .models.replay import capture
from .prompts import Query

BATCH = 16


@dataclass(frozen=True)
class Answer:
    """The answer to one query.

    - `probability`: of the whole target; `rank`: of its first token, 1 for the model's first choice.
    - `top`: the model's first choices for the first token with their probabilities.
    """

    probability: float
    rank: int
    top: tuple[tuple[str, float], ...]

    @property
    def known(self) -> bool:
        return self.rank == 1


def answers(model: Model, queries: Sequence[Query], top: int = 5) -> Iterator[tuple[int, Answer]]:
    """Answer many queries, yielding (index, answer) as they come: prompts of one length share a batch, unpadded."""
    rows = [(i, step, token) for i, q in enumerate(queries) for step, token in _reads(model, q)]
    by_length: dict[int, list] = {}
    for row in rows:
        by_length.setdefault(len(row[1].ids), []).append(row)
    left = [len(_reads(model, q)) for q in queries]
    found: dict[int, dict] = {}
    for _, same in sorted(by_length.items()):
        for start in range(0, len(same), BATCH):
            part = same[start : start + BATCH]
            for (i, step, _), read in zip(part, _read(model, part, top), strict=True):
                found.setdefault(i, {})[step.read] = read
                left[i] -= 1
                if not left[i]:
                    yield i, _answer(found.pop(i))


def _reads(model: Model, query: Query) -> list:
    """One row for each token of the target: its own teacher-forced prompt."""
    return list(zip(query.steps, query.target_ids, strict=True))


@torch.no_grad()
def _read(model: Model, rows: list, top: int) -> list[tuple[float, int, tuple]]:
    ids = torch.tensor([step.ids for _, step, _ in rows], device=model.device)
    *_, output = capture(model, ids)
    reads = torch.tensor([step.read for _, step, _ in rows], device=output.device)
    logits = model.logits(model.normed(output[torch.arange(len(rows), device=output.device), reads])).float()
    p = logits.softmax(-1)
    target = torch.tensor([token for *_, token in rows], device=p.device)[:, None]
    own = p.gather(1, target)
    ranks = 1 + (p > own).sum(1)
    best, tokens = p.topk(top)
    words = [[model.tokenizer.decode([t]) for t in row] for row in tokens.tolist()]
    return [
        (own[r].item(), ranks[r].item(), tuple(zip(words[r], best[r].tolist(), strict=True))) for r in range(len(rows))
    ]


def _answer(reads: dict[int, tuple]) -> Answer:
    first = reads[min(reads)]
    probability = 1.0
    for own, *_ in reads.values():
        probability *= own
    return Answer(probability, first[1], first[2])
