"""Does the model prefer the old answer or the new one? What ROME's efficacy, paraphrase and neighbourhood are made of.

For each prompt both targets are teacher-forced and p̃ = exp(mean log p of the target's tokens) is compared, as in
ROME's evaluation; beside it stands whether every token of the target would be the model's own first choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..facts import Fact, fill
from ..models.adapter import Model
from ..models.replay import capture
from ..prompts import Query

TOKENS = 768  # of a batch
TOP = 5


@dataclass(frozen=True)
class Contrast:
    """One prompt with two targets.

    - `p_true`, `p_new`: p̃ of the old and the new target, per token; `says_true`, `says_new`: whether all of its
      tokens are the model's first choices.
    - `top`: the model's first choices for the first token, with their probabilities.
    """

    prompt: str
    p_true: float
    p_new: float
    says_true: bool
    says_new: bool
    top: tuple[tuple[str, float], ...]

    @property
    def prefers_new(self) -> bool:
        return self.p_new > self.p_true

    @property
    def prefers_true(self) -> bool:
        return self.p_true > self.p_new


@dataclass(frozen=True)
class Contrasts:
    """A fact's prompt, its paraphrases and its neighbours. A neighbour's `p_true` is of its own answer."""

    prompt: Contrast
    paraphrases: tuple[Contrast, ...]
    neighbours: tuple[Contrast, ...]

    def as_dict(self) -> dict:
        return asdict(self)


def contrast_facts(model: Model, facts: Sequence[Fact], heldout: bool = True) -> list[Contrasts]:
    """Ask the prompts of `facts` that have a `target_new`; paraphrases are held-out ones too, if `heldout`."""
    asked, sizes = [], []
    for fact in facts:
        templates = (*fact.paraphrases, *(fact.heldout if heldout else ()))
        prompts = [fact.prompt, *(fill(t, fact.subject) for t in templates)]
        asked += [(prompt, fact.target, fact.target_new) for prompt in prompts]
        asked += [(n.prompt, n.target, fact.target_new) for n in fact.neighbours]
        sizes.append((len(templates), len(fact.neighbours)))
    found = iter(contrast(model, asked))
    return [
        Contrasts(next(found), tuple(next(found) for _ in range(p)), tuple(next(found) for _ in range(n)))
        for p, n in sizes
    ]


def contrast(model: Model, asked: Sequence[tuple[str, str, str]]) -> list[Contrast]:
    """Ask prompts, each with its old and its new target: (prompt, target_true, target_new)."""
    queries = [[model.query(prompt, target) for target in targets] for prompt, *targets in asked]
    reads = _reads(model, [query for pair in queries for query in pair])
    found = []
    for i, (prompt, *_) in enumerate(asked):
        (p_true, says_true, top), (p_new, says_new, _) = reads[2 * i], reads[2 * i + 1]
        found.append(Contrast(prompt, p_true, p_new, says_true, says_new, top))
    return found


@torch.no_grad()
def _reads(model: Model, queries: Sequence[Query]) -> list[tuple[float, bool, tuple]]:
    """p̃, whether greedy, and the first choices of every query; queries that read the same tokens share a row."""
    rows: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
    for i, query in enumerate(queries):
        for step, token in zip(query.steps, query.target_ids, strict=True):
            ids = step.ids if model.masked else query.steps[-1].ids
            rows.setdefault(ids, []).append((i, step.read, token))
    log_p: list[list[float]] = [[] for _ in queries]
    greedy = [True] * len(queries)
    tops: dict[int, tuple] = {}
    for ids in _batches(sorted(rows, key=len)):
        logits = _logits(model, ids, [[read for _, read, _ in rows[row]] for row in ids])
        best = logits.topk(min(TOP, logits.shape[1]))
        choices = best.values.exp().tolist()
        at = 0
        for row in ids:
            for i, read, token in rows[row]:
                log_p[i].append(logits[at, token].item())
                greedy[i] &= best.indices[at, 0].item() == token
                if read == queries[i].prompt.read and i not in tops:
                    words = [model.tokenizer.decode([t]) for t in best.indices[at].tolist()]
                    tops[i] = tuple(zip(words, choices[at], strict=True))
                at += 1
    return [(float(torch.tensor(p).double().mean().exp()), greedy[i], tops[i]) for i, p in enumerate(log_p)]


def _batches(rows: list[tuple[int, ...]]):
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or (end + 1 - start) * len(rows[end]) > TOKENS:
            yield rows[start:end]
            start = end


def _logits(model: Model, rows: list[tuple[int, ...]], reads: list[list[int]]) -> Tensor:
    """Log-probabilities at the reads of every row, one after the other, (reads, vocabulary)."""
    longest = len(rows[-1])
    tokens = torch.tensor([[*row, *(row[-1:] * (longest - len(row)))] for row in rows], device=model.device)
    mask = None
    if model.masked:  # a decoder never looks at what comes after, so padding on the right needs no mask
        lengths = torch.tensor([len(row) for row in rows], device=model.device)
        mask = (torch.arange(longest, device=model.device)[None] < lengths[:, None]).long()
    *_, output = capture(model, tokens, mask=mask)
    r = torch.tensor([r for r, mine in enumerate(reads) for _ in mine], device=output.device)
    columns = torch.tensor([read for mine in reads for read in mine], device=output.device)
    return model.logits(model.normed(output[r, columns])).float().log_softmax(-1)


def rates(found: Sequence[Contrasts]) -> dict[str, list[float]]:
    """Per fact, as in ROME: efficacy, paraphrase and neighbourhood success (by probability, and by first choice)."""
    if not found:
        raise InputError("there is nothing to rate: no fact was asked")
    return {
        "ES": [float(c.prompt.prefers_new) for c in found],
        "PS": [_mean([p.prefers_new for p in c.paraphrases]) for c in found],
        "NS": [_mean([n.prefers_true for n in c.neighbours]) for c in found],
        "ES_argmax": [float(c.prompt.says_new) for c in found],
        "PS_argmax": [_mean([p.says_new for p in c.paraphrases]) for c in found],
        "NS_argmax": [_mean([n.says_true for n in c.neighbours]) for c in found],
        "EM": [c.prompt.p_new - c.prompt.p_true for c in found],
        "PM": [_mean([p.p_new - p.p_true for p in c.paraphrases]) for c in found],
        "NM": [_mean([n.p_true - n.p_new for n in c.neighbours]) for c in found],
    }


def _mean(values: Sequence) -> float:
    return sum(values) / len(values) if values else float("nan")
