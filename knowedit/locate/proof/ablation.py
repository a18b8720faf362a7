"""What neurons are set to when they are taken away.

- `zero`: as Dai et al. 2022 do.
- `mean`: what they are on average over built-in prompts.
- `patch`: what they are in the same prompt about another subject of the relation, whose answer is another one. The
  model is then never in a state that no text brings about, which is why Mueller et al. (2025, MIB) prefer it.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ...errors import InputError
from ...facts import fill, templated
from ...models.passes.scaled_answers import ScaledAnswers
from .neuron_kinds import ControlPool


class About(Protocol):
    """What a patch has to know of a fact; `FactPrompts` and `NeuronSet` do."""

    @property
    def subject(self) -> str | None: ...
    @property
    def target(self) -> str: ...
    @property
    def relation(self) -> str | None: ...
    @property
    def separator(self) -> str | None: ...


def ablation_values(
    name: str, pool: ControlPool, prompt: str, fact: About, *, chat: bool = False, position: str = "read"
) -> Tensor | None:
    """What `name` sets neurons to in one prompt of a fact at `position`, (n_layers, n_neurons).

    None for zero; the mean is one over read positions, and a patch of one position (`LocateConfig` refuses others).

    Raises `InputError` for a patch where the pool has no other subject of the fact's relation.
    """
    if name == "zero":
        return None
    if name == "mean":
        return pool.mean_activation
    other = pool.other_subject(fact.subject, fact.target, fact.relation)
    if other is None:
        what = "its subject is not named" if fact.subject is None else f"no other fact of {fact.relation!r} is known"
        raise InputError(f"a patch takes the neurons of another subject of the relation, but {what}; take mean or zero")
    text = fill(templated(prompt, fact.subject), other)
    query = pool.model.query(text, fact.target, other, chat=chat, separator=fact.separator)
    return ScaledAnswers(pool.model, [query], position=position).activations[0]
