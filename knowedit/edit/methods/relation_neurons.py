"""Neurons of a relation's other facts: what of a fact's neurons they share is not the fact's own (Dai et al. 2022).

Dai et al. compare a fact with all others of its relation, known to the model or not. Here it is some of them, the same
ones in every run, since each has to be located as the fact itself is. What is located is kept in the cache, under the
model's weights, the settings and the fact.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import InputError
from ...facts import Fact
from ...locate.config import LocateConfig
from ...locate.locate import locate_fact
from ...locate.proof.neuron_kinds import ControlPool
from ...models.adapter import Model
from ...models.cache import key_of, remembered
from ...selection import drawing_order
from ..apply import unedited

Site = tuple[int, int]  # (layer, index)


def relation_of(fact: Fact) -> str | None:
    """What the fact's relation is called."""
    return fact.relation or fact.relation_name


class RelationNeurons:
    """Locates other facts of a fact's relation, each once, on the model without its edits.

    `facts` are those that can be drawn, of any relation; `count` of them stand beside each fact.
    """

    def __init__(self, model: Model, facts: Sequence[Fact], locate: LocateConfig, count: int):
        self.model, self.locate, self.count = model, locate, count
        self._by_relation: dict[str | None, list[Fact]] = {}
        for fact in drawing_order(facts, seed=0):
            if relation := relation_of(fact):
                self._by_relation.setdefault(relation, []).append(fact)
        self._pool = ControlPool(model, ())  # what else neurons answer for does not matter here
        self._located: dict[Fact, list[Site] | None] = {}
        self._weights_hash: str | None = None

    def of_others(self, fact: Fact) -> list[list[Site]]:
        """The neurons of `count` facts of the relation of `fact` about other subjects, or of as many as there are.

        None of them are there for a fact without a relation. A fact whose prompt or target the tokenizer cannot use is
        passed over.
        """
        subject = (fact.subject or fact.prompt).casefold()
        neurons: list[list[Site]] = []
        with unedited(self.model):
            for other in self._by_relation.get(relation_of(fact), ()):
                if len(neurons) == self.count:
                    break
                own = (other.subject or other.prompt).casefold()
                if own != subject and (sites := self._neurons_of(other)) is not None:
                    neurons.append(sites)
        return neurons

    def _neurons_of(self, fact: Fact) -> list[Site] | None:
        """None where the fact cannot be asked."""
        if fact not in self._located:
            self._located[fact] = self._cached(fact)
        return self._located[fact]

    def _cached(self, fact: Fact) -> list[Site] | None:
        if self._weights_hash is None:
            self._weights_hash = self.model.weights_hash()
        key = key_of({"weights": self._weights_hash, "locate": self.locate.as_dict(), "fact": fact.as_dict()})

        def located() -> list[Site]:
            return [*locate_fact(self.model, fact, self.locate, pool=self._pool, weights_hash=self._weights_hash)]

        try:
            return [(layer, index) for layer, index in remembered("neurons", key, located)]
        except InputError:
            return None
