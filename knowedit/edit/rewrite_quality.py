"""Does the model prefer the old answer or the new one? What ROME's efficacy, paraphrase and neighbourhood are made of.

For each prompt both targets are teacher-forced and p̃ = exp(mean log p of the target's tokens) is compared, as in
ROME's evaluation; beside it stands whether every token of the target would be the model's own first choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from ..answers import Answer, ask
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


@dataclass(frozen=True)
class Question:
    """A prompt with two targets; `kind` is "rewrite", "paraphrase" or "neighbour".

    A neighbour's `target_true` is its own right answer.
    """

    kind: str
    prompt: str
    target_true: str
    target_new: str

    @property
    def pairs(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """The prompt with the true and with the new target."""
        return (self.prompt, self.target_true), (self.prompt, self.target_new)


def rewrite_quality(model: Model, facts: Sequence[Fact], heldout: bool = True) -> list[RewriteQuality]:
    """Ask the prompts of `facts` that have a `target_new`; paraphrases are held-out ones too, if `heldout`."""
    questions = [questions_of(fact, heldout) for fact in facts]
    pairs = [(i, *pair) for i, of_fact in enumerate(questions) for question in of_fact for pair in question.pairs]
    queries = [model.query(*pair, separator=facts[i].separator) for i, *pair in pairs]
    answers: list[dict] = [{} for _ in facts]
    for (i, *pair), answer in zip(pairs, ask(model, queries), strict=True):
        answers[i][tuple(pair)] = answer
    return [quality_of(of_fact, said) for of_fact, said in zip(questions, answers, strict=True)]


def questions_of(fact: Fact, heldout: bool = False) -> list[Question]:
    """What is asked of `fact`: its prompt, its paraphrases and rephrasings, its neighbours, in this order.

    Held-out templates are among the paraphrases if `heldout`. Raises `InputError` for a fact without `target_new`.
    """
    if fact.target_new is None:
        raise InputError(f"the fact {fact.id or fact.prompt!r} has no target_new, expected the answer that it is given")
    return [
        Question("rewrite", fact.prompt, fact.target, fact.target_new),
        *(Question("paraphrase", prompt, fact.target, fact.target_new) for prompt in paraphrases_of(fact, heldout)),
        *(Question("neighbour", near.prompt, near.target, fact.target_new) for near in fact.neighbours),
    ]


def paraphrases_of(fact: Fact, heldout: bool) -> list[str]:
    """Prompts that ask for `fact` in other words: filled paraphrases, held-out ones too if `heldout`, rephrasings."""
    templates = (*fact.paraphrases, *(fact.heldout if heldout else ()))
    return [*(fill(template, fact.subject) for template in templates), *fact.rephrasings]


def quality_of(questions: Sequence[Question], answers: Mapping[tuple[str, str], Answer]) -> RewriteQuality:
    """The answers to a fact's questions, found by their (prompt, target)."""
    by_kind: dict[str, list[TargetPair]] = {"rewrite": [], "paraphrase": [], "neighbour": []}
    for question in questions:
        true, new = (answers[pair] for pair in question.pairs)
        by_kind[question.kind].append(
            TargetPair(question.prompt, true.per_token, new.per_token, true.greedy, new.greedy, true.top)
        )
    (prompt,) = by_kind["rewrite"]
    return RewriteQuality(prompt, tuple(by_kind["paraphrase"]), tuple(by_kind["neighbour"]))


def is_won(p_before: float, p_new: float, p_true: float) -> bool:
    """Whether an edit won a paraphrase: it prefers the new answer after the edit, and gives it more than `p_before`."""
    return p_new > max(p_true, p_before)


def won(before: Sequence[Mapping], after: Sequence[Mapping]) -> str:
    """How many paraphrases an edit won, in words, from records."""
    pairs = zip(before, after, strict=True)
    return f"{sum(is_won(b['p_new'], a['p_new'], a['p_true']) for b, a in pairs)} of {len(after)}"


def stayed(neighbours: Sequence[Mapping]) -> str:
    """How many neighbours prefer their own answer, in words; it may be the new one itself."""
    return f"{sum(pair['p_true'] >= pair['p_new'] for pair in neighbours)} of {len(neighbours)}"


def mean_of(values: Sequence[float]) -> float:
    """The mean, NaN of nothing."""
    return sum(values) / len(values) if values else float("nan")


# success, and the magnitude of it, as in ROME: by probability, and whether all tokens of a target are first choices
RATES: dict[str, Callable[[RewriteQuality], float]] = {
    "ES": lambda quality: float(quality.prompt.prefers_new),
    "PS": lambda quality: mean_of([pair.prefers_new for pair in quality.paraphrases]),
    "NS": lambda quality: mean_of([pair.prefers_true for pair in quality.neighbours]),
    "ES_argmax": lambda quality: float(quality.prompt.says_new),
    "PS_argmax": lambda quality: mean_of([pair.says_new for pair in quality.paraphrases]),
    "NS_argmax": lambda quality: mean_of([pair.says_true for pair in quality.neighbours]),
    "EM": lambda quality: quality.prompt.p_new - quality.prompt.p_true,
    "PM": lambda quality: mean_of([pair.p_new - pair.p_true for pair in quality.paraphrases]),
    "NM": lambda quality: mean_of([pair.p_true - pair.p_new for pair in quality.neighbours]),
}


def rates(qualities: Sequence[RewriteQuality]) -> dict[str, list[float]]:
    """The `RATES` of each fact, NaN where it has no such prompt."""
    if not qualities:
        raise InputError("there is nothing to rate: no fact was asked")
    return {name: [rate(quality) for quality in qualities] for name, rate in RATES.items()}
