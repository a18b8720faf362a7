"""What `knowedit bench edit` would take: the facts, the forward passes and the memory of an `EditStudy`."""

from __future__ import annotations

from collections.abc import Sequence

from ...edit.methods.method import config_dict
from ...edit.methods.table import find_method, method_config
from ...edit.rewrite_quality import paraphrases_of
from ...errors import InputError
from ...facts import Fact
from ...models.adapter import Model
from ...sources import Source
from .config import EditStudyConfig
from .generation import ANSWER, CHAT, QUESTION, TEXT
from .metrics import metrics_of, pairs_of


def method_settings(config: EditStudyConfig, model: Model | None) -> dict:
    """The method by its name, and its settings; its defaults where the model, which would tell them, is None."""
    return {"name": config.method, **config_dict(method_config(config.method, config.settings, config.layer, model))}


def plan(config: EditStudyConfig, source: Source | None, facts: Sequence[Fact], model: Model | None) -> dict:
    """`passes`, sequences that run through the model by what for, and `memory`, bytes beside its weights.

    `facts` are the chosen ones of `source`; `model` has no weights. Either may be None where it is out of reach.
    """
    method = find_method(config.method)
    try:
        settings = method_config(config.method, config.settings, config.layer, model)
    except InputError:  # nothing was tuned for this model
        settings = method_config(config.method, config.settings, config.layer)
    passes = {}
    if source is not None:
        passes = method.passes(settings, facts, source.facts, model) | _asked(config, source, facts)
    return {"passes": passes, "memory": {} if model is None else method.memory(settings, model, config.batch)}


def _asked(config: EditStudyConfig, source: Source, facts: Sequence[Fact]) -> dict[str, int]:
    n = len(facts)
    metrics = metrics_of(source.format)
    queries = [len(pairs_of(fact, metrics)) for fact in facts]
    passes = {"before": sum(queries), "after": sum(queries)}
    if config.sequential:
        passes["checkpoints"] = sum(sum(queries[:edits]) for edits in config.checkpoints if edits <= n)
    if config.perplexity:
        passes["perplexity"] = n + 1
        passes["essence"] = 2 * n
    if config.generate:
        passes["written tokens"] = 2 * sum(map(_tokens, facts))
    return passes


def _tokens(fact: Fact) -> int:
    """The most tokens that are written about one fact; each is a forward pass of its own."""
    answers = ANSWER * (1 + len(paraphrases_of(fact, heldout=False)))
    return answers + QUESTION * len(fact.probes) + CHAT + TEXT * len(fact.generation)
