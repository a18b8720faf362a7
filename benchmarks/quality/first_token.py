"""Edits of a one-token subject that is the prompt's first token: the known trap, and ways around it.

    python -m benchmarks.quality.first_token

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
from knowedit.edit.apply import applied
from knowedit.edit.methods.rome import SMOLLM2, RomeConfig, edit_of
from knowedit.edit.methods.v_star import find_v_star, request
from knowedit.edit.preflight import perplexity
from knowedit.edit.preserved_keys import lookup_keys, preserved_keys
from knowedit.edit.rewrite_quality import RewriteQuality, rates, rewrite_quality
from knowedit.facts import Fact, Neighbour, fill
from knowedit.statistics import proportion
from knowedit.texts.corpus import contexts

from ..results import save

TEMPLATE = "{} is a country whose capital is the city of"
PARAPHRASES = ("{} has its capital in the city of", "{}'s capital is the city of")
WORDS = "I heard that "  # before the subject
PARAPHRASES_LATER = ("The capital of {} is the city of", "We all know that {} has its capital in the city of")
FACTS, NEIGHBOURS = 24, 6
METRICS = ("ES", "PS", "NS", "ES_argmax", "PS_argmax", "NS_argmax")


@dataclass(frozen=True)
class Way:
    """How edits are made: from which prompt, `first` or `later`, in which layer, with which keys."""

    prompt: str = "first"
    layer: int = SMOLLM2.layer
    preserve: float = SMOLLM2.preserve
    key: str = SMOLLM2.key

    def settings(self, config: RomeConfig) -> RomeConfig:
        return replace(config, layer=self.layer, preserve=self.preserve, key=self.key)


WAYS = {
    "as it is": Way(),
    "as it is, no preserved keys": Way(preserve=0.0),
    "as it is, mixed keys": Way(preserve=0.0, key="mixed"),
    "in layer 0": Way(layer=0),
    "in layer 0, preserved keys weighted 100": Way(layer=0, preserve=100.0),
    "with words before the subject": Way(prompt="later"),
    "with words before the subject, in layer 0": Way(prompt="later", layer=0),
}


def main() -> None:
    model = knowedit.load()
    forms = _facts(model)
    layers = sorted({way.layer for way in WAYS.values()})
    C = knowedit.covariance(model, layers)
    preserved = {layer: preserved_keys(model, layer) for layer in layers}
    config = replace(SMOLLM2, contexts=contexts(model, SMOLLM2.contexts, SMOLLM2.lengths, seed=SMOLLM2.seed))
    found = {
        (form, layer): find_v_star(
            model,
            [request(model, fact, fact.target_new, config.contexts) for fact in forms[form]],
            layer,
            config.search,
        )
        for form, layer in sorted({(way.prompt, way.layer) for way in WAYS.values()})
    }
    clean = perplexity(model)
    unedited = {form: _rates(rewrite_quality(model, facts)) for form, facts in forms.items()}
    ways = {}
    for name, way in tqdm(WAYS.items(), unit="way"):
        asked, rises = {form: [] for form in forms}, []
        for i, value in enumerate(found[way.prompt, way.layer]):
            settings = way.settings(config)
            edit = edit_of(model, forms[way.prompt][i], value, C[way.layer], preserved[way.layer], settings)
            with applied(model, edit):
                for form, facts in forms.items():
                    asked[form] += rewrite_quality(model, [facts[i]])
                rises.append(perplexity(model) / clean - 1)
        after = {form: _rates(contrasts) for form, contrasts in asked.items()}
        ways[name] = vars(way) | after | {"perplexity_rise": {"mean": float(np.mean(rises)), "worst": max(rises)}}
    record = {
        "n": len(forms["first"]),
        "facts": [f"{fact.subject} → {fact.target_new}" for fact in forms["first"]],
        "mean_correlation_of_keys": {
            form: {layer: _correlation(model, layer, facts) for layer in layers} for form, facts in forms.items()
        },
    }
    save("quality/first_token", record | {"unedited": unedited, "ways": ways})


def _facts(model) -> dict[str, list[Fact]]:
    """The same facts in both forms."""
    short = [
        fact
        for fact in knowedit.builtin_facts()
        if fact.relation == "P36" and len(model.tokenizer(fact.subject)["input_ids"]) == 1
    ][:FACTS]
    forms = {"first": (TEMPLATE, PARAPHRASES), "later": (WORDS + TEMPLATE, PARAPHRASES_LATER)}
    return {form: [_asked_as(fact, short, *templates) for fact in short] for form, templates in forms.items()}


def _asked_as(fact: Fact, all_: Sequence[Fact], template: str, paraphrases: tuple[str, ...]) -> Fact:
    others = [other for other in all_ if other.subject != fact.subject and other.target != fact.target]
    near = tuple(Neighbour(fill(template, o.subject), o.target, o.subject) for o in others[:NEIGHBOURS])
    return replace(fact, template=template, paraphrases=paraphrases, heldout=(), neighbours=near)


def _correlation(model, layer: int, facts: Sequence[Fact]) -> float:
    keys = lookup_keys(model, layer, [model.encode(fact.prompt, fact.subject) for fact in facts])
    return torch.nanmean(torch.corrcoef(keys).fill_diagonal_(float("nan"))).item()


def _rates(asked: Sequence[RewriteQuality]) -> dict[str, dict]:
    by_name = rates(asked)
    return {name: proportion(by_name[name]).as_dict() for name in METRICS}


if __name__ == "__main__":
    main()
