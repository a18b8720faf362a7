"""What all methods share: the checks of a request, and the provenance of what they made."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
import transformers

from .. import __version__
from ..errors import InputError
from ..facts import Fact
from ..models.adapter import Model
from .delta import Delta, Edit, weight_hash


def check_request(fact: Fact) -> str:
    """What the model is to say of the fact from now on: its `target_new`.

    Raises `InputError` where that is missing, empty or what the fact already says.
    """
    wanted = fact.target_new
    if wanted is None:
        raise InputError(
            f"the fact {fact.id or fact.subject!r} has no target_new; name what the model is to say instead"
        )
    if not isinstance(wanted, str) or not wanted.strip():
        raise InputError(f"target_new is {wanted!r}, expected the text that is to follow the prompt")
    if wanted.strip() == fact.target.strip():
        raise InputError(f"target_new is {wanted!r}, the fact's own target; name what the model is to say instead")
    return wanted


def make_edit(
    model: Model,
    deltas: Mapping[int, Delta],
    *,
    method: str,
    config: Mapping,
    facts: Sequence[Fact],
    seed: int = 0,
    notes: Mapping | None = None,
) -> Edit:
    """An `Edit` of the down-projections of `model`: `deltas` by layer, `config` and `notes` as JSON values.

    Raises `InputError` for a change of another shape than the weight's.
    """
    for layer, delta in deltas.items():
        if delta.shape != model.down_shape(layer):
            raise InputError(
                f"the change of layer {layer} is {delta.shape}, expected {model.down_shape(layer)} as {model.name} has"
            )
    return Edit(
        deltas={model.down_path(layer): delta for layer, delta in deltas.items()},
        bases={model.down_path(layer): weight_hash(model.down_weight(layer)) for layer in deltas},
        method=method,
        config=config,
        facts=tuple(facts),
        model=model.name,
        seed=seed,
        versions={
            "knowedit": __version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
        notes=notes or {},
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
