"""Rows of tokens in one batch, each with the fact that is changed in it: what searches for edits run in their loop.

A change of a layer's down-projection alters nothing below that layer, and in a decoder nothing before its first
position. So all rows are run once (models/passes/batch.py), and the loop calls blocks from that layer upwards. Facts
whose search is over leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...hooks import hooked, on_output
from ...models.adapter import Model
from ...models.passes.batch import Batch, record_batch
from ...prompts import Row


class Rows:
    """Rows in one batch.

    - `rows`: each with the number of its fact; `owner` (rows,): these numbers.
    - `columns` (rows,): where the lookup position is in the batch, if it was begun there.
    - `at`, `token`, `read_of` (reads,): where tokens of targets are predicted (as `place` counts), which, and of which
      fact.
    """

    def __init__(self, model: Model, rows: list[tuple[Row, int]], batch: Batch):
        self.model, self.rows, self.batch = model, rows, batch
        device = batch.output.device
        self.owner = torch.tensor([j for _, j in rows], device=device)
        self.columns = batch.columns.to(device)
        reads = [(self.place(r, index), token, j) for r, (row, j) in enumerate(rows) for index, token in row.reads]
        self.at, self.token, self.read_of = torch.tensor(reads, dtype=torch.long, device=device).reshape(-1, 3).T

    @classmethod
    def of(
        cls, model: Model, rows: list[tuple[Row, int]], whole: bool = False, columns: tuple[int, int] = (0, 0)
    ) -> Rows:
        """Run `rows` once, to be run again from their lookup positions on, or as a `whole`.

        `columns` are those of prefix and suffix, at least.
        """
        starts = [0 if whole else row.lookup for row, _ in rows]
        return cls(model, rows, record_batch(model, [row.ids for row, _ in rows], starts, columns))

    def only(self, facts: list[int]) -> Rows | None:
        """The rows of some of the facts, which are numbered anew; None where they have none."""
        kept = [r for r, (_, j) in enumerate(self.rows) if j in facts]
        if not kept:
            return None
        rows = [(row, facts.index(j)) for row, j in (self.rows[r] for r in kept)]
        return Rows(self.model, rows, self.batch.only(kept))

    @property
    def size(self) -> int:
        """Rows times suffix tokens."""
        return self.batch.output[..., 0].numel()

    def place(self, row: int, index: int) -> int:
        """Where token `index` of `row` is when rows and suffix tokens are one dimension."""
        return row * self.batch.output.shape[1] + index + int(self.batch.offsets[row])

    def forward(self, layer: int, change: Callable[[Tensor], Tensor]) -> Tensor:
        """What the last block gives, (rows × suffix, d_model), with `change` of the down-projection's output."""
        with hooked(on_output(self.model.down(layer), change)):
            hidden = self.batch.block(layer, self.batch.inputs[layer])
        for above in range(layer + 1, self.model.n_layers):
            hidden = self.batch.block(above, hidden)
        return hidden.flatten(0, 1)


def log_probabilities(model: Model, hidden: Tensor) -> Tensor:
    """Of the next token, (positions, vocabulary), for what the last block gave there, (positions, d_model)."""
    return model.logits(model.normed(hidden)).float().log_softmax(-1)
