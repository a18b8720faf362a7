"""Edits of a one-token subject that is the prompt's first token: the known trap, with and without protected keys.

    python -m benchmarks.first_token

Facts are capitals of countries with one-token names, asked as "{} is a country whose capital is the city of", so that
the lookup position is 0, where keys of different tokens nearly coincide. Neighbours are other such countries in the
same words, the hardest ones; none of them is among the protected keys of the fact that they measure.
"""

from __future__ import annotations

from dataclasses import replace

import torch

import knowedit
from knowedit.edit.apply import applied
from knowedit.edit.check import perplexity
from knowedit.edit.contrast import contrast_facts, rates
from knowedit.edit.protect import lookup_keys, protected_keys
from knowedit.edit.rome import SMOLLM2, edit_of
from knowedit.edit.values import optimise, request
from knowedit.facts import Neighbour, fill
from knowedit.texts.corpus import contexts

from .results import save

TEMPLATE = "{} is a country whose capital is the city of"
PARAPHRASES = ("{} has its capital in the city of", "{}'s capital is the city of")
FACTS, NEIGHBOURS = 12, 6


def main() -> None:
    model = knowedit.load()
    facts = _facts(model)
    layer = SMOLLM2.layer
    C = knowedit.covariance(model, [layer])[layer]
    protected = protected_keys(model, layer)
    config = replace(SMOLLM2, contexts=contexts(model, SMOLLM2.contexts, SMOLLM2.lengths, seed=SMOLLM2.seed))
    asked = [request(model, fact, fact.target_new, config.contexts) for fact in facts]
    values = optimise(model, asked, layer, config.search)
    keys = lookup_keys(model, layer, [model.encode(fact.prompt, fact.subject) for fact in facts])
    cosines = torch.corrcoef(keys).fill_diagonal_(float("nan"))
    found = {"unedited": _means(contrast_facts(model, facts))}
    for name, settings in (
        ("protected keys", config),
        ("no protected keys", replace(config, protect=0.0)),
        ("mixed keys", replace(config, protect=0.0, key="mixed")),
    ):
        after, rises = [], []
        for fact, value in zip(facts, values, strict=True):
            edit = edit_of(model, fact, value, C, protected, settings)
            before = perplexity(model)
            with applied(model, edit):
                after += contrast_facts(model, [fact])
                rises.append(perplexity(model) / before - 1)
        found[name] = _means(after) | {"perplexity_rise": {"mean": sum(rises) / len(rises), "worst": max(rises)}}
    record = {"facts": [f"{fact.subject} → {fact.target_new}" for fact in facts], "mean_correlation_of_keys": None}
    record["mean_correlation_of_keys"] = torch.nanmean(cosines).item()
    save("first_token", record | {"settings": found})


def _facts(model) -> list:
    short = [
        fact
        for fact in knowedit.builtin_facts()
        if fact.relation == "P36" and len(model.tokenizer(fact.subject)["input_ids"]) == 1
    ][:FACTS]
    facts = []
    for fact in short:
        others = [other for other in short if other.subject != fact.subject and other.target != fact.target]
        near = tuple(Neighbour(fill(TEMPLATE, o.subject), o.target, o.subject) for o in others[:NEIGHBOURS])
        facts.append(replace(fact, template=TEMPLATE, paraphrases=PARAPHRASES, heldout=(), neighbours=near))
    return facts


def _means(asked) -> dict:
    return {name: sum(values) / len(values) for name, values in rates(asked).items()}


if __name__ == "__main__":
    main()
