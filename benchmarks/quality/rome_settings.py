"""Choose ROME's settings for the default model on development facts, none of which is reported elsewhere.

    python -m benchmarks.quality.rome_settings --facts 12

For each setting: efficacy, paraphrase and neighbourhood success (held-out templates left out), how many other known
facts are still answered, perplexity, steps and seconds a fact; and how few tokens suffice for the covariance.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from tqdm.auto import tqdm

import knowedit
from knowedit.answers import ask_facts
from knowedit.edit.apply import applied
from knowedit.edit.methods.rome import SMOLLM2, edit_of
from knowedit.edit.methods.v_star import find_v_star, request
from knowedit.edit.preflight import perplexity
from knowedit.edit.preserved_keys import preserved_keys
from knowedit.edit.rewrite_quality import rates, rewrite_quality
from knowedit.texts.corpus import contexts

from ..results import save
from .edit_facts import development

SETTINGS = {
    "as chosen": SMOLLM2,
    "no preserved keys": replace(SMOLLM2, preserve=0.0),
    "preserved keys, weight 10": replace(SMOLLM2, preserve=10.0),
    "key mean": replace(SMOLLM2, key="mean"),
    "clamp 4": replace(SMOLLM2, search=replace(SMOLLM2.search, clamp=4.0)),
    "clamp 3": replace(SMOLLM2, search=replace(SMOLLM2.search, clamp=3.0)),
    "1 context": replace(SMOLLM2, contexts=1),
    "layer 3": replace(SMOLLM2, layer=3),
}
TOKENS = (1024, 2048, 4096)  # of the covariance, without preserved keys
OTHERS = 24  # known facts that should still be answered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facts", type=int, default=12)
    options = parser.parse_args()
    model = knowedit.load()
    facts = development(options.facts)
    tried = _Trial(model, facts)
    found = {"unedited": _means(rewrite_quality(model, facts, heldout=False))}
    for name, config in tqdm(SETTINGS.items(), unit="setting"):
        found[name] = tried.means(config)
        print(name, found[name], flush=True)
    for tokens in TOKENS:
        name = f"no preserved keys, covariance of {tokens} tokens"
        found[name] = tried.means(replace(SMOLLM2, preserve=0.0), tokens)
        print(name, found[name], flush=True)
    save("quality/rome_settings", {"facts": [fact.id for fact in facts], "settings": found})


class _Trial:
    """Settings that differ in the key or the preserved keys alone share their searches."""

    def __init__(self, model, facts):
        self.model, self.facts = model, facts
        layers = sorted({setting.layer for setting in SETTINGS.values()})
        self.covariances = knowedit.covariance(model, layers)
        self.preserved = {layer: preserved_keys(model, layer) for layer in layers}
        self.searches: dict = {}
        others = [f for f in development(4 * OTHERS) if f not in set(facts)]
        known = [fact for fact, answer in zip(others, ask_facts(model, others), strict=True) if answer.known]
        self.others = known[:OTHERS]
        self.perplexity = perplexity(model)

    def means(self, config, tokens: int | None = None) -> dict:
        model, layer = self.model, config.layer
        C = self.covariances[layer]
        if tokens is not None:
            C = knowedit.covariance(model, [layer], tokens=tokens, few=True)[layer]
        key = layer, config.search, config.contexts
        if key not in self.searches:
            texts = contexts(model, config.contexts, config.lengths, seed=config.seed)
            start = time.perf_counter()
            asked = [request(model, fact, fact.target_new, texts) for fact in self.facts]
            values = find_v_star(model, asked, layer, config.search)
            self.searches[key] = values, texts, (time.perf_counter() - start) / len(self.facts)
        values, texts, seconds = self.searches[key]
        config = replace(config, contexts=texts)
        found, kept, rises, norms = [], [], [], []
        for fact, value in zip(self.facts, values, strict=True):
            edit = edit_of(model, fact, value, C, self.preserved[layer], config)
            norms += [delta.norm() for delta in edit.deltas.values()]
            others = [other for other in self.others if other.subject != fact.subject]
            with applied(model, edit):
                found += rewrite_quality(model, [fact], heldout=False)
                kept += [answer.known for answer in ask_facts(model, others)]
                rises.append(perplexity(model) / self.perplexity - 1)
        return _means(found) | {
            "other_facts_kept": sum(kept) / len(kept),
            "perplexity_rise": {"mean": sum(rises) / len(rises), "worst": max(rises)},
            "relative_norm": sum(norms) / len(norms) / model.down_weight(layer).norm().item(),
            "steps": sum(value.steps for value in values) / len(values),
            "seconds_a_fact": seconds,
        }


def _means(asked) -> dict:
    return {name: sum(values) / len(values) for name, values in rates(asked).items()}


if __name__ == "__main__":
    main()
