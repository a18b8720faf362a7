"""Batches of facts that are edited one on top of the other, as MEMIT was published, and a set of the same facts.

Each batch is a set of its own on the model as those before it left it: rows and keys are found there, the change is
solved for the batch alone, nothing keeps what came before but C and the preserved keys, which are the unedited model's.
Everything else is as in a fact set of the batch's size, the layers too, so that what differs is the history. At some
numbers of facts those so far are asked, or so many of them, evenly.

Perplexity is that of many short texts of all sorts, which it is measured on elsewhere (Yang et al. 2024, arXiv
2402.09656), beside that of the one text in plain words that `bench edit` has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from tqdm.auto import tqdm

import knowedit
from knowedit import Fact, FactSet, Model
from knowedit.edit.covariance import covariance
from knowedit.edit.fact_set.config import layers_for
from knowedit.edit.preserved_keys import preserved_keys
from knowedit.edit.rewrite_quality import mean_of, rates, rewrite_quality
from knowedit.evaluate.edits.drift import Drift
from knowedit.selection import evenly_spaced

from ..registry import benchmark
from ..samples import editable

SHOWN = {"ES": "ES", "ES_argmax": "argmax", "PS": "PS", "NS": "NS"}
LONGEST = 128  # tokens of a text


@benchmark("robustness.stacked_batches", "What do batches of facts do that are edited one on top of the other?")
def stacked_batches(
    source: str,
    texts: str,
    facts: int = 500,
    size: int = 100,
    asked_at: tuple[int, ...] = (100, 300, 500),
    asked: int = 200,
) -> dict:
    """`source`: a CounterFact file, of whose first `facts` every `size` are a batch; sets may be larger. `texts`: a
    JSON list of records with a `Text` each, such as ME-PPL's. `asked`: facts at each number of `asked_at`, and texts.
    """
    model = knowedit.load()
    contents = editable(source)
    plain = [record["Text"] for record in json.loads(Path(texts).read_text(encoding="utf-8"))][:asked]
    measure = Measure(model, plain, asked)
    points: dict[str, dict[str, dict]] = {
        "unedited": {str(facts): measure(contents[:facts])},
        "a set": {},
        "stacked": {},
    }
    held = FactSet(model)
    for n in tqdm(sorted({min(n, len(contents)) for n in asked_at}), unit="set"):
        held.add([fact for fact in contents[:n] if fact.id not in held])
        with held.applied():
            points["a set"][str(n)] = measure(contents[:n])
    for so_far in tqdm(stacked(model, contents[:facts], size), unit="batch", total=math.ceil(facts / size)):
        if so_far in asked_at:
            points["stacked"][str(so_far)] = measure(contents[:so_far])
    return {"model": model.name, "batch": size, "asked": asked, "texts": len(plain), "points": points}


def stacked(model: Model, facts: Sequence[Fact], size: int) -> Iterator[int]:
    """Edit one batch after the other, each on top of those before it; yields how many facts were edited so far."""
    config = FactSet(model).config  # with the contexts that the unedited model wrote
    assert config.rows.layer is not None
    layers = layers_for(model, config.rows.layer, size)
    C = covariance(model, layers)
    keys = {layer: preserved_keys(model, layer) for layer in layers}
    for start in range(0, len(facts), size):
        batch = facts[start : start + size]
        as_it_is = knowedit.wrap(deepcopy(model.hf), model.tokenizer, name=model.name)  # a copy has no edits on it
        held = FactSet(as_it_is, config, covariance=C, preserved=keys)
        held.add(batch)
        knowedit.apply(model, held.edit())
        yield start + len(batch)


class Measure:
    """What is asked at a number of facts; perplexities relative to those of the model as it was at first."""

    def __init__(self, model: Model, texts: Sequence[str], asked: int):
        self.model, self.drift, self.asked = model, Drift(model), asked
        encoded = [model.tokenizer(text)["input_ids"][:LONGEST] for text in texts]
        self.ids = [torch.tensor([ids], device=model.device) for ids in encoded if len(ids) > 1]
        self.before = self.nll()

    def __call__(self, facts: Sequence[Fact]) -> dict:
        rated = rates(rewrite_quality(self.model, evenly_spaced(facts, self.asked), heldout=False))
        means = {name: mean_of([value for value in values if not math.isnan(value)]) for name, values in rated.items()}
        rises = {"perplexity": self.drift.perplexity([None])[0], "texts": math.exp(self.nll() - self.before) - 1}
        return {name: means[name] for name in SHOWN} | rises

    @torch.no_grad()
    def nll(self) -> float:
        """Nats a token, over all tokens of all texts but the first of each."""
        total, n = 0.0, 0
        for ids in self.ids:
            log_p = self.model.hf(ids).logits[0, :-1].float().log_softmax(-1)
            total -= log_p.gather(1, ids[0, 1:, None]).sum().item()
            n += ids.shape[1] - 1
        return total / n


@stacked_batches.row
def stacked_batches_row(record: dict) -> list[str]:
    return [
        f"{arm}, {int(n):,} facts: "
        + ", ".join(f"{word} {100 * point[name]:.1f}" for name, word in SHOWN.items())
        + (
            f"; perplexity {point['perplexity']:+.1%}, of {record['texts']:,} texts {point['texts']:+.1%}"
            * (arm != "unedited")
        )
        for arm, points in record["points"].items()
        for n, point in points.items()
    ]
