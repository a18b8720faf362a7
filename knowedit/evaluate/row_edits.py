"""Give each row of a batch an edit of its own: many edits in one forward pass, no weight touched.

What an edit adds to the output of its down-projection is ΔW x. So a hook adds it to the rows of that edit alone: for
rank k it costs 2 k (in + out) operations a token, next to 2 · in · out of the down-projection itself. In float32 the
result is that of the edited weight up to rounding; in half precision the sum is rounded once, where an edited weight
was rounded before.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..edit.apply import check_fits
from ..edit.delta import Delta, Edit, LowRank
from ..hooks import hooked, on_pass
from ..models.adapter import Model


@contextmanager
def row_edits(model: Model, edits: Sequence[Edit | None]):
    """While the context lasts row `r` of every batch of `model` is run as if `edits[r]` were applied; None: as it is.

    Every batch must have `len(edits)` rows. Raises `InputError` for an edit of another model's shapes, and
    `ModelError` for one of other weights.
    """
    check_fits(model, edits)
    by_path: dict[str, list[tuple[int, Delta]]] = {}
    for row, edit in enumerate(edits):
        for path, delta in ({} if edit is None else edit.deltas).items():
            by_path.setdefault(path, []).append((row, delta))
    layers = model.down_layers()
    added = [
        on_pass(model.down(layers[path]), _Added(deltas, len(edits), model.device)) for path, deltas in by_path.items()
    ]
    with hooked(*added):
        yield


class _Added:
    """Adds ΔW x of each row's edit to the output of one module."""

    def __init__(self, deltas: list[tuple[int, Delta]], rows: int, device):
        self.rows = rows
        self.dense = [(row, delta) for row, delta in deltas if not isinstance(delta, LowRank)]
        low = [(row, delta) for row, delta in deltas if isinstance(delta, LowRank)]
        self.factors = None
        if low:
            rank = max(delta.rank for _, delta in low)
            out, neurons = low[0][1].shape
            self.factors = torch.zeros(rows, neurons, rank), torch.zeros(rows, rank, out)
            for row, delta in low:
                self.factors[0][row, :, : delta.rank] = delta.v
                self.factors[1][row, : delta.rank] = delta.u.T
            self.factors = tuple(factor.to(device) for factor in self.factors)

    def __call__(self, x: Tensor, output: Tensor) -> Tensor:
        inputs = x.reshape(self.rows, -1, x.shape[-1]).float()  # some families flatten rows and tokens
        total = output.reshape(self.rows, -1, output.shape[-1])
        total = total.to(torch.promote_types(total.dtype, torch.float32))
        if self.factors is not None:
            v, u = (factor.to(x.device) for factor in self.factors)
            total = torch.baddbmm(total, inputs @ v, u.to(total.dtype)) if u.dtype == total.dtype else total + (
                inputs @ v @ u
            )
        for row, delta in self.dense:
            total = total.index_add(0, torch.tensor([row], device=total.device), delta.of(inputs[row : row + 1]).to(total))
        return total.to(output.dtype).reshape(output.shape)
