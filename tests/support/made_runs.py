"""Finished runs made of drawn numbers, written by the store and summarised as real ones are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from support.trained import CITIES, facts

from knowedit.evaluate.edits import summary as edit_summary
from knowedit.evaluate.neurons import summary as neuron_summary
from knowedit.evaluate.runs.folder import RunFolder, summary_of, writing
from knowedit.facts import Neighbour
from knowedit.locate.neurons import Neuron, NeuronSet
from knowedit.locate.proof.effect import Effect
from knowedit.locate.proof.faithfulness import Faithfulness
from knowedit.sources import Source
from knowedit.statistics import Estimate

RELATIONS = ("capital", "author", "sport")
METHODS = {
    "located": (0.2, 1.7),
    "activation": (0.8, 1.1),
    "random": (1.0, 1.0),
}  # what is left when suppressed, amplified


def edit_row(i: int, rng: np.random.Generator, skill: float, relation: str | None = None) -> dict:
    """A record whose edit takes with probability `skill`."""

    def drawn(p: float) -> dict:
        good = float(rng.random() < p)
        return {"ES": good, "PS": rng.integers(0, 4) / 3 * good, "NS": rng.integers(2, 4) / 3, "EM": good * 2 * p - 1}

    return {
        "id": f"r/{i}", "relation": relation or RELATIONS[i % len(RELATIONS)], "subject": f"s{i}",
        "before": drawn(0.1), "after": {**drawn(skill), "perplexity": float(rng.normal(0, 0.01))},
        "edit": {"method": "rome"}, "seconds": {"edit": 0.1},
    }  # fmt: skip


def located(method: str, sites, relation: str | None = None, fact: str | None = None) -> dict:
    """A neuron set at these sites, as a record holds it."""
    neurons = tuple(Neuron(layer, index, 0.1, None, 1.0, 1.0, "fact") for layer, index in sites)
    values = {"relation": relation, "fact": fact, "subject": "s"}
    return NeuronSet("tiny", "m", "s lives in", "Aldor", neurons, 0.5, method, **values).as_dict()


def proof(before, suppressed, amplified, *, rivals=None, control=None, specificity=None) -> dict:
    """The raw effect of neurons as a record holds it: probabilities by prompt, and of the controls by draw."""
    drawn = control or {"suppressed": [np.mean(before)] * 4, "amplified": [np.mean(before)] * 4}
    control = {what: np.array(values) for what, values in drawn.items()}
    effect = Effect(
        before=np.array(before),
        suppressed=np.array(suppressed),
        amplified=np.array(amplified),
        control={"activation": control, "layer": control},
        match={"located": 1.0, "drawn": 1.0, "drawn_by_layer": 0.5},
        neurons=3,
        specificity=specificity or {},
        recalled=1.0,
        alone={"located": np.divide(before, 2), "none": np.divide(before, 9), "drawn": np.full(4, np.mean(before) / 8)},
        rivals=rivals or {},
    )
    return effect.as_dict()


CURVES = Faithfulness((0, 5, 10), 10, (0.0, 0.6, 0.5), (0.5, 0.2, 0.0), (0.0, 0.3, 0.5), 0.8, 0.4).as_dict()


def neuron_row(i: int, rng: np.random.Generator, method: str, strength: float = 1.0) -> dict:
    before = rng.uniform(0.2, 0.9, 3)

    def changed(name: str) -> dict[str, np.ndarray]:
        less, more = METHODS[name]
        noise = rng.uniform(0.95, 1.05, 3)
        return {"suppressed": before * noise * less**strength, "amplified": before * noise * more**strength}

    def drawn_sites() -> list:
        return [[int(layer), int(rng.integers(0, 9))] for layer in rng.integers(0, 6, 3)]

    others = {what: np.array([value]) for what, value in (("before", 0.5), ("suppressed", 0.4), ("amplified", 0.55))}
    specificity = {"same_relation": others, "other_relations": others}
    own, sites = changed("located"), drawn_sites()
    rivals, rival_sites = {"activation": changed("activation")}, {"activation": drawn_sites()}
    relation = RELATIONS[i % len(RELATIONS)]
    return {
        "id": f"r/{i}", "relation": relation, "subject": f"s{i}", "located": located(method, sites, relation, f"r/{i}"),
        "proof": proof(before, **own, rivals=rivals, control=changed("random"), specificity=specificity),
        "rivals": rival_sites, "faithfulness": CURVES, "seconds": {"locate": 0.1},
    }  # fmt: skip


def checkpoint(edits: int, rows: list[dict]) -> dict:
    means = edit_summary.summarise(row["after"] for row in rows)
    metrics = {name: mean.as_dict() for name, mean in means.items()}
    return {"edits": edits, "metrics": {**metrics, "perplexity": Estimate(0.01, None, None, 1).as_dict()}}


def write_run(folder: Path, rows: list[dict], study: str = "edit", data: str = "d", **config) -> RunFolder:
    """A finished run of these records; `config` beside a seed and the source."""
    method = {"method": "rome"} if study == "edit" else {"locate": {"method": "ig"}}
    config = {"seed": 0, "source": "builtin", **method, **config}
    identity = {"data": data, "model": "m", "model_name": "tiny"}
    with writing(folder, {"study": study, "config": config, "identity": identity, "threads": 1}) as writer:
        writer.append(rows)

        def summarise(sound):
            if study == "edit":
                return {**edit_summary.summary(sound), "skipped": 1}
            found = neuron_summary.summary(sound, layers=6)
            found.pop("located")
            return {**found, "skipped": 0}

        writer.finish(summary_of(writer.run, summarise, 2.5))
        return writer.run


def edit_run(folder: Path, skill: float = 0.9, n: int = 30, seed: int = 0, **options) -> RunFolder:
    rng = np.random.default_rng(seed)
    return write_run(folder, [edit_row(i, rng, skill) for i in range(n)], **options)


def sequential_run(folder: Path, skill: float = 0.9, n: int = 30, **options) -> RunFolder:
    rng = np.random.default_rng(1)
    rows = [edit_row(i, rng, skill - 0.5 * i / n) for i in range(n)]
    for edits in (1, 3, 10, 30):
        rows[edits - 1]["checkpoint"] = checkpoint(edits, rows[:edits])
    return write_run(folder, rows, sequential=True, **options)


def neuron_run(
    folder: Path, method: str = "ig", n: int = 24, strength: float = 1.0, seed: int = 0, **options
) -> RunFolder:
    rng = np.random.default_rng(seed)
    rows = [neuron_row(i, rng, method, strength) for i in range(n)]
    return write_run(folder, rows, "neurons", locate={"method": method}, **options)


def trained_source(n: int = 6) -> Source:
    """The trained model's facts about homes, each to be moved to the next city, beside somebody who lives elsewhere."""
    homes = [fact for fact in facts() if fact.relation == "home"][:n]
    moved = []
    for i, fact in enumerate(homes):
        other = homes[(i + 1) % n]
        city = CITIES[(CITIES.index(fact.target) + 1) % len(CITIES)]
        moved.append(replace(fact, target_new=city, neighbours=(Neighbour(other.prompt, other.target),)))
    return Source("made", "facts", tuple(moved), (), "0" * 64)
