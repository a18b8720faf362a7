"""Rows of tokens in one batch, each with the fact that is changed in it: what searches for edits run in their loop.

A change of a layer's down-projection alters nothing below that layer, and in a decoder nothing before its first
position. So all rows are run once (models/passes/batch.py), and the loop calls blocks from that layer upwards. Facts
whose search is over leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ...hooks import hooked, on_output
from ...models.adapter import Model
from ...models.passes.batch import Batch, record_batch
from ...prompts import Row


class Rows:
    """Rows in one batch.

    - `rows`: each with the number of its fact; `owner` (rows,): these numbers.
    - `lookups` (rows,): where the lookup positions are (as `place` counts), if the batch was begun there.
    - `at`, `token`, `read_of` (reads,): where tokens of targets are predicted (as `place` counts), which, and of which
      fact.
    """

    def __init__(self, model: Model, rows: list[tuple[Row, int]], batch: Batch):
        self.model, self.rows, self.batch = model, rows, batch
        device = batch.output.device
        self.owner = torch.tensor([j for _, j in rows], device=device)
        self.lookups = (torch.arange(batch.rows) * batch.output.shape[1] + batch.columns).to(device)
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

    def only(self, facts: list[int]) -> Rows:
        """The rows of some of the facts, which are numbered anew."""
        kept = [r for r, (_, j) in enumerate(self.rows) if j in facts]
        rows = [(row, facts.index(j)) for row, j in (self.rows[r] for r in kept)]
        return Rows(self.model, rows, self.batch.only(kept))

    def place(self, row: int, index: int) -> int:
        """Where token `index` of `row` is when rows and suffix tokens are one dimension."""
        return row * self.batch.output.shape[1] + index + int(self.batch.offsets[row])

    def at_lookups(self, states: Tensor) -> Tensor:
        """What `states` (rows, suffix, …) are at the lookup positions, (rows, …)."""
        return states.flatten(0, 1)[self.lookups.to(states.device)]

    def add(self, delta: Tensor, output: Tensor) -> Tensor:
        """`output` of a down-projection with δ (facts, d_model) of each row's fact at its lookup position."""
        flat = output.reshape(-1, output.shape[-1])
        shift = delta[self.owner.to(delta.device)].to(flat)
        return flat.index_add(0, self.lookups.to(flat.device), shift).reshape(output.shape)

    def forward(self, layer: int, change: Callable[[Tensor], Tensor]) -> Tensor:
        """What the last block gives, (rows × suffix, d_model), with `change` of the down-projection's output."""
        with hooked(on_output(self.model.down(layer), change)):
            hidden = self.batch.block(layer, self.batch.inputs[layer])
        for above in range(layer + 1, self.model.n_layers):
            hidden = self.batch.block(above, hidden)
        return hidden.flatten(0, 1)


@dataclass(frozen=True)
class Request:
    """The rows of one edit: the plain prompt comes first, then one behind each context; last the essence.

    - `per_prompt`: rows that each prompt makes (a masked model needs one for every token of the target).
    """

    rows: tuple[Row, ...]
    per_prompt: int

    @property
    def suffix(self) -> int:
        """Tokens from the lookup position on, in the longest row."""
        return max(len(row.ids) - row.lookup for row in self.rows)

    @property
    def batched(self) -> tuple[Row, ...]:
        """The rows that are run: without the essence where the plain prompt's row gives its prediction, too."""
        return self.rows[:-1] if self.begins_with_essence else self.rows

    @property
    def begins_with_essence(self) -> bool:
        """Whether the plain prompt begins as the essence does."""
        plain = self.rows[0]
        return plain.ids[: plain.lookup + 1] == self.rows[-1].ids


@dataclass(frozen=True)
class Shape:
    """Sizes that the batch of a run has at least, so that it tells nothing of the requests that share it.

    - `columns`: of prefix and suffix; `reads`: positions at which logits are made, of all requests.
    """

    columns: tuple[int, int] = (0, 0)
    reads: int = 0


class Run:
    """The rows of requests in one batch: the prompts of all, then the essences that no plain prompt begins with."""

    def __init__(self, model: Model, requests: list[Request], layer: int, rows: Rows, shape: Shape = Shape()):  # noqa: B008
        self.model, self.requests, self.layer, self.rows = model, requests, layer, rows
        essences: dict[int, int] = {}
        for r, (row, j) in enumerate(rows.rows):
            if j not in essences or row is requests[j].rows[-1]:
                essences[j] = rows.place(r, row.lookup)
        at = torch.tensor([essences[j] for j in range(len(requests))], device=rows.at.device)
        spare = max(0, shape.reads - len(rows.at) - len(at))
        self.at = torch.cat([rows.at, at, at[:1].expand(spare)])
        prompts = [len(request.rows) - 1 for request in requests]
        weights = [1 / (len(row.reads) * prompts[j]) for row, j in rows.rows for _ in row.reads]
        self.weight = torch.tensor(weights, dtype=torch.float32, device=at.device)
        self.token = rows.token[:, None]
        self.zeros = torch.zeros(len(requests), device=at.device)
        with torch.no_grad():
            self.clean = self._log_p(rows.batch.output.flatten(0, 1))[1]

    @classmethod
    def of(cls, model: Model, requests: list[Request], layer: int, shape: Shape = Shape()) -> Run:  # noqa: B008
        rows = [(row, j) for j, request in enumerate(requests) for row in request.rows[:-1]]
        rows += [(request.rows[-1], j) for j, request in enumerate(requests) if not request.begins_with_essence]
        return cls(model, requests, layer, Rows.of(model, rows, columns=shape.columns), shape)

    def only(self, kept: list[int]) -> Run:
        """The run of some of its requests."""
        return Run(self.model, [self.requests[j] for j in kept], self.layer, self.rows.only(kept))

    def keys(self) -> list[Tensor]:
        """Of each request the keys of its prompts, (prompts, n_neurons)."""
        keys = self.rows.at_lookups(self.rows.batch.neurons[self.layer])
        ends = [0, *accumulate(len(request.rows) - 1 for request in self.requests)]
        return [
            keys[start : end : request.per_prompt]
            for (start, end), request in zip(pairwise(ends), self.requests, strict=True)
        ]

    @torch.no_grad()
    def v0(self) -> Tensor:
        """W k + b for the plain prompt of each request, (requests, d_model)."""
        return self.model.down(self.layer)(torch.stack([keys[0] for keys in self.keys()]))

    def forward(self, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With δ (requests, d_model), of each: mean NLL of the target's tokens, KL of the essence, mean probability."""
        log_p, essence = self._log_p(self.rows.forward(self.layer, partial(self.rows.add, delta)))
        target_log_p = log_p.gather(1, self.token)[:, 0]
        nll = self.zeros.index_add(0, self.rows.read_of, -target_log_p * self.weight)
        probability = self.zeros.index_add(0, self.rows.read_of, target_log_p.detach().exp() * self.weight)
        kl = (essence.exp() * (essence - self.clean)).sum(1)
        return nll, kl, probability

    def _log_p(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities at all reads (reads, vocabulary) and at the essences (requests, vocabulary)."""
        log_p = log_probabilities(self.model, output[self.at])
        n = len(self.rows.at)
        return log_p[:n], log_p[n : n + len(self.requests)]


def log_probabilities(model: Model, hidden: Tensor) -> Tensor:
    """Of the next token, (positions, vocabulary), for what the last block gave there, (positions, d_model)."""
    return model.logits(model.normed(hidden)).float().log_softmax(-1)
