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

Without controls of other relations and of the same relation nothing tells *fact* from *relation* or *general*.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from torch import Tensor

from ...errors import InputError, ModelError
from ...facts import Fact
from ...hooks import unaltered
from ...models.adapter import Model
from ...models.cache import key_of, read_json, remembered, write_json
from ...models.passes.scaled_answers import ScaledAnswers
from ...prompts import Query
from ..integration_path import baseline_tensor
from ..neurons import vocabulary
from .general_neurons import FIRST_ORDER, GENERAL, MASSIVE, changes_of_panel

DROP = 0.1
SORTS = ("general", "relation", "answer")
CONTROLS = 8  # of each sort
UNKNOWN = "unknown"  # the cache's folder of what models do not know
TRIED = 128  # facts that are asked at most for a panel
KEPT = 16  # groups of facts whose keys and values are held: facts of a relation share their controls

Asked = tuple[Fact, set[str]]  # a fact with all that answers it, casefolded
Panel = tuple[list[Asked], list[float], dict[tuple[int, int], list[list[float]]]]
"""Facts, their probabilities, and by neuron these with it at zero and doubled, (2, facts)."""


@dataclass(frozen=True)
class Controls:
    """Known facts to try a neuron on: `general`, `relation` and `answer`, as described above."""

    general: ScaledAnswers
    relation: ScaledAnswers
    answer: ScaledAnswers

    def counts(self) -> dict[str, int]:
        return {"general": len(self.general), "relation": len(self.relation), "answer": len(self.answer)}


class ControlPool:
    """Facts that can serve as controls on one model, run together when they are needed; the last `KEPT` groups stay.

    `spare` facts are taken where the model knows too few of `facts`. With the model's `weights_hash` the cache keeps
    which facts it does not know, so that they are asked once a model; not while hooks change it.
    """

    def __init__(
        self, model: Model, facts: Sequence[Fact], spare: Sequence[Fact] = (), *, weights_hash: str | None = None
    ):
        self.model = model
        weights_hash = unaltered(model.hf, weights_hash)
        self._key = weights_hash and key_of({"weights": weights_hash, "dtype": str(model.dtype)})
        self._groups = [
            [(fact, {answer.casefold() for answer in (fact.target, *fact.aliases)}) for fact in group]
            for group in (facts, spare)
        ]
        self._asked: OrderedDict[tuple, ScaledAnswers] = OrderedDict()
        self._unknown = self._cached()
        self._panels: dict[str, Panel] = {}  # by position

    def controls(
        self,
        subject: str | None,
        target: str,
        relation: str | None,
        n: int = CONTROLS,
        sorts: Collection[str] = SORTS,
        position: str = "read",
    ) -> Controls:
        """Up to `n` controls of each of `sorts` for a fact, whose neurons are scaled at `position`; the same ones every
        time."""
        answer = target.casefold()
        candidates: dict[str, list[list[Fact]]] = {sort: [] for sort in SORTS}
        for group in self._groups:
            for facts in candidates.values():
                facts.append([])
            for fact, answers in group:
                if fact.subject == subject:
                    continue
                if answer in answers:
                    candidates["answer"][-1].append(fact)
                elif fact.relation != relation:
                    candidates["general"][-1].append(fact)
                elif relation is not None:
                    candidates["relation"][-1].append(fact)
        unknown = len(self._unknown)
        known = {
            sort: self._first_known(_shuffled(groups, n) if sort in sorts else [], n, position)[1]
            for sort, groups in candidates.items()
        }
        if len(self._unknown) > unknown:
            self._cache()
        return Controls(**known)

    def other_subject(self, subject: str | None, target: str, relation: str | None) -> str | None:
        """Another subject of the relation, which has another answer; the same one every time, None without one."""
        if subject is None or relation is None:
            return None
        facts = [
            fact
            for group in self._groups
            for fact, answers in group
            if fact.relation == relation and fact.subject not in (None, subject) and target.casefold() not in answers
        ]
        return random.Random(subject).choice(facts).subject if facts else None

    @cached_property
    def mean_activation(self) -> Tensor:
        """Of every neuron over built-in prompts, (n_layers, n_neurons)."""
        return baseline_tensor(self.model, "mean")

    def general_neurons(
        self, subject: str | None, target: str, relation: str | None, position: str = "read"
    ) -> set[tuple[int, int]]:
        """Neurons that any answer needs, at `position`; the fact itself and those like it have no say.

        None where the model knows no other fact.
        """
        if position not in self._panels:
            self._panels[position] = self._panel(position)
        facts, before, changed = self._panels[position]
        others = [
            i
            for i, (fact, answers) in enumerate(facts)
            if fact.subject != subject and fact.relation != relation and target.casefold() not in answers
        ]
        if not others:
            return set()
        total = sum(before[i] for i in others)
        after = {site: np.array(values)[:, others].sum(1) for site, values in changed.items()}
        return {site for site, values in after.items() if abs(values / total - 1).max() >= GENERAL}

    def _panel(self, position: str) -> Panel:
        """Facts of unlike relations that the model knows, with their probabilities as they are and by neuron.

        Which they are and what they say is kept in the cache, so that they are asked once a model.
        """
        order = [
            (fact, answers)
            for group in self._groups
            for fact, answers in _by_turns(random.Random(0).sample(group, len(group)))[:TRIED]
        ]

        def make() -> dict:
            unknown = len(self._unknown)
            places, panel = self._first_known([fact for fact, _ in order], CONTROLS, position)
            if len(self._unknown) > unknown:
                self._cache()
            changed = changes_of_panel(panel) if places else {}
            return {
                "facts": places,
                "before": panel.probability.tolist(),
                "changed": [[*site, values] for site, values in changed.items()],
            }

        asked = [[fact.prompt, fact.target, fact.separator] for fact, _ in order]
        key = self._key and key_of(
            {"model": self._key, "position": position, "asked": asked, "tried": (FIRST_ORDER, MASSIVE, CONTROLS)}
        )
        found = make() if key is None else remembered("general", key, make)
        changed = {(layer, index): values for layer, index, values in found["changed"]}
        return [order[i] for i in found["facts"]], found["before"], changed

    def _first_known(self, facts: Sequence[Fact], n: int, position: str) -> tuple[list[int], ScaledAnswers]:
        """Places of the first `n` of the facts that the model knows, and these facts asked together."""
        known: dict[int, Query] = {}
        queries = ((i, self._query(fact, position)) for i, fact in enumerate(facts))
        waiting = ((i, query) for i, query in queries if query is not None)
        while part := dict(islice(waiting, n - len(known))):
            for (i, query), knows in zip(part.items(), self._ask(list(part.values()), position).known, strict=True):
                if knows:
                    known[i] = query
                else:
                    self._unknown.add((facts[i].prompt, facts[i].target))
        return list(known), self._ask(list(known.values()), position)

    def _query(self, fact: Fact, position: str) -> Query | None:
        """None where a fact was found to be unknown, or cannot be asked."""
        if (fact.prompt, fact.target) in self._unknown:
            return None
        try:
            query = self.model.query_of(fact)
            query.scaled_at(position, [step.read for step in query.steps])
        except InputError:
            return None
        return query

    def _cached(self) -> set[tuple[str, str]]:
        """Prompts and targets that earlier pools found unknown."""
        return {(prompt, target) for prompt, target in (self._key and read_json(UNKNOWN, self._key)) or ()}

    def _cache(self) -> None:
        """Keep what is unknown for later pools, beside what others kept; without a cache it is asked again."""
        if self._key is not None:
            with suppress(ModelError, InputError):
                write_json(UNKNOWN, self._key, sorted(self._unknown | self._cached()))

    def _ask(self, queries: Sequence[Query], position: str) -> ScaledAnswers:
        key = tuple((query.prompt.ids, query.target_ids) for query in queries), position
        if key not in self._asked:
            self._asked[key] = ScaledAnswers(self.model, queries, position=position)
            if len(self._asked) > KEPT:
                self._asked.popitem(last=False)
        self._asked.move_to_end(key)
        return self._asked[key]


def _shuffled(groups: list[list[Fact]], n: int) -> list[Fact]:
    """Up to 4 `n` facts of each group, in a shuffled order that is always the same."""
    return [fact for facts in groups for fact in random.Random(0).sample(facts, min(len(facts), 4 * n))]


def _by_turns(facts: Sequence[Asked]) -> list[Asked]:
    """Facts in an order in which the relations take turns."""
    turns: dict[str | None, int] = {}
    placed = []
    for fact, answers in facts:
        turns[fact.relation] = turns.get(fact.relation, 0) + 1
        placed.append((turns[fact.relation], fact, answers))
    return [(fact, answers) for _, fact, answers in sorted(placed, key=lambda place: place[0])]


def kinds(
    model: Model, neurons: Sequence[tuple[int, int]], activations: Sequence[float], target_id: int, controls: Controls
) -> list[str | None]:
    """The kind of each neuron, None where it cannot be told: no control of any relation is there."""
    rates = {name: _rates(getattr(controls, name), neurons) for name in SORTS}
    labels: list[str | None] = []
    for i, (neuron, activation) in enumerate(zip(neurons, activations, strict=True)):
        own_rates = {name: None if rate is None else rate[i] for name, rate in rates.items()}
        labels.append(_kind(model, neuron, activation, target_id, own_rates))
    return labels


def _kind(model: Model, neuron: tuple[int, int], activation: float, target_id: int, rates: dict) -> str | None:
    for name in SORTS:
        if rates[name] is not None and rates[name] >= 0.5:
            return name
    if rates["answer"] is None:
        promoted, _ = vocabulary(model, *neuron, sign=activation, n=10)
        if model.token(target_id) in promoted:
            return "answer"
    return None if rates["general"] is None and rates["relation"] is None else "fact"


def _rates(controls: ScaledAnswers, neurons: Sequence[tuple[int, int]]) -> list[float] | None:
    """The share of controls to which each neuron matters; None without controls."""
    if not len(controls):
        return None
    without = controls.scaled([[neuron] for neuron in neurons], 0.0)
    return (without <= (1 - DROP) * controls.probability[:, None]).mean(0).tolist()
