"""Choose ROME's settings for the default model on development facts, none of which is reported elsewhere.

    python -m benchmarks.rome_settings --facts 16

For each setting: efficacy, paraphrase and neighbourhood success (held-out templates left out), steps, seconds a fact.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from tqdm.auto import tqdm

import knowedit
from knowedit.edit.apply import applied
from knowedit.edit.contrast import contrast_facts, rates
from knowedit.edit.protect import protected_keys
from knowedit.edit.rome import SMOLLM2, rome_many
from knowedit.edit.values import Search

from .edit_facts import development
from .results import save

SETTINGS = {
    "as chosen": SMOLLM2,
    "no protected keys": replace(SMOLLM2, protect=0.0),
    "protected keys, weight 100": replace(SMOLLM2, protect=100.0),
    "key mean": replace(SMOLLM2, key="mean"),
    "1 context": replace(SMOLLM2, contexts=1),
    "5 contexts": replace(SMOLLM2, contexts=5),
    "lr 0.5, 25 steps": replace(SMOLLM2, search=Search(steps=25, lr=0.5, stop_loss=None)),
    "layer 0": replace(SMOLLM2, layer=0),
    "layer 3": replace(SMOLLM2, layer=3),
    "layer 6": replace(SMOLLM2, layer=6),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facts", type=int, default=16)
    options = parser.parse_args()
    model = knowedit.load()
    facts = development(options.facts)
    covariances = knowedit.covariance(model, sorted({setting.layer for setting in SETTINGS.values()}))
    found = {"unedited": _means(contrast_facts(model, facts, heldout=False))}
    for name, config in tqdm(SETTINGS.items(), unit="setting"):
        found[name] = _try(model, facts, config, covariances[config.layer])
        print(name, found[name], flush=True)
    save("rome_settings", {"facts": [fact.id for fact in facts], "settings": found})


def _try(model, facts, config, C) -> dict:
    protected = protected_keys(model, config.layer)
    start = time.perf_counter()
    edits = rome_many(model, facts, config, covariance=C, protected=protected)
    seconds = time.perf_counter() - start
    asked = []
    for fact, edit in zip(facts, edits, strict=True):
        with applied(model, edit):
            asked += contrast_facts(model, [fact], heldout=False)
    steps = sum(edit.notes["steps"] for edit in edits) / len(edits)
    return _means(asked) | {"steps": steps, "seconds_a_fact": seconds / len(facts)}


def _means(asked) -> dict:
    return {name: sum(values) / len(values) for name, values in rates(asked).items()}


if __name__ == "__main__":
    main()
