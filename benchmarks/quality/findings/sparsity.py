"""The section about sparsity (Geva et al. 2021): how many neurons work, and whether one alone makes a prediction."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from knowedit.memory.corpus_scan import scan
from knowedit.memory.sparsity import SparsityConfig, active_by_layer, keep_strongest
from knowedit.memory.values import compositional, mean_compositional
from knowedit.statistics import mean

from .sample import Sample
from .words import Row, percent

SCANNED, READ_OUT = 8192, 1024  # tokens of text, and of these for what layers say
KEPT = {"kept_at_last_token": ("read", "the last token"), "kept_at_all_tokens": ("all", "every token")}


def sparsity(sample: Sample) -> dict:
    model = sample.model
    seen = scan(model, tokens=SCANNED, top=1)
    active = active_by_layer(seen)
    prompts = [query.prompt for query in sample.queries()]
    predictions = compositional(model, seen, samples=READ_OUT)
    shares = [layer.active.value for layer in active]
    least, most = int(np.argmin(shares)), int(np.argmax(shares))
    return {
        "definition": seen.definition,
        "tokens": seen.tokens,
        "texts": len(seen.rows),
        "active": mean(seen.row_active.mean(0).numpy()).as_dict(),
        "least": {"layer": least, **active[least].active.as_dict()},
        "most": {"layer": most, **active[most].active.as_dict()},
        "effective": mean(seen.row_effective.mean(0).numpy()).as_dict(),
        "curves": {"active": shares, "effective": [layer.effective.value for layer in active]},
        "never_active": sum(layer.never for layer in active),
        **{
            name: [kept.as_dict() for kept in keep_strongest(model, prompts, SparsityConfig(draws=1, at=at))]
            for name, (at, _) in KEPT.items()
        },
        "compositional": {
            "mean": mean_compositional(predictions).as_dict(),
            "layers": [layer.as_dict() for layer in predictions],
        },
    }


def sparsity_rows(section: dict) -> Iterator[Row]:
    texts, least, most = f"{section['texts']} texts", section["least"], section["most"]
    extremes = f"layer {least['layer']} {percent(least)}, layer {most['layer']} {percent(most)}"
    active = f"{percent(section['active'])}; {extremes}"
    yield "active neurons, mean of layers, least, most", active, texts, "10 to 50 % (Geva et al. 2021)†"
    yield "neurons that carry a layer (effective share)", percent(section["effective"]), texts, ""
    for name, (_, where) in KEPT.items():
        for kept in section[name]:
            if kept["share"] in (0.05, 0.1, 0.3):
                title = f"p left when each layer keeps its strongest {100 * kept['share']:.0f} % at {where}"
                words = f"{percent(kept['ratio'])}; at random {percent(kept['random_ratio'])}"
                yield title, words, str(kept["ratio"]["n"]), ""
    predictions = section["compositional"]
    layers = sorted(predictions["layers"], key=lambda layer: layer["share"]["value"])
    least, most = layers[0], layers[-1]
    yield (
        "predictions of a layer that none of its active neurons makes, mean of layers, least, most",
        f"{percent(predictions['mean'])}; layer {least['layer']} {percent(least['share'])}, "
        f"layer {most['layer']} {percent(most['share'])}",
        f"{least['tokens']} tokens of {least['share']['n']} texts",
        "at least 68 % (Geva et al. 2021)†",
    )
