"""An edit of low rank inside a record: its factors as text, exact, and as whole as the record itself."""

from __future__ import annotations

import base64

import numpy as np
import torch
from torch import Tensor

from ...edit.delta import LowRank
from ...edit.edit import Edit, make_edit
from ...facts import Fact
from ...models.adapter import Model


def factors_of(model: Model, edit: Edit | None) -> dict:
    """`{"factors": …}` by layer; empty without an edit, or where it is not of low rank."""
    deltas = {} if edit is None else edit.deltas
    low_rank = {path: delta for path, delta in deltas.items() if isinstance(delta, LowRank)}
    if edit is None or len(low_rank) < len(deltas):
        return {}
    layers = model.down_layers()
    return {"factors": {str(layers[path]): [_encoded(d.u), _encoded(d.v)] for path, d in low_rank.items()}}


def edit_of(model: Model, fact: Fact, notes: dict) -> Edit:
    """The edit of `fact` from what a record has of it, its method and `factors`."""
    deltas = {int(layer): LowRank(*(_decoded(f) for f in pair)) for layer, pair in notes["factors"].items()}
    return make_edit(model, deltas, method=notes["method"], config={}, facts=[fact])


def _encoded(factor: Tensor) -> dict:
    return {"shape": list(factor.shape), "float32": base64.b64encode(factor.contiguous().numpy().tobytes()).decode()}


def _decoded(record: dict) -> torch.Tensor:
    values = np.frombuffer(base64.b64decode(record["float32"]), dtype="<f4")
    return torch.from_numpy(values.reshape(record["shape"]).copy())
