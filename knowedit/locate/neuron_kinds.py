"""What a located neuron answers to: only this fact, its relation, its answer, or anything.

The test is causal and the same for every kind. A neuron *matters* to a prompt when setting it to zero at the read
position lowers the probability of that prompt's own target by at least `DROP`. It is tried alone on *controls*:
facts that the model knows (the target is its top token), by default built-in ones, none about the fact's own subject.

- *general*: matters to at least half of the controls of other relations with other answers;
- *relation*: else, matters to at least half of the controls of the same relation with other answers;
- *answer*: else, matters to at least half of the controls about other subjects with the same answer; where there are
  none, the target's first token is among the 10 that its value vector promotes (Niu et al. 2024: such neurons
  promote the token for whoever asks);
- *fact*: none of these.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..facts import Fact
from ..models.adapter import Model
from .neurons import vocabulary
from .scaled_answers import ScaledAnswers

DROP = 0.1
CONTROLS = 8  # of each sort


@dataclass(frozen=True)
class Controls:
    """Known facts to try a neuron on: `general`, `relation` and `answer`, as described above."""

    general: tuple[ScaledAnswers, ...]
    relation: tuple[ScaledAnswers, ...]
    answer: tuple[ScaledAnswers, ...]

    def counts(self) -> dict[str, int]:
        return {"general": len(self.general), "relation": len(self.relation), "answer": len(self.answer)}


class ControlPool:
    """Facts that can serve as controls on one model, run when first asked for and kept."""

    def __init__(self, model: Model, facts: Sequence[Fact]):
        self.model = model
        self.facts = facts
        self._responses: dict[str, ScaledAnswers | None] = {}

    def controls(self, subject: str | None, target: str, relation: str | None, n: int = CONTROLS) -> Controls:
        """Up to `n` controls of each sort for a fact; the same ones every time."""
        others = [f for f in self.facts if f.subject != subject]
        same = {target.casefold()}
        answer = [f for f in others if same & _answers(f)]
        rest = [f for f in others if not same & _answers(f)]
        return Controls(
            general=self._known([f for f in rest if f.relation != relation], n),
            relation=self._known([f for f in rest if relation is not None and f.relation == relation], n),
            answer=self._known(answer, n),
        )

    def _known(self, facts: list[Fact], n: int) -> tuple[ScaledAnswers, ...]:
        """The first `n` facts that the model knows, in a shuffled order that is always the same."""
        found = []
        for fact in random.Random(0).sample(facts, min(len(facts), 4 * n)):
            response = self._response(fact)
            if response is not None and response.known:
                found.append(response)
            if len(found) == n:
                break
        return tuple(found)

    def _response(self, fact: Fact) -> ScaledAnswers | None:
        """The fact, asked once; None where this tokenizer has no token for its target."""
        if fact.prompt not in self._responses:
            try:
                query = self.model.query(fact.prompt, fact.target, fact.subject)
            except InputError:
                self._responses[fact.prompt] = None
            else:
                self._responses[fact.prompt] = ScaledAnswers(self.model, query)
        return self._responses[fact.prompt]


def kinds(
    model: Model, neurons: Sequence[tuple[int, int]], activations: Sequence[float], target_id: int, controls: Controls
) -> list[str]:
    """The kind of each neuron."""
    rates = {name: _rates(getattr(controls, name), neurons) for name in ("general", "relation", "answer")}
    labels = []
    for i, (neuron, activation) in enumerate(zip(neurons, activations, strict=True)):
        mine = {name: None if rate is None else rate[i] for name, rate in rates.items()}
        labels.append(_kind(model, neuron, activation, target_id, mine))
    return labels


def _kind(model: Model, neuron: tuple[int, int], activation: float, target_id: int, rates: dict) -> str:
    for name in ("general", "relation", "answer"):
        if rates[name] is not None and rates[name] >= 0.5:
            return name
    if rates["answer"] is None:
        promoted, _ = vocabulary(model, *neuron, sign=activation, n=10)
        if model.tokenizer.decode([target_id]) in promoted:
            return "answer"
    return "fact"


def _rates(responses: Sequence[ScaledAnswers], neurons: Sequence[tuple[int, int]]) -> list[float] | None:
    if not responses:
        return None
    hits = [0] * len(neurons)
    for response in responses:
        left = response.scaled([[neuron] for neuron in neurons], 0.0)
        for i, p in enumerate(left):
            hits[i] += p <= (1 - DROP) * response.probability
    return [n / len(responses) for n in hits]


def _answers(fact: Fact) -> set[str]:
    return {answer.casefold() for answer in (fact.target, *fact.aliases)}
