"""The chapters of the story of one fact: a row each, with what it tells and how its section of the page is called.

A chapter is one analysis that has a module and a command of its own; here all are asked about the same fact. A new one
is a function, its row in `CHAPTERS` and, where it has a section of its own, the template `NAME.html.j2`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from ...answers import ask
from ...display.result import plain
from ...edit.edit import Edit
from ...edit.preflight import Outcome, Preflight, outcome, preflight
from ...errors import InputError, ModelError
from ...evaluate.runs.engine import code_hash
from ...facts import Fact, fill
from ...hooks import bears_hooks
from ...locate.config import LocateConfig
from ...locate.fact_prompts import FactPrompts
from ...locate.locate import PromptScores, describe, mean_scores, score_prompts
from ...locate.neurons import NeuronSet
from ...locate.proof.effect import located_answers
from ...locate.proof.faithfulness import Faithfulness, faithfulness
from ...locate.proof.neuron_kinds import ControlPool
from ...locate.proof.proof import prove_located
from ...memory.neuron_card import CardConfig, cards
from ...models.adapter import Model
from ...models.cache import key_of, remembered
from ...models.length import check_length
from ...recall.flow.pipeline import recall_fact
from ...recall.lens import Contributions, logit_attribution, logit_lens
from ...recall.trace import TraceConfig, trace_facts
from ...sources import builtin_facts
from ...version import versions

MOST, CARDS = 10, 5  # neurons in all, and with a card
SEEN = 0.01  # an answer with less is nowhere ahead
QUICK_DRAWS, QUICK_PARAPHRASES, QUICK_TOKENS = 50, 2, 1024


@dataclass(frozen=True)
class ExplainConfig:
    """How thoroughly a fact is looked at.

    - `quick`: fewer paraphrases and draws, and the causal trace by gradients.
    - `layers`: where neurons are located; by default all.
    - `draws`: random sets in the proof; `seed`: of everything that is drawn.
    """

    quick: bool = False
    layers: tuple[int, ...] | None = None
    draws: int = 200
    seed: int = 0

    def __post_init__(self):
        if self.draws < 1:
            raise InputError(f"a proof needs random draws to compare with, {self.draws!r} were asked for; give 200")


class Story:
    """What is asked about, and what is told of it: by the chapters' names, beside what one hands to later ones.

    - `keeps`: read chapters that were told before from the cache, and keep those that are told. It is for a model that
      nobody changes meanwhile.
    - `told`: what each chapter tells; `notes`: why one cannot be told; `seconds`: how long each took.

    Raises `InputError` for a fact that cannot be asked.
    """

    def __init__(self, model: Model, fact: Fact, edit: Edit | None, config: ExplainConfig, keeps: bool = False):
        check_length(model, model.query_of(fact).steps[-1].ids)
        self.model, self.fact, self.edit, self.config = model, fact, edit, config
        self.pool = ControlPool(model, builtin_facts(), weights_hash=self.weights_hash)
        self.keeps = keeps and not bears_hooks(model.hf)
        self.parts: Contributions | None = None
        self.before: Preflight | None = None
        self.after: Outcome | None = None
        self.told: dict[str, Any] = {}
        self.notes: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def tell(self, chapter: Chapter) -> None:
        """Tell one chapter. What cannot be told leaves a note, or raises where the chapter is `needed`."""
        started = time.perf_counter()
        try:
            self.told[chapter.name] = self._kept(chapter) if self.keeps and chapter.kept else chapter.tell(self)
        except (InputError, ModelError) as error:
            if chapter.needed:
                raise
            self.notes[chapter.name] = str(error)
        self.seconds[chapter.name] = time.perf_counter() - started

    def _kept(self, chapter: Chapter) -> Any:
        """What the same code told of the same fact and weights before, as JSON values; else it is told, and kept."""
        fact = replace(self.fact, target_new=None, target_new_id=None, neighbours=())  # of edits alone
        about = {"chapter": chapter.name, "fact": fact.as_dict(), "ids": self.model.query_of(fact).steps[-1].ids}
        model = {"model": self.model.name, "weights": self.weights_hash, "dtype": str(self.model.dtype)}
        key = key_of({**about, **model, "config": asdict(self.config), "code": code_hash(), "versions": versions()})
        return remembered("explain", key, lambda: plain(chapter.tell(self)))

    @property
    def neurons(self) -> NeuronSet | None:
        """The located neurons, once they are told."""
        told = self.told.get("neurons")
        return NeuronSet.from_dict(told) if isinstance(told, dict) else told

    @cached_property
    def weights_hash(self) -> str:
        return self.model.weights_hash()

    @cached_property
    def locating(self) -> tuple[FactPrompts, LocateConfig]:
        """The prompts that locate neurons and prove them, and how."""
        config, fact = self.config, self.fact
        if config.quick:
            fact = replace(fact, paraphrases=fact.paraphrases[:QUICK_PARAPHRASES])
        return FactPrompts.all_of(fact), LocateConfig(layers=config.layers, most=MOST)

    @cached_property
    def scored(self) -> list[PromptScores]:
        """The scores of all neurons for the locating prompts."""
        prompts, config = self.locating
        return score_prompts(self.model, prompts, config, self.pool)


def _prediction(story: Story) -> dict:
    """The answer to the prompt and to every other way to ask."""
    fact, model = story.fact, story.model
    templates = [("prompt", fact.template)]
    templates += [("paraphrase", t) for t in fact.paraphrases] + [("held out", t) for t in fact.heldout]
    prompts = [(role, fill(template, fact.subject)) for role, template in templates]
    queries = [model.query_of(fact, prompt=prompt) for _, prompt in prompts]
    answers = [*ask(model, queries[:1], top=8), *ask(model, queries[1:], top=1)]
    return {
        **answers[0].as_dict(),
        "known": answers[0].known,
        "prompts": [
            {
                "role": role,
                "prompt": prompt,
                "probability": answer.probability,
                "rank": answer.rank,
                "first": answer.top[0][0],
            }
            for (role, prompt), answer in zip(prompts, answers, strict=True)
        ],
    }


def _lens(story: Story):
    """What the residual stream predicts after each layer at the read position."""
    fact = story.fact
    return logit_lens(story.model, fact.prompt, fact.target, subject=fact.subject, top=3, separator=fact.separator)


def _parts(story: Story) -> dict:
    """What each part of the model adds to the answer's logit."""
    fact = story.fact
    story.parts = logit_attribution(
        story.model, fact.prompt, fact.target, subject=fact.subject, separator=fact.separator
    )
    return story.parts.as_dict(heads=8, neurons=8)


def _trace(story: Story):
    """What brings the answer back after noise in the subject."""
    fact, config = story.fact, TraceConfig(fast=story.config.quick, seed=story.config.seed)
    return trace_facts(story.model, [fact], config)[0]


def _recall(story: Story):
    """Enrichment, propagation and extraction."""
    return recall_fact(story.model, story.fact)


def _neurons(story: Story) -> NeuronSet:
    """The neurons that make the answer, located on the prompt and its paraphrases."""
    prompts, config = story.locating
    return describe(story.model, prompts, story.scored, config, pool=story.pool, weights_hash=story.weights_hash)


def _cards(story: Story):
    """The strongest of them as keys and values, on the built-in facts."""
    if not (neurons := story.neurons):
        return None
    config = CardConfig(texts=4, words=8, seed=story.config.seed)
    if story.config.quick:
        config = replace(config, tokens=QUICK_TOKENS)
    weights_hash = story.weights_hash if story.keeps else None
    return cards(story.model, list(neurons)[:CARDS], "builtin", config, located=[neurons], weights_hash=weights_hash)


def _proof(story: Story):
    """What suppressing and amplifying them does on prompts that had no part in locating."""
    config = story.config
    if not (neurons := story.neurons):
        return None
    return prove_located(
        story.model,
        neurons,
        story.locating[0].heldout,
        pool=story.pool,
        draws=QUICK_DRAWS if config.quick else config.draws,
        seed=config.seed,
    )


def _faithfulness(story: Story) -> Faithfulness | None:
    """How much of the answer the first k neurons carry there, of all that are ranked by score."""
    if not (neurons := story.neurons):
        return None
    answers = located_answers(story.model, neurons, story.locating[0].heldout or [neurons.prompt], story.pool)
    return faithfulness(answers, mean_scores(story.scored))


def _edit(story: Story) -> dict | None:
    """Before and after, and what is left of the old answer."""
    if story.edit is None:
        return None
    saved = story.edit
    edit = replace(saved, facts=(story.fact,))  # asked about this fact, whatever prompt it was made for
    before = story.before = story.before or preflight(story.model, edit)
    after = story.after = outcome(story.model, edit, lens=True)
    layers = story.model.down_layers()
    return {
        "method": saved.method,
        "layers": sorted(layers[path] for path in saved.deltas),
        "content_hash": saved.content_hash,
        "created": saved.created,
        "own_prompt": saved.facts[0].prompt,
        "perplexity_change": None if after.perplexity_before is None else after.perplexity_change,
        **asdict(after.facts[0]),
        "perplexity_before": after.perplexity_before,
        "perplexity_after": after.perplexity_after,
        "preflight": before.fact_dict(),
        "survives": _survives(after.facts[0]),
    }


def _survives(after) -> dict:
    """What is left of the old answer: prompts that still prefer it, layers that do, and the neurons that made it."""
    prompts_after = [after.after.prompt, *after.after.paraphrases]
    prompts_before = [after.before.prompt, *after.before.paraphrases]
    held = sum(max(n.before, 0.0) for n in after.neurons)
    return {
        "prompts": len(prompts_after),
        "prompts_old_before": sum(c.prefers_true for c in prompts_before),
        "prompts_old": sum(c.prefers_true for c in prompts_after),
        "layers_old": [row.layer for row in after.lens if row.after_true > max(row.after_new, SEEN)],
        "neurons_left": sum(max(n.after, 0.0) for n in after.neurons) / held if held else None,
    }


@dataclass(frozen=True)
class Chapter:
    """One chapter: `tell` makes its part of the record of a `Story`.

    - `title`: of its section on the page, made by the template `NAME.html.j2`; None where it is told in another's.
    - `needed`: the story ends where this one cannot be told, since what was asked for is wrong.
    - `kept`: it tells of the fact as it is, whatever the edit: what takes long, and is kept in the cache.
    """

    name: str
    tell: Callable[[Story], Any]
    title: str | None = None
    needed: bool = False
    kept: bool = False


CHAPTERS = (
    Chapter("prediction", _prediction, "What it says", needed=True),
    Chapter("lens", _lens, "How the answer forms"),
    Chapter("parts", _parts),
    Chapter("trace", _trace, "Where it is looked up", kept=True),
    Chapter("recall", _recall, "How it travels", kept=True),
    Chapter("neurons", _neurons, "Which neurons say it", kept=True),
    Chapter("cards", _cards, kept=True),
    Chapter("proof", _proof, kept=True),
    Chapter("faithfulness", _faithfulness, kept=True),
    Chapter("edit", _edit, "With the edit", needed=True),
)
