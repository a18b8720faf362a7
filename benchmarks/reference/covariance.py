"""The covariance of a layer's keys written plainly: Σ k kᵀ over the tokens of a text (Meng et al. 2022, eq. 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from knowedit.hooks import hooked, on_input
from knowedit.models.adapter import Model
from knowedit.texts.rows import text_of


@torch.no_grad()
def plain_covariance(model: Model, batches: list[Tensor], layer: int) -> Tensor:
    """Σ k kᵀ (n_neurons, n_neurons) by whole forward passes of the rows in `batches`, with a hook on one module."""
    total = torch.zeros(model.n_neurons, model.n_neurons)

    def add(x: Tensor) -> None:
        keys = x[:, text_of(model)].flatten(0, 1)
        total.addmm_(keys.T, keys)

    with hooked(on_input(model.down(layer), add)):
        for rows in batches:
            model.hf(input_ids=rows, use_cache=False)
    return total
