"""Stage 3: the neurons that make the answer, their proof and cards, and the answer with them scaled."""

from __future__ import annotations

from collections.abc import Sequence

from ..display.result import plain
from ..errors import InputError
from ..locate.neurons import NeuronSet
from ..memory.neuron_card import CardConfig, cards
from ..models.adapter import Model
from ..report.page.story import MOST, QUICK_TOKENS
from .jobs import Report
from .render import chapters, fill
from .tab import Tab

SLIDERS = MOST  # one for each neuron that is located at most


def locate(tab: Tab, report: Report) -> tuple[str, list[str]]:
    """Locate the neurons of what was asked and prove them: the chapter, and the names of the neurons."""
    told = tab.asked
    report("locating: integrated gradients on each way to ask")
    told.need("neurons")
    report("proving: random neurons beside them")
    record = told.need("proof")
    return chapters(record, "neurons"), names(told.story.neurons)


def names(neurons: NeuronSet | None) -> list[str]:
    """The neurons as `layer/index`."""
    return [f"{layer}/{index}" for layer, index in neurons or ()]


def scaled(tab: Tab, factors: Sequence[float]) -> tuple[float, float]:
    """The answer's probability as the model is, and with the located neurons multiplied by `factors`."""
    told = tab.asked
    if not told.story.neurons:
        raise InputError("no neurons are located for this fact; locate them first")
    sites = list(told.story.neurons)
    probability = told.answers.scaled([sites], [list(factors)[: len(sites)]])
    return float(told.answers.probability[0]), float(probability[0, 0])


def gauge(tab: Tab, factors: Sequence[float]) -> str:
    """Both as bars."""
    before, after = scaled(tab, factors)
    return fill("gauge", target=tab.asked.story.fact.target, before=before, after=after)


def card(model: Model, tab: Tab, report: Report, name: str) -> str:
    """The card of a located neuron: what wakes it, what it promotes, what goes without it."""
    located = tab.asked.story.neurons
    if name not in names(located):
        raise InputError(f"the neuron {name} is not one of those that were located; locate them again")
    layer, index = map(int, name.split("/"))
    step = report("reading texts for the card", QUICK_TOKENS)
    config = CardConfig(texts=5, words=10, tokens=QUICK_TOKENS)
    found = cards(model, [(layer, index)], "builtin", config, located=[located], progress=step)
    return fill("cards", plain({"cards": found}))
