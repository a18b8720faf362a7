"""What the study of neurons would take: forward passes by purpose, counted without weights."""

from __future__ import annotations

from collections.abc import Sequence

from ...facts import Fact
from ...locate.fact_prompts import FactPrompts
from ...locate.proof.effect import ALONE_DRAWS, LAYER_DRAWS
from ...locate.proof.faithfulness import SHARES
from ...locate.proof.neuron_kinds import CONTROLS
from ...locate.rankings import scoring_passes
from ...models.adapter import Model
from ...sources import Source
from .study import ASKED_FACTS, NODES_EVERY, NODES_GRID, NeuronStudyConfig


def method_settings(config: NeuronStudyConfig, model: Model | None) -> dict:
    """The ranking by its name; how it is set is among the settings of the study."""
    return {"name": config.locate.method}


def plan(config: NeuronStudyConfig, source: Source | None, facts: Sequence[Fact], model: Model | None) -> dict:
    """{"passes": {purpose: sequences}, "memory": {}} of a study of `facts`; without `model` one layer counts.

    Each node of the integral is a row for each layer, forward and backward. `controls` are the facts that specificity
    and kinds need, at most. For kinds every neuron is tried alone on the controls; how many neurons there are is not
    known before, so these rows are not counted.
    """
    prompts = [FactPrompts.split(fact) for fact in facts]
    locating = sum(len(fact.locating[: config.locate.prompts]) for fact in prompts)
    heldout = sum(len(fact.heldout) for fact in prompts)
    sets = 1 + config.activation + config.draws + min(config.draws, LAYER_DRAWS)
    alone = 2 + min(config.draws, ALONE_DRAWS)
    locate, nodes = config.locate, config.locate.attribution.nodes
    passes = {
        "locate": (locating + len(config.negatives)) * scoring_passes(locate.method, nodes, model),
        "controls": (2 + locate.kinds) * CONTROLS * len(facts),
        "effect": heldout * (1 + 2 * sets + alone),
        "faithfulness": heldout * 3 * len(SHARES),
        "specificity": 2 * CONTROLS * 2 * len(facts),
    }
    if config.stability and locate.method == "ig":
        varied = sum(scoring_passes("ig", nodes, model) for nodes in NODES_GRID)
        passes["stability"] = -(-len(facts) // NODES_EVERY) * varied
    if config.erase:
        passes["erase"] = 2 * 2 * ASKED_FACTS * len({fact.relation_name or fact.relation for fact in facts})
    return {"passes": passes, "memory": {}}
