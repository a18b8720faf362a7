"""Does the model prefer the old answer or the new one? What ROME's efficacy, paraphrase and neighbourhood are made of.

For each prompt both targets are teacher-forced and p̃ = exp(mean log p of the target's tokens) is compared, as in
ROME's evaluation; beside it stands whether every token of the target would be the model's own first choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..answers import ask
from ..errors import InputError
from ..facts import Fact, fill
from ..models.adapter import Model

PARTS = ("ES", "PS", "NS")  # of the Score, their harmonic mean


@dataclass(frozen=True)
class TargetPair:
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
class RewriteQuality:
    """A fact's prompt, its paraphrases and its neighbours. A neighbour's `p_true` is of its own answer."""

    prompt: TargetPair
    paraphrases: tuple[TargetPair, ...]
    neighbours: tuple[TargetPair, ...]

    def as_dict(self) -> dict:
        return asdict(self)


def rewrite_quality(model: Model, facts: Sequence[Fact], heldout: bool = True) -> list[RewriteQuality]:
    """Ask the prompts of `facts` that have a `target_new`; paraphrases are held-out ones too, if `heldout`."""
    asked, sizes = [], []
    for fact in facts:
        paraphrases = paraphrases_of(fact, heldout)
        asked += [(prompt, fact.target, fact.target_new) for prompt in (fact.prompt, *paraphrases)]
        asked += [(n.prompt, n.target, fact.target_new) for n in fact.neighbours]
        sizes.append((len(paraphrases), len(fact.neighbours)))
    found = iter(contrast(model, asked))
    return [
        RewriteQuality(next(found), tuple(next(found) for _ in range(p)), tuple(next(found) for _ in range(n)))
        for p, n in sizes
    ]


def paraphrases_of(fact: Fact, heldout: bool) -> list[str]:
    """Prompts that ask for `fact` in other words: filled paraphrases, held-out ones too if `heldout`, rephrasings."""
    templates = (*fact.paraphrases, *(fact.heldout if heldout else ()))
    return [*(fill(template, fact.subject) for template in templates), *fact.rephrasings]


def contrast(model: Model, asked: Sequence[tuple[str, str, str]]) -> list[TargetPair]:
    """Ask prompts, each with its old and its new target: (prompt, target_true, target_new)."""
    queries = [model.query(prompt, target) for prompt, *targets in asked for target in targets]
    found = ask(model, queries)
    pairs = zip(found[::2], found[1::2], strict=True)
    return [
        TargetPair(prompt, true.per_token, new.per_token, true.greedy, new.greedy, true.top)
        for (prompt, *_), (true, new) in zip(asked, pairs, strict=True)
    ]


def rates(found: Sequence[RewriteQuality]) -> dict[str, list[float]]:
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
