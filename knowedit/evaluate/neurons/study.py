"""`knowedit bench neurons`: the study of Dai et al. 2022 over many facts and relations.

For each fact neurons are located on some of its prompts and refined by what these share, then suppressed and amplified
on prompts that played no part (section 4 there). Beside them stand as many neurons by activation alone, their baseline,
and random ones with as many in each layer. What is made of the records is in `neuron_summary.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from ...edit.methods.knowledge_neurons import EraseConfig, erase
from ...errors import InputError, did_you_mean
from ...facts import Fact, fill
from ...locate.attribution import AttributionConfig
from ...locate.neuron_kinds import ControlPool
from ...locate.neurons import adjusted_p, coarse, shared
from ...locate.proof import AMPLIFY, SUPPRESS, draw
from ...locate.rankings import RANKINGS, rank
from ...locate.scaled_answers import ScaledAnswers
from ...models.adapter import Model
from ...selection import Known, choose, known_to
from ...sources import Source
from ..edits.scoring import score_edits
from ..runs.study import FactStudy
from .summary import summary

BASELINES = ("activation", "random")
OTHERS = 4  # facts of the same and of other relations on which specificity is measured
T_GRID, P_GRID = (0.1, 0.2, 0.3), (0.5, 0.7, 0.9)
NODES_GRID = (4, 16, 64)
NODES_EVERY = 20  # facts between two whose nodes are varied
ERASED, ASKED = 20, 12  # neurons that are erased of a relation; facts that are asked of it, and of the others


@dataclass(frozen=True)
class NeuronStudyConfig:
    """Which facts, how their neurons are located, and beside what.

    - `source`, `format`, `revision`: as `load_source` takes them. `relations`: only these, by name.
    - `known_only`: facts whose target is the model's first choice. `limit`, `sample`, `seed`: as `choose` takes them,
      the first so many of these facts, or so many drawn. `per_relation`: of those at most so many facts of each.
    - `method`, `nodes`, `layers`, `t`, `p`, `adjust`, `most`: as in `LocateConfig`; `prompts`: how many locate at most.
    - `baselines`: any of `activation` and `random`; `draws`: of random sets.
    - `stability`: also vary t, p and the nodes. `erase`: also erase relations.
    """

    source: str = "builtin"
    model: str = "smollm2-135m"
    dtype: str | None = None
    relations: tuple[str, ...] = ()
    per_relation: int | None = None
    known_only: bool = True
    method: str = "ig"
    nodes: int | str = 8
    layers: tuple[int, ...] | None = None
    t: float = 0.2
    p: float = 0.7
    adjust: bool = False
    most: int | None = None
    prompts: int = 4
    baselines: tuple[str, ...] = BASELINES
    draws: int = 20
    stability: bool = False
    erase: bool = False
    batch: int = 4
    format: str | None = None
    revision: str | None = None
    limit: int | None = None
    sample: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.method not in RANKINGS:
            raise InputError(
                f"no ranking is called {self.method!r}{did_you_mean(self.method, RANKINGS)}; "
                f"there are {', '.join(RANKINGS)}"
            )
        for name in self.baselines:
            if name not in BASELINES:
                raise InputError(
                    f"no baseline is called {name!r}{did_you_mean(name, BASELINES)}; there are {', '.join(BASELINES)}"
                )
        for name in ("t", "p"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected a fraction above 0 and up to 1")
        for name in ("prompts", "draws", "batch"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected a number from 1 on")
        AttributionConfig(nodes=self.nodes)

    def as_dict(self) -> dict:
        """For JSON."""
        record = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in record.items()}


class NeuronStudy(FactStudy):
    """A `Study` of located neurons."""

    name = "neurons"

    def __init__(self, config: NeuronStudyConfig, model: Model, source: Source | None = None):
        for layer in config.layers or ():
            model.check_layer(layer)
        super().__init__(config, model, source)

    def run(self, batch: list[str]) -> list[dict]:
        return [self._record(self.facts[i]) for i in batch]

    def summarise(self, rows: Iterable[dict]) -> dict:
        found = summary(rows, (), self.settings.seed, layers=self.model.n_layers)
        if self.settings.erase:
            found["erasure"] = self._erasures(found.pop("located"))
        found.pop("located", None)
        return {**found, "skipped": len(self.skipped)}

    # ---------------------------------------------------------------- one fact

    def _record(self, fact: Fact) -> dict:
        start = time.perf_counter()
        located, heldout = prompts_of(fact, self.settings.prompts)
        if not heldout:
            raise InputError("it has no second prompt to prove its neurons on")
        queries = [self._query(fact, prompt) for prompt in located]
        scores = [self._scores(query, self.settings.method) for query in queries]
        sets = [coarse(score, self.settings.t, self.settings.layers) for score in scores]
        p = adjusted_p(sets, self.settings.p) if self.settings.adjust else self.settings.p
        neurons = _strongest(scores, shared(sets, p))[: self.settings.most]
        attributed = time.perf_counter()
        row = {
            "id": fact.id, "relation": fact.relation_name or fact.relation, "subject": fact.subject,
            "p": p, "prompts": len(located), "neurons": len(neurons),
        }  # fmt: skip
        responses = [ScaledAnswers(self.model, self._query(fact, prompt)) for prompt in heldout]
        row["before"] = [response.probability for response in responses]
        row["methods"] = self._effects(fact, neurons, queries, responses) if neurons else {}
        if neurons:
            row["specificity"] = self._specificity(fact, neurons)
        if self.settings.stability:
            row["stability"] = self._stability(fact, scores, neurons)
        row["seconds"] = {"locate": attributed - start, "effect": time.perf_counter() - attributed}
        return row

    def _effects(
        self, fact: Fact, neurons: Sequence, queries: Sequence, responses: Sequence[ScaledAnswers]
    ) -> dict[str, dict]:
        """Probabilities on held-out prompts for each set of neurons; of random sets the mean over the draws."""
        sets = {self.settings.method: [list(neurons)]}
        if "activation" in self.settings.baselines:
            activations = [self._scores(query, "activation").abs() for query in queries]
            sets["activation"] = [_largest(sum(activations) / len(activations), len(neurons), self.settings.layers)]
        if "random" in self.settings.baselines:
            rng = np.random.default_rng([self.settings.seed, *fact.id.encode()])
            mean = sum(response.activations.abs() for response in responses) / len(responses)
            sets["random"] = draw(list(neurons), mean, self.settings.draws, rng, strata=False)
        together = [neurons for some in sets.values() for neurons in some]
        changed = {
            what: np.stack([response.scaled(together, factor) for response in responses])
            for what, factor in (("suppressed", SUPPRESS), ("amplified", AMPLIFY))
        }
        found, start = {}, 0
        for name, some in sets.items():
            part = slice(start, start + len(some))
            start += len(some)
            found[name] = {what: values[:, part].mean(1).tolist() for what, values in changed.items()}
            if name != "random":
                found[name]["neurons"] = [list(site) for site in some[0]]
        return found

    def _specificity(self, fact: Fact, neurons: Sequence) -> dict[str, dict]:
        """Mean probabilities of the targets of other known facts, before, suppressed and amplified."""
        controls = self._pool.controls(fact.subject, fact.target, fact.relation, OTHERS)
        found = {}
        for name, others in (("same_relation", controls.relation), ("other_relations", controls.general)):
            if others:
                found[name] = {"before": float(np.mean([other.probability for other in others]))} | {
                    what: float(np.mean([other.scaled([list(neurons)], factor)[0] for other in others]))
                    for what, factor in (("suppressed", SUPPRESS), ("amplified", AMPLIFY))
                }
        return found

    def _stability(self, fact: Fact, scores: Sequence[Tensor], neurons: Sequence) -> dict[str, list[float]]:
        """For other thresholds, and for some facts other nodes: number of neurons and overlap with those found."""
        found = {}
        for t in T_GRID:
            sets = [coarse(score, t, self.settings.layers) for score in scores]
            for p in P_GRID:
                other = list(shared(sets, p))
                found[f"t={t:g} p={p:g}"] = [len(other), _jaccard(neurons, other)]
        index = list(self.facts).index(fact.id)
        if self.settings.method == "ig" and index % NODES_EVERY == 0:
            query = self._query(fact, fact.prompt)
            finest = coarse(self._scores(query, "ig", NODES_GRID[-1]), self.settings.t, self.settings.layers)
            for nodes in NODES_GRID[:-1]:
                other = coarse(self._scores(query, "ig", nodes), self.settings.t, self.settings.layers)
                found[f"nodes={nodes}"] = [len(other), _jaccard(finest, other)]
        return found

    # ---------------------------------------------------------------- a relation

    def _erasures(self, located: dict[str, dict[str, list]]) -> dict[str, dict]:
        """Erase what the facts of each relation have most in common; known facts of it and of others are asked."""
        found = {}
        for relation, by_fact in located.items():
            counts: dict[tuple[int, int], int] = {}
            for neurons in by_fact.values():
                for site in map(tuple, neurons):
                    counts[site] = counts.get(site, 0) + 1
            most = sorted(counts, key=lambda site: (-counts[site], site))[:ERASED]
            if not most:
                continue
            own = [self.facts[i] for i in _spread(list(by_fact), ASKED)]
            rest = [i for name, others in located.items() if name != relation for i in others]
            edit = erase(self.model, own, EraseConfig(most=ERASED), neurons=most)
            found[relation] = {"neurons": len(most)} | {
                name: self._asked(edit, facts)
                for name, facts in (("own", own), ("others", [self.facts[i] for i in _spread(rest, ASKED)]))
                if facts
            }
        return found

    def _asked(self, edit, facts: Sequence[Fact]) -> dict:
        pairs = [[(fact.prompt, fact.target) for fact in facts]]
        (before,), (after,) = (score_edits(self.model, [given], pairs) for given in (None, edit))
        return {
            "n": len(facts),
            **{
                f"{what}_{when}": float(np.mean([getattr(score, name) for score in scores]))
                for when, scores in (("before", before), ("after", after))
                for what, name in (("probability", "per_token"), ("first_choice", "greedy"))
            },
        }

    # ---------------------------------------------------------------- parts

    def _scores(self, query, method: str, nodes: int | str | None = None) -> Tensor:
        config = AttributionConfig(nodes=self.settings.nodes if nodes is None else nodes)
        return rank(self.model, query, method=method, config=config)

    def _query(self, fact: Fact, prompt: str):
        subject = fact.subject if fact.subject in prompt else None
        return self.model.query(prompt, fact.target, subject)

    @cached_property
    def _pool(self) -> ControlPool:
        return ControlPool(self.model, list(self.facts.values()))

    def chosen_facts(self) -> list[Fact]:
        facts = chosen_facts(self.settings, self.source, known_to(self.model) if self.settings.known_only else None)
        if not facts:
            raise InputError(
                f"{self.model.name} knows none of the facts of {self.source.name!r}; choose another source"
            )
        return facts


def usable_facts(source: Source) -> list[Fact]:
    """The facts of a source that neurons can be located for: all of them."""
    return list(source.facts)


def chosen_facts(config: NeuronStudyConfig, source: Source, known: Known | None = None) -> list[Fact]:
    """The facts that `config` chooses, in their order; those that the model knows where `known` tells."""
    facts = of_relations(usable_facts(source), config.relations)
    facts = choose(facts, limit=config.limit, sample=config.sample, seed=config.seed, known=known)
    return spread_over_relations(facts, config.per_relation)


def prompts_of(fact: Fact, most: int) -> tuple[list[str], list[str]]:
    """Prompts that locate, at most so many, and others that prove: held-out ones, or else every second paraphrase."""
    own = [fill(template, fact.subject) for template in (fact.template, *fact.paraphrases)]
    held = [fill(template, fact.subject) for template in fact.heldout] or [*own[1::2], *fact.rephrasings]
    return [prompt for prompt in own if prompt not in held][:most], held


def of_relations(facts: Sequence[Fact], relations: Sequence[str]) -> list[Fact]:
    """The facts of some relations, by name; of all where none is named. Raises `InputError` for an unknown name."""
    names = sorted({name for fact in facts if (name := fact.relation_name or fact.relation)})
    for name in relations:
        if name not in names:
            raise InputError(f"no relation is called {name!r}{did_you_mean(name, names)}; there are {', '.join(names)}")
    return [fact for fact in facts if not relations or (fact.relation_name or fact.relation) in relations]


def spread_over_relations(facts: Sequence[Fact], most: int | None) -> list[Fact]:
    """At most so many facts of each relation, evenly spread, in their order."""
    if most is None:
        return list(facts)
    by_relation: dict = {}
    for fact in facts:
        by_relation.setdefault(fact.relation, []).append(fact)
    kept = {fact.id for some in by_relation.values() for fact in _spread(some, most)}
    return [fact for fact in facts if fact.id in kept]


def _strongest(scores: Sequence[Tensor], sites: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """By mean score over the prompts, the largest first."""
    mean = sum(scores) / len(scores)
    return sorted(sites, key=lambda site: (-mean[site].item(), site))


def _largest(values: Tensor, n: int, layers: Sequence[int] | None) -> list[tuple[int, int]]:
    """The `n` neurons with the largest values, of all layers or of `layers`."""
    if layers is not None:
        kept = values.new_zeros(len(values), 1)
        kept[list(layers)] = 1
        values = values * kept
    width = values.shape[1]
    return [(i // width, i % width) for i in values.flatten().topk(n).indices.tolist()]


def _jaccard(one: Iterable, other: Iterable) -> float:
    one, other = set(map(tuple, one)), set(map(tuple, other))
    return len(one & other) / len(one | other) if one | other else 1.0


def _spread(items: Sequence, n: int) -> list:
    """At most `n` of `items`, evenly spread."""
    return list(items) if len(items) <= n else [items[i * len(items) // n] for i in range(n)]
