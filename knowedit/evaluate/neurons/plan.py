"""What `knowedit bench neurons` would take: the facts, the forward passes and the memory of a `NeuronStudy`."""

from __future__ import annotations

from collections.abc import Sequence

from ...facts import Fact
from ...locate.rankings import ranking_passes
from ...models.adapter import Model
from ...sources import Source
from .study import (
    ASKED,
    NODES_EVERY,
    NODES_GRID,
    OTHERS,
    NeuronStudyConfig,
    chosen_facts,
    prompts_of,
    usable_facts,
)

__all__ = ["chosen_facts", "method_settings", "plan", "usable_facts"]


def method_settings(config: NeuronStudyConfig, model: Model | None) -> dict:
    """What the method has beside the settings of the study: nothing."""
    return {}


def plan(config: NeuronStudyConfig, source: Source | None, facts: Sequence[Fact], model: Model | None) -> dict:
    """`passes`, sequences that run through the model by what for, and `memory`, bytes beside its weights.

    `facts` are the chosen ones of `source`; `model` has no weights. Either may be None where it is out of reach.
    """
    locating, proving = (sum(map(len, prompts)) for prompts in _prompts(config, facts))
    sets = 1 + ("activation" in config.baselines) + config.draws * ("random" in config.baselines)
    passes = {
        "locate": locating * ranking_passes(config.method, config.nodes, config.layers, model),
        "effect": proving * (1 + 2 * sets),
    }
    if "activation" in config.baselines:
        passes["activation"] = locating
    passes["specificity"] = 2 * OTHERS * (1 + 2) * len(facts)
    if config.stability and config.method == "ig":
        varied = -(-len(facts) // NODES_EVERY)
        passes["stability"] = varied * sum(ranking_passes("ig", n, config.layers, model) - 1 for n in NODES_GRID)
    if config.erase:
        passes["erase"] = 2 * 2 * ASKED * len({fact.relation_name or fact.relation for fact in facts})
    return {"passes": passes, "memory": {}}


def _prompts(config: NeuronStudyConfig, facts: Sequence[Fact]) -> tuple[list, list]:
    """The prompts of each fact that locate its neurons, and those that prove them."""
    pairs = [prompts_of(fact, config.prompts) for fact in facts]
    return [locating for locating, _ in pairs], [proving for _, proving in pairs]
