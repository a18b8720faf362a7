"""Random edits of a model's down-projections, and what a weight must be with some of them on it."""

from __future__ import annotations

from dataclasses import replace

import torch
from support.trained import facts, trained
from torch import Tensor

from knowedit import Fact, Model, RomeConfig, rome
from knowedit.edit import Covariance
from knowedit.edit.delta import Dense, LowRank, weight_hash
from knowedit.edit.edit import Edit
from knowedit.edit.methods.v_star import VStarSearch
from knowedit.models.passes.replay import record

FACT = Fact("{} is located in the city of", "Eiffel Tower", "Paris", target_new="Rome")
SEARCH = VStarSearch(
    steps=40, lr=0.2, clamp=80.0, decay=0.0
)  # of the trained model's tiny values, as in edit/test_rome.py


def strong(subject: str, target_new: str, **fields) -> Edit:
    """An edit that the trained model follows, by the covariance of the facts' own keys; `fields` go to its fact."""
    model = trained()
    fact = replace(next(f for f in facts() if f.subject == subject), target_new=target_new, **fields)
    keys = torch.cat([record(model, model.encode(f.prompt).ids).neurons[0] for f in facts()])
    C = Covariance(0, keys.T @ keys / len(keys), len(keys), {})
    return rome(model, fact, RomeConfig(layer=0, contexts=(), search=SEARCH, preserve=0.0), covariance=C)


def random_edit(model: Model, *layers: int, seed: int = 0, rank: int = 1, scale: float = 0.3, **fields) -> Edit:
    """Of rank `rank`, or dense for rank 0."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32)

    deltas = {}
    for layer in layers:
        out, neurons = model.down_shape(layer)
        if rank:
            deltas[model.down_path(layer)] = LowRank(scale * matrix(out, rank), matrix(neurons, rank))
        else:
            deltas[model.down_path(layer)] = Dense(scale * matrix(out, neurons))
    bases = {model.down_path(layer): weight_hash(model.down_weight(layer)) for layer in layers}
    return Edit(deltas, bases, **{"method": "random", "facts": (FACT,), "model": model.name, "seed": seed, **fields})


def weights(model: Model) -> list[Tensor]:
    """Copies of all down-projections, (out, in)."""
    return [model.down_weight(layer).detach().clone() for layer in range(model.n_layers)]


def with_edits(model: Model, base: list[Tensor], *edits: Edit) -> list[Tensor]:
    """What `base` must be with `edits` on it, written out plainly."""
    wanted = []
    for layer, weight in enumerate(base):
        path = model.down_path(layer)
        deltas = [edit.deltas[path] for edit in edits if path in edit.deltas]
        total = weight.double() if weight.dtype == torch.float64 else weight.float()
        for delta in deltas:
            total = total + (delta.delta if isinstance(delta, Dense) else delta.u @ delta.v.T)
        wanted.append(total.to(weight.dtype))
    return wanted


def same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
