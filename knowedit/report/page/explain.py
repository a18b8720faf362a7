"""The story of one fact, as one record: what `knowedit explain` prints as JSON and what its page is made of.

Prediction, logit lens, causal trace, stages of recall, located neurons with their cards and their proof and, with an
edit, before and after and where the old fact survives. Each chapter is one analysis that has a module and a command of
its own; here they are asked about the same fact and put into plain values. A chapter that a model cannot have (a masked
model has no recall pipeline) is None, and `notes` says why in a sentence.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any

from ... import __version__
from ...answers import ask
from ...edit.edit import Edit
from ...edit.preflight import outcome, preflight
from ...errors import InputError, ModelError
from ...facts import Fact, fill
from ...locate.attribution import AttributionConfig
from ...locate.locate import LocateConfig, locate_fact
from ...locate.neuron_kinds import ControlPool
from ...locate.neurons import NeuronSet
from ...locate.proof import prove_located
from ...memory.neuron_card import CardConfig, cards
from ...models.adapter import Model
from ...models.length import check_length
from ...progress import Progress, counted, silent
from ...recall.flow.pipeline import recall_fact
from ...recall.lens.decomposition import logit_attribution
from ...recall.lens.projection import logit_lens
from ...recall.trace.exact import TraceConfig, trace
from ...sources import builtin_facts

SCHEMA = "knowedit.explain/1"
CHAPTERS = ("prediction", "edit", "lens", "parts", "trace", "recall", "neurons", "cards", "proof")
MOST, CARDS = 10, 5  # neurons in all, and with a card
SEEN = 0.01  # an answer with less is nowhere ahead
QUICK_NODES, QUICK_DRAWS, QUICK_PARAPHRASES, QUICK_TOKENS = 8, 50, 2, 1024


@dataclass(frozen=True)
class ExplainConfig:
    """How thoroughly a fact is looked at.

    - `quick`: fewer points on each path, fewer paraphrases and draws, and the causal trace by gradients.
    - `layers`: where neurons are located; by default all but the first twelfth, whose massive activations every prompt
      needs.
    - `draws`: random sets in the proof; `seed`: of everything that is drawn.
    """

    quick: bool = False
    layers: tuple[int, ...] | None = None
    draws: int = 200
    seed: int = 0

    def __post_init__(self):
        if self.draws < 1:
            raise InputError(f"a proof needs random draws to compare with, {self.draws!r} were asked for; give 200")


def explain(
    model: Model,
    fact: Fact | None,
    edit: Edit | None = None,
    config: ExplainConfig | None = None,
    *,
    progress: Progress = silent,
) -> dict:
    """The record of one fact: plain JSON values, no NaN. The model is as it was after.

    With `edit`, `fact` may be left out: it is the edit's own then. `progress` counts `CHAPTERS`.

    Raises `InputError` for a fact that cannot be asked and an edit that does not fit it, `ModelError` for an edit of
    another model.
    """
    config = config or ExplainConfig()
    if fact is None and edit is None:
        raise InputError("there is no fact to explain; give one, or an edit")
    if edit is not None:
        fact = edited_fact(fact, edit)
    for layer in config.layers or ():
        model.check_layer(layer)
    query = model.query(fact.prompt, fact.target, fact.subject)
    check_length(model, query.steps[-1].ids)
    prompt = query.prompt
    told = _Telling(model, fact, edit, config)
    chapters, notes, seconds = {}, {}, {}
    for name in counted(CHAPTERS, progress):
        started = time.perf_counter()
        try:
            chapters[name] = getattr(told, name)()
        except (InputError, ModelError) as error:
            if name in ("prediction", "edit"):  # what was asked for is wrong, not what the model can have
                raise
            chapters[name], notes[name] = None, str(error)
        seconds[name] = time.perf_counter() - started
    return plain(
        {
            "schema": SCHEMA,
            "version": __version__,
            "model": {
                "name": model.name,
                "weights_hash": told.weights_hash,
                "layers": model.n_layers,
                "width": model.d_model,
                "neurons": model.n_neurons,
                "masked": model.masked,
            },
            "fact": {**asdict(fact), "prompt": fact.prompt},
            "tokens": [
                {
                    "text": model.tokenizer.decode([token]),
                    "subject": prompt.subject[0] <= i < prompt.subject[1],
                    "read": i == prompt.read,
                }
                for i, token in enumerate(prompt.ids)
            ],
            **chapters,
            "notes": notes,
            "config": asdict(config),
            "seconds": {**seconds, "all": sum(seconds.values())},
        }
    )


def edited_fact(fact: Fact | None, edit: Edit) -> Fact:
    """`fact` with the new answer of `edit`, and with the edit's other prompts where it asks for the same fact.

    Raises `InputError` for an edit of several facts or without a new answer.
    """
    if len(edit.facts) != 1:
        raise InputError(f"the edit is of {len(edit.facts)} facts, expected one; look at edits one by one")
    (own,) = edit.facts
    if own.target_new is None:
        raise InputError(f"the edit of {own.subject!r} has no new answer to look for; leave --edit out")
    if fact is None:
        return own
    fact = replace(fact, target_new=own.target_new)
    if (fact.template, fact.subject, fact.target) != (own.template, own.subject, own.target):
        return fact
    more = ("paraphrases", "heldout", "rephrasings", "neighbours")
    return replace(fact, **{name: getattr(fact, name) or getattr(own, name) for name in more})


class _Telling:
    """The chapters of one fact, each a method; what one finds, later ones use."""

    def __init__(self, model: Model, fact: Fact, edit: Edit | None, config: ExplainConfig):
        self.model, self.fact, self._edit, self.config = model, fact, edit, config
        self.weights_hash = model.weights_hash()
        self.pool = ControlPool(model, builtin_facts())
        self.found: NeuronSet | None = None

    def prediction(self) -> dict:
        """The answer to the prompt and to every other way to ask."""
        fact = self.fact
        asked = [("prompt", fact.template)]
        asked += [("paraphrase", t) for t in fact.paraphrases] + [("held out", t) for t in fact.heldout]
        prompts = [fill(template, fact.subject) for _, template in asked]
        found = ask(self.model, [self.model.query(p, fact.target, fact.subject) for p in prompts], top=8)
        return {
            **found[0].as_dict(),
            "known": found[0].known,
            "prompts": [
                {
                    "role": role,
                    "prompt": prompt,
                    "probability": found[i].probability,
                    "rank": found[i].rank,
                    "first": found[i].top[0][0],
                }
                for i, ((role, _), prompt) in enumerate(zip(asked, prompts, strict=True))
            ],
        }

    def edit(self) -> dict | None:
        """Before and after, and what is left of the old answer."""
        if self._edit is None:
            return None
        own = self._edit
        edit = replace(own, facts=(self.fact,))  # asked about this fact, whatever prompt it was made for
        before = preflight(self.model, edit)
        after = outcome(self.model, edit, lens=True)
        layers = self.model.down_layers()
        return {
            "method": own.method,
            "layers": sorted(layers[path] for path in own.deltas),
            "content_hash": own.content_hash,
            "created": own.created,
            "own_prompt": own.facts[0].prompt,
            "perplexity_change": None if after.perplexity_before is None else after.perplexity_change,
            **asdict(after.facts[0]),
            "perplexity_before": after.perplexity_before,
            "perplexity_after": after.perplexity_after,
            "preflight": before.fact_dict(),
            "survives": _survives(after.facts[0]),
        }

    def lens(self) -> dict:
        """What the residual stream predicts after each layer at the read position."""
        return logit_lens(self.model, self.fact.prompt, self.fact.target, subject=self.fact.subject, top=3).as_dict()

    def parts(self) -> dict:
        """What each part of the model adds to the answer's logit."""
        return logit_attribution(self.model, self.fact.prompt, self.fact.target, subject=self.fact.subject).as_dict(
            heads=8, neurons=8
        )

    def trace(self) -> dict:
        """What brings the answer back after noise in the subject."""
        config = TraceConfig(fast=self.config.quick, seed=self.config.seed)
        fact = self.fact
        return trace(self.model, fact.prompt, fact.target, fact.subject, config, fact=fact.id).as_dict()

    def recall(self) -> dict:
        """Enrichment, propagation and extraction."""
        return recall_fact(self.model, self.fact).as_dict()

    def neurons(self) -> dict:
        """The neurons that make the answer, located on the prompt and its paraphrases."""
        config, fact = self.config, self.fact
        layers = config.layers
        if layers is None and (skipped := self.model.n_layers // 12):
            layers = tuple(range(skipped, self.model.n_layers))
        attribution = AttributionConfig(nodes=QUICK_NODES) if config.quick else AttributionConfig()
        if config.quick:
            fact = replace(fact, paraphrases=fact.paraphrases[:QUICK_PARAPHRASES])
        self.found = locate_fact(
            self.model,
            fact,
            LocateConfig(attribution=attribution, layers=layers, adjust=True, most=MOST),
            pool=self.pool,
            weights_hash=self.weights_hash,
        )
        return self.found.as_dict()

    def cards(self) -> list | None:
        """The strongest of them as keys and values, on the built-in facts."""
        if not self.found:
            return None
        config = CardConfig(texts=4, words=8, seed=self.config.seed)
        if self.config.quick:
            config = replace(config, tokens=QUICK_TOKENS)
        found = cards(self.model, list(self.found)[:CARDS], "builtin", config, located=[self.found])
        return [one.as_dict() for one in found]

    def proof(self) -> dict | None:
        """What suppressing and amplifying them does on prompts that had no part in locating."""
        fact = self.fact
        if not self.found:
            return None
        return prove_located(
            self.model,
            self.found,
            [fill(template, fact.subject) for template in fact.heldout],
            pool=self.pool,
            draws=QUICK_DRAWS if self.config.quick else self.config.draws,
            seed=self.config.seed,
        ).as_dict()


def _survives(after) -> dict:
    """What is left of the old answer: prompts that still prefer it, layers that do, and the neurons that made it."""
    asked = [after.after.prompt, *after.after.paraphrases]
    before = [after.before.prompt, *after.before.paraphrases]
    held = sum(max(n.before, 0.0) for n in after.neurons)
    return {
        "prompts": len(asked),
        "prompts_old_before": sum(c.prefers_true for c in before),
        "prompts_old": sum(c.prefers_true for c in asked),
        "layers_old": [row.layer for row in after.lens if row.after_true > max(row.after_new, SEEN)],
        "neurons_left": sum(max(n.after, 0.0) for n in after.neurons) / held if held else None,
    }


def plain(value: Any) -> Any:
    """`value` as JSON has it: dataclasses as objects, tuples as lists, None for numbers that are none."""
    if is_dataclass(value):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
