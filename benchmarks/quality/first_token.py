"""Edits of a one-token subject that is the prompt's first token: the known trap, and ways around it.

Facts are capitals of countries with one-token names, asked as "{} is a country whose capital is the city of", so that
the lookup position is 0, where keys of different tokens nearly coincide above layer 0; and asked with words before the
subject. Neighbours are other such countries in the same words, the hardest ones; none of them is among the preserved
keys of the fact that they measure. Every edit is asked for in both forms, whichever it was made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm.auto import tqdm

import knowedit
from knowedit.edit.methods.rome import SMOLLM2
from knowedit.edit.preserved_keys import lookup_keys
from knowedit.edit.rewrite_quality import PARTS, RewriteQuality, rates, rewrite_quality
from knowedit.facts import Fact, Neighbour, fill
from knowedit.models.adapter import Model
from knowedit.statistics import proportion

from ..editing import Rome
from ..registry import benchmark

TEMPLATE = "{} is a country whose capital is the city of"
WORDS = "I heard that "  # before the subject
FORMS = {  # the prompt, and its paraphrases
    "first": (TEMPLATE, ("{} has its capital in the city of", "{}'s capital is the city of")),
    "later": (
        WORDS + TEMPLATE,
        ("The capital of {} is the city of", "We all know that {} has its capital in the city of"),
    ),
}
FACTS, NEIGHBOURS = 24, 6
METRICS = ("ES", "PS", "NS", "ES_argmax", "PS_argmax", "NS_argmax")


@dataclass(frozen=True)
class Way:
    """How edits are made: from which form of the prompt, in which layer, with which keys."""

    prompt: str = "first"
    layer: int = SMOLLM2.layer
    preserve: float = SMOLLM2.preserve
    key: str = SMOLLM2.key


WAYS = {
    "as it is": Way(),
    "as it is, no preserved keys": Way(preserve=0.0),
    "as it is, mixed keys": Way(preserve=0.0, key="mixed"),
    "in layer 0": Way(layer=0),
    "in layer 0, preserved keys weighted 100": Way(layer=0, preserve=100.0),
    "with words before the subject": Way(prompt="later"),
    "with words before the subject, in layer 0": Way(prompt="later", layer=0),
}


@benchmark("quality.first_token", "How good are edits of a subject that is the prompt's first token, and what helps?")
def first_token(facts: int = FACTS) -> dict:
    """`facts` are at most so many capitals."""
    layers = sorted({way.layer for way in WAYS.values()})
    rome = Rome(layers)
    model, config, forms = rome.model, rome.with_contexts(), _facts(rome.model, facts)
    searches = sorted({(way.prompt, way.layer) for way in WAYS.values()})
    values = {(form, layer): rome.searched(forms[form], replace(config, layer=layer)) for form, layer in searches}
    ways = {}
    for name, way in tqdm(WAYS.items(), unit="way"):
        settings = replace(config, layer=way.layer, preserve=way.preserve, key=way.key)
        edits = rome.edits(forms[way.prompt], values[way.prompt, way.layer], settings)
        each = rome.each_applied(edits, lambda i: [rewrite_quality(model, [both[i]])[0] for both in forms.values()])
        pairs, rises = zip(*each, strict=True)
        after = {form: _rates(states) for form, states in zip(forms, zip(*pairs, strict=True), strict=True)}
        ways[name] = vars(way) | after | {"perplexity_rise": {"mean": float(np.mean(rises)), "worst": max(rises)}}
    return {
        "n": len(forms["first"]),
        "facts": [f"{fact.subject} → {fact.target_new}" for fact in forms["first"]],
        "mean_correlation_of_keys": {
            form: {layer: _correlation(model, layer, both) for layer in layers} for form, both in forms.items()
        },
        "unedited": {form: _rates(rewrite_quality(model, both)) for form, both in forms.items()},
        "ways": ways,
    }


@first_token.row
def first_token_row(record: dict) -> list[str]:
    def parts(state: dict) -> str:
        first, later = (", ".join(f"{100 * state[form][name]['value']:.0f}" for name in PARTS) for form in FORMS)
        return f"{first} and {later}"

    lines = [f"{record['n']} facts, {', '.join(PARTS)} asked so and with words before it"]
    lines.append(f"unedited: {parts(record['unedited'])}")
    for name, way in record["ways"].items():
        lines.append(f"{name}: {parts(way)}; worst perplexity {way['perplexity_rise']['worst']:+.1%}")
    return lines


def _facts(model: Model, n: int) -> dict[str, list[Fact]]:
    """The same facts in both forms."""
    short = [
        fact
        for fact in knowedit.builtin_facts()
        if fact.relation == "P36" and len(model.tokenizer(fact.subject)["input_ids"]) == 1
    ][:n]
    return {form: [_in_form(fact, short, *templates) for fact in short] for form, templates in FORMS.items()}


def _in_form(fact: Fact, all_facts: Sequence[Fact], template: str, paraphrases: tuple[str, ...]) -> Fact:
    others = [other for other in all_facts if other.subject != fact.subject and other.target != fact.target]
    near = tuple(Neighbour(fill(template, o.subject), o.target, o.subject) for o in others[:NEIGHBOURS])
    return replace(fact, template=template, paraphrases=paraphrases, heldout=(), neighbours=near)


def _correlation(model: Model, layer: int, facts: Sequence[Fact]) -> float:
    keys = lookup_keys(model, layer, [model.encode(fact.prompt, fact.subject) for fact in facts])
    return torch.nanmean(torch.corrcoef(keys).fill_diagonal_(float("nan"))).item()


def _rates(pairs: Sequence[RewriteQuality]) -> dict[str, dict]:
    by_name = rates(pairs)
    return {name: proportion(by_name[name]).as_dict() for name in METRICS}
