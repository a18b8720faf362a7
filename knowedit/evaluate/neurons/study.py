"""The study of located neurons, after Dai et al. 2022: `knowedit bench neurons` and `knowedit locate --facts`.

For each fact neurons are located on some of its prompts and refined by what these share, then suppressed and amplified
on prompts that played no part (section 4 there), beside random neurons of the same layers and activations. Neurons
chosen by activation alone, their baseline, may stand beside them. `records.py` says what a record holds, `summary.py`
what the records say together.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial

import numpy as np

from ...edit.methods.knowledge_neurons import EraseConfig, erase
from ...errors import InputError
from ...facts import Fact
from ...locate.config import LocateConfig
from ...locate.fact_prompts import FactPrompts
from ...locate.locate import PromptScores, describe, mean_scores, score_negatives, score_prompts
from ...locate.neurons import NeuronSet
from ...locate.proof.effect import located_answers, measure_located
from ...locate.proof.faithfulness import faithfulness
from ...locate.proof.neuron_kinds import ControlPool
from ...locate.refinement import Site, refine, strongest
from ...models.adapter import Model
from ...models.passes.scaled_answers import ScaledAnswers
from ...selection import Keep, choose, evenly, evenly_spaced, known, of_relations, per_relation
from ...sources import Source, builtin_facts
from ..edits.scoring import score_edits
from ..runs.study import FactStudy
from .summary import summary

T_GRID, P_GRID = (0.1, 0.2, 0.3), (0.5, 0.7, 0.9)
NODES_GRID = (4, 16, 64)
NODES_EVERY = 20  # facts between two whose nodes are varied
ERASED_NEURONS = 20  # of each relation
ASKED_FACTS = 12  # of an erased relation, and of the others


@dataclass(frozen=True)
class NeuronStudyConfig:
    """Which facts, how their neurons are located, and beside what they are proved.

    - `source`, `format`, `revision`: as `load_source` takes them. `relations`: only these, by name or id.
    - `known_only`: facts whose target is the model's first choice. `skip`, `limit`, `sample`, `seed`: as `choose` takes
      them; with `evenly` the limit is spread over the relations. `per_relation`: the largest number of facts of one.
    - `locate`: how neurons are chosen. `negatives`: prompts about something else, whose neurons are removed.
    - `draws`: random sets that the neurons are compared with. `activation`: also measure as many neurons with the
      largest activations.
    - `stability`: also vary t, p and the nodes. `erase`: also erase relations.
    """

    source: str = "builtin"
    model: str = "smollm2-135m"
    dtype: str | None = None
    relations: tuple[str, ...] = ()
    per_relation: int | None = None
    known_only: bool = True
    locate: LocateConfig = field(default_factory=lambda: LocateConfig(select="refined", kinds=False))
    negatives: tuple[str, ...] = ()
    draws: int = 20
    activation: bool = True
    stability: bool = False
    erase: bool = False
    batch: int = 4
    format: str | None = None
    revision: str | None = None
    skip: int = 0
    limit: int | None = None
    evenly: bool = False
    sample: int | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("draws", "batch"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise InputError(f"{name} is {value!r}, expected a number from 1 on")

    def as_dict(self) -> dict:
        """For JSON."""
        values = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        values["locate"] = self.locate.as_dict()
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def usable(self, facts: Sequence[Fact]) -> list[Fact]:
        """The facts of a source whose neurons can be located: all of them."""
        return list(facts)

    def chosen(self, facts: Sequence[Fact], keep: Keep | None = None) -> list[Fact]:
        """The facts that the study is about, of those of its source; `keep` as `choose` takes it."""
        limit = None if self.evenly else self.limit
        facts = of_relations(facts, self.relations)
        facts = choose(facts, skip=self.skip, limit=limit, sample=self.sample, seed=self.seed, keep=keep)
        facts = per_relation(facts, self.per_relation)
        return evenly(facts, self.limit) if self.evenly else facts


class NeuronStudy(FactStudy):
    """A `Study` of located neurons."""

    name = "neurons"

    def __init__(self, config: NeuronStudyConfig, model: Model, source: Source | None = None):
        for layer in config.locate.layers or ():
            model.check_layer(layer)
        super().__init__(config, model, source)

    def run(self, batch: list[str]) -> list[dict]:
        return [self._record(self.facts[i]) for i in batch]

    def summarise(self, rows: Iterable[dict]) -> dict:
        values = summary(rows, (), self.settings.seed, layers=self.model.n_layers)
        located = values.pop("located")
        if self.settings.erase:
            values["erasure"] = self._erasures(located)
        return {**values, "skipped": len(self.skipped)}

    # ---------------------------------------------------------------- one fact

    def _record(self, fact: Fact) -> dict:
        start = time.perf_counter()
        prompts = FactPrompts.split(fact)
        scored = score_prompts(self.model, prompts, self.settings.locate, self._pool)
        located = describe(
            self.model, prompts, scored, self.settings.locate, negatives=self._negatives, pool=self._pool,
            weights_hash=self._weights_hash,
        )  # fmt: skip
        scored_at = time.perf_counter()
        record = {
            "id": fact.id,
            "relation": fact.relation_name or fact.relation,
            "subject": fact.subject,
            "located": located.as_dict(),
            "proof": None,
            "rivals": {},
            "faithfulness": None,
        }
        if len(located) and prompts.heldout:
            compared = self.settings.activation and located.method != "activation"
            rivals = {"activation": self._most_active(scored, len(located))} if compared else {}
            answers = located_answers(self.model, located, prompts.heldout, self._pool)
            effect = measure_located(
                self.model, located, answers, pool=self._pool, draws=self.settings.draws, seed=self.settings.seed,
                rivals=rivals,
            )  # fmt: skip
            curves = faithfulness(answers, mean_scores(scored))
            record |= {"proof": effect.as_dict(), "rivals": rivals, "faithfulness": curves.as_dict()}
        if self.settings.stability:
            record["stability"] = self._stability(fact, scored, located)
        record["seconds"] = {"locate": scored_at - start, "effect": time.perf_counter() - scored_at}
        return record

    def _most_active(self, scored: Sequence[PromptScores], n: int) -> list[Site]:
        """The `n` neurons with the largest |activation|, averaged over the prompts, in the layers of the study."""
        position = self.settings.locate.position
        answers = ScaledAnswers(self.model, [prompt.query for prompt in scored], position=position)
        activations = answers.activations.abs().mean(0)
        return strongest(activations, n, self.settings.locate.layers)

    def _stability(self, fact: Fact, scored: Sequence[PromptScores], located: NeuronSet) -> dict[str, list[float]]:
        """For other thresholds, and for some facts other nodes: the number of neurons, and their overlap."""
        layers = self.settings.locate.layers
        scores, negatives = [prompt.scores for prompt in scored], [prompt.scores for prompt in self._negatives]
        by_setting = {}
        for t in T_GRID:
            for p in P_GRID:
                neurons = refine(scores, t, p, layers=layers, negatives=negatives).scores
                by_setting[f"t={t:g} p={p:g}"] = [len(neurons), _jaccard(located, neurons)]
        index = list(self.facts).index(fact.id)
        if self.settings.locate.method == "ig" and index % NODES_EVERY == 0:
            coarse = {nodes: self._coarse(fact, nodes) for nodes in NODES_GRID}
            for nodes in NODES_GRID[:-1]:
                by_setting[f"nodes={nodes}"] = [len(coarse[nodes]), _jaccard(coarse[NODES_GRID[-1]], coarse[nodes])]
        return by_setting

    def _coarse(self, fact: Fact, nodes: int) -> dict[Site, float]:
        """The coarse neurons of the fact's own prompt, integrated by `nodes` points a layer."""
        locate = self.settings.locate
        scoring = replace(locate, attribution=replace(locate.attribution, nodes=nodes))
        prompts = replace(FactPrompts.all_of(fact), locating=(fact.prompt,))
        (prompt,) = score_prompts(self.model, prompts, scoring, self._pool)
        return refine([prompt.scores], scoring.t, 1.0, layers=scoring.layers).scores

    # ---------------------------------------------------------------- a relation

    def _erasures(self, located: dict[str, dict[str, list[Site]]]) -> dict[str, dict]:
        """Ask known facts of each relation, and of the others, with the relation's commonest neurons erased."""
        erasures = {}
        for relation, by_fact in located.items():
            counts: dict[Site, int] = {}
            for sites in by_fact.values():
                for site in sites:
                    counts[site] = counts.get(site, 0) + 1
            commonest = sorted(counts, key=lambda site: (-counts[site], site))[:ERASED_NEURONS]
            if not commonest:
                continue
            others = [i for name, facts in located.items() if name != relation for i in facts]
            own_facts, other_facts = (
                [self.facts[i] for i in evenly_spaced(ids, ASKED_FACTS)] for ids in (list(by_fact), others)
            )
            edit = erase(self.model, own_facts, EraseConfig(most=ERASED_NEURONS), neurons=commonest)
            erasures[relation] = {"neurons": len(commonest)} | {
                name: self._before_and_after(edit, facts)
                for name, facts in (("own", own_facts), ("others", other_facts))
                if facts
            }
        return erasures

    def _before_and_after(self, edit, facts: Sequence[Fact]) -> dict:
        pairs = [[(fact.prompt, fact.target, fact.separator) for fact in facts]]
        (before,), (after,) = (score_edits(self.model, [change], pairs) for change in (None, edit))
        return {
            "n": len(facts),
            **{
                f"{what}_{when}": float(np.mean([getattr(score, name) for score in scores]))
                for when, scores in (("before", before), ("after", after))
                for what, name in (("probability", "per_token"), ("first_choice", "greedy"))
            },
        }

    # ---------------------------------------------------------------- parts

    @cached_property
    def _negatives(self) -> list[PromptScores]:
        return score_negatives(self.model, self.settings.negatives, self.settings.locate, self._pool)

    @cached_property
    def _pool(self) -> ControlPool:
        """Controls are the source's own facts; built-in ones where the model knows too few of these."""
        spare = () if self.source.format == "builtin" else builtin_facts()
        return ControlPool(self.model, self.source.facts, spare, weights_hash=self._weights_hash)

    def chosen_facts(self) -> list[Fact]:
        config = self.settings
        keep = partial(known, self.model, chat=config.locate.chat) if config.known_only else None
        facts = config.chosen(self.source.facts, keep)
        if not facts:
            raise InputError(
                f"{self.model.name} knows none of the facts of {self.source.name!r}; choose another source"
            )
        return facts


def _jaccard(sites: Iterable[Site], others: Iterable[Site]) -> float:
    sites, others = set(sites), set(others)
    return len(sites & others) / len(sites | others) if sites | others else 1.0
