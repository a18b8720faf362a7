"""The solvers as methods of the table: all facts that are given at once are one set, with one edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...facts import Fact
from ...models.adapter import Model
from ..edit import Edit
from ..methods.method import Bars, Editor, Method
from .config import FactSetConfig, fact_set_config, find_solver, layers_for
from .fact_set import FactSet
from .rows import with_id


def _method(name: str) -> Method:
    solver = find_solver(name)()
    return Method(
        lambda: FactSetConfig(solver=solver),
        _prepare,
        passes=_passes,
        memory=_memory,
        model_config=lambda model: replace(fact_set_config(model), solver=solver),
        looks_up=True,
        together=True,
    )


def _prepare(model: Model, config: FactSetConfig, facts: Sequence[Fact], bars: Bars) -> Editor:
    held = FactSet(model, config)
    held.prepare(bars)

    def edit(facts: Sequence[Fact]) -> list[Edit | None]:
        asked = [with_id(fact) for fact in facts]
        with bars("searching", len(facts), "fact") as step:
            added = set(held.add(asked, progress=step).added)
        if not added:
            return [None] * len(facts)
        try:
            held.prepare(bars)  # many facts take more layers
            change = held.edit()
        finally:
            held.remove(added)  # the rows stay: a fact that comes again is not searched for again
        return [change if fact.id in added else None for fact in asked]

    return Editor(edit)


def _passes(
    config: FactSetConfig, facts: Sequence[Fact], others: Sequence[Fact], model: Model | None
) -> dict[str, int]:
    """At most, forward and backward: the prompt by itself and behind each context, and the essence."""
    contexts = config.rows.contexts if isinstance(config.rows.contexts, int) else len(config.rows.contexts)
    return {"search": len(facts) * (contexts + 2) * config.rows.search.steps}


def _memory(config: FactSetConfig, model: Model, batch: int) -> dict[str, int]:
    layers = len(config.layers or layers_for(model, config.rows.layer or 0, batch))
    return {
        # C in float32 and the factor of A in float64; of one layer A too, or a copy of its factor
        "covariance": (layers * (4 + 8) + 8) * model.n_neurons**2,
        "rows": 4 * batch * (model.n_neurons + model.d_model),
    }


MEMIT, EMMET, ALPHAEDIT = map(_method, ("memit", "emmet", "alphaedit"))
