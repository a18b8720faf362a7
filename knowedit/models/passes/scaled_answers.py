"""What answers become when neurons are scaled: many sets of neurons, after many prompts, in one sweep.

`ScaledAnswers` is some prompts with their targets, run once together. `scaled` then gives each target's probability
with each of many sets of neurons multiplied by a factor at the read position, at the subject's last token, or both, one
row a prompt and set: selections, proofs, labels and ablation are made of it. At the read position it equals running the
model inside `knowedit.scale`, for a small part of the cost. `kept` is the reverse: all neurons but those of a set are
taken away.

Neurons are taken away to a *baseline*, zero unless another is given. A factor f then stands for b + f · (a − b).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...prompts import Query
from ..adapter import Model
from .batch import record_batch
from .batches import halving
from .objective import Objective, at_least_float, read_states
from .sweep import counts, sweep

SWEEP_ROWS = 512  # without gradients: large enough for full speed, small enough for any memory

Neurons = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class _Row:
    """A recorded row: its number in the batch, whose prompt it is, the suffix columns where its neurons are scaled, and
    those that are read, with the token that is read there."""

    number: int
    prompt: int
    scaled: tuple[int, ...]
    reads: tuple[tuple[int, int], ...]


class ScaledAnswers:
    """Prompts and targets of one model, ready to be run again with neurons scaled.

    A target of several tokens counts as a whole: neurons are scaled at every read position and the conditional
    probabilities multiplied. `baselines`: of each prompt (n_layers, n_neurons), what factor 0 stands for; None is zero,
    for all of them or for one. `position`: where neurons are scaled, `"read"`, `"lookup"` (the subject's last token) or
    `"both"`.
    """

    def __init__(
        self,
        model: Model,
        queries: Sequence[Query],
        baselines: Sequence[Tensor | None] | None = None,
        position: str = "read",
    ):
        self.model = model
        self.queries = tuple(queries)
        self.baselines = tuple(baselines or [None] * len(self.queries))
        self.position = position
        ids, starts, places = [], [], []
        for prompt, query in enumerate(self.queries):
            for row in query.rows(model.masked):
                scaled = query.scaled_at(position, [index for index, _ in row.reads])
                ids.append(row.ids)
                starts.append(min(*scaled, *(index for index, _ in row.reads)))
                places.append((prompt, scaled, row.reads))
        self._batch = record_batch(model, ids, starts) if ids else None
        offsets = [] if self._batch is None else self._batch.offsets.tolist()
        self._rows = tuple(
            _Row(number, prompt, tuple(at + off for at in scaled), tuple((at + off, token) for at, token in reads))
            for number, (off, (prompt, scaled, reads)) in enumerate(zip(offsets, places, strict=True))
        )

    def __len__(self) -> int:
        return len(self.queries)

    def only(self, prompts: Sequence[int]) -> ScaledAnswers:
        """Some of the prompts, in that order; nothing is run again."""
        part = ScaledAnswers.__new__(ScaledAnswers)
        part.model, part.position, part._batch = self.model, self.position, self._batch
        part.queries = tuple(self.queries[prompt] for prompt in prompts)
        part.baselines = tuple(self.baselines[prompt] for prompt in prompts)
        part._rows = tuple(
            replace(row, prompt=place)
            for place, prompt in enumerate(prompts)
            for row in self._rows
            if row.prompt == prompt
        )
        return part

    @cached_property
    def probability(self) -> np.ndarray:
        """Each target's probability, nothing scaled, (prompts,)."""
        return self._of_prompts(self._read(self._output, self._rows)) if self._rows else np.ones(0)

    @cached_property
    def _first_logits(self) -> Tensor:
        """Of all first tokens, (prompts, vocabulary)."""
        first = {row.prompt: at for at, row in reversed(list(enumerate(self._rows)))}
        at = [first[prompt] for prompt in range(len(self))]
        columns = [self._rows[row].reads[0][0] for row in at]
        with torch.no_grad():
            return self.model.logits(self.model.normed(self._output[at, columns]))

    @property
    def top(self) -> list[int]:
        """The most probable first token after each prompt."""
        return self._first_logits.argmax(1).tolist() if len(self) else []

    @property
    def rank(self) -> list[int]:
        """The rank of each target's first token, 1 for the model's first choice."""
        if not len(self):
            return []
        own = torch.tensor([query.target_ids[0] for query in self.queries], device=self._first_logits.device)
        return (1 + (self._first_logits > self._first_logits.gather(1, own[:, None])).sum(1)).tolist()

    @property
    def known(self) -> np.ndarray:
        """Whether each target's first token is the model's first choice, (prompts,)."""
        return np.array([top == query.target_ids[0] for top, query in zip(self.top, self.queries, strict=True)], bool)

    @cached_property
    def activations(self) -> Tensor:
        """The neurons where they are scaled, averaged over positions, (prompts, n_layers, n_neurons), on the CPU."""
        assert self._batch is not None
        rows, columns = self._scaled_at(self._rows)
        numbers = [self._rows[row].number for row in rows]
        places = torch.stack([at_least_float(n[numbers, columns]).cpu() for n in self._batch.neurons], 1)
        prompts = torch.tensor([self._rows[row].prompt for row in rows])
        return torch.stack([places[prompts == prompt].mean(0) for prompt in range(len(self))])

    def scaled(self, sets: Sequence[Neurons], factor: float | Sequence[Sequence[float]]) -> np.ndarray:
        """Each target's probability with each set of neurons multiplied by `factor`, (prompts, sets).

        Instead of one factor each set may have one for each of its neurons.
        """
        entries = [min((layer for layer, _ in neurons), default=None) for neurons in sets]
        order = sorted((i for i, entry in enumerate(entries) if entry is not None), key=entries.__getitem__)
        factors = [[factor] * len(neurons) for neurons in sets] if isinstance(factor, int | float) else factor

        def work(pairs: list[tuple[int, int]]) -> np.ndarray:
            rows = [self._rows[row] for _, row in pairs]
            by_layer: dict[int, list[tuple[int, int, int, int, float]]] = {}  # → (row, prompt, column, index, factor)
            for at, (row, (i, _)) in enumerate(zip(rows, pairs, strict=True)):
                for (layer, index), by in zip(sets[i], factors[i], strict=True):
                    by_layer.setdefault(layer, []).extend((at, row.prompt, c, index, by) for c in row.scaled)

            def patch(layer: int, neurons: Tensor) -> Tensor:
                if layer not in by_layer:
                    return neurons
                places = (torch.tensor(v, device=neurons.device) for v in zip(*by_layer[layer], strict=True))
                at, prompts, columns, indices, by = places
                base = 0 if self._base is None else self._base[layer].to(neurons)[prompts, indices]
                neurons = neurons.clone()
                neurons[at, columns, indices] = base + by.to(neurons) * (neurons[at, columns, indices] - base)
                return neurons

            return self._swept(rows, [entries[i] for i, _ in pairs], patch)

        return self._all(order, len(sets), work)

    def suppressed_and_amplified(self, sets: Sequence[Neurons]) -> tuple[np.ndarray, np.ndarray]:
        """Each target's probability with each set of neurons at the baseline, and doubled, (prompts, sets) each:
        `scaled` by 0 and by 2 in one sweep."""
        factors = [[factor] * len(neurons) for factor in (0.0, 2.0) for neurons in sets]
        suppressed, amplified = np.split(self.scaled([*sets, *sets], factors), 2, axis=1)
        return suppressed, amplified

    def kept(self, masks: Tensor, layers: Sequence[int]) -> np.ndarray:
        """Each target's probability with the neurons of `layers` at the baseline but those of a mask, (prompts, masks).

        `masks`: (masks, layers, n_neurons), true for the neurons that are kept as they come.
        """
        place = {layer: i for i, layer in enumerate(layers)}

        def work(pairs: list[tuple[int, int]]) -> np.ndarray:
            rows = [self._rows[row] for _, row in pairs]
            at, columns = self._scaled_at(rows)
            prompts, chosen = [rows[row].prompt for row in at], [pairs[row][0] for row in at]

            def patch(layer: int, neurons: Tensor) -> Tensor:
                if layer not in place:
                    return neurons
                keep = masks[chosen, place[layer]].to(neurons.device)  # (places, n_neurons)
                base = torch.zeros((), device=neurons.device) if self._base is None else self._base[layer][prompts]
                neurons = neurons.clone()
                neurons[at, columns] = torch.where(keep, neurons[at, columns], base.to(neurons))
                return neurons

            return self._swept(rows, [min(layers)] * len(rows), patch)

        return self._all(list(range(len(masks))), len(masks), work)

    @property
    def _output(self) -> Tensor:
        """What the last block gave for each row, nothing scaled, (rows, suffix, d_model)."""
        assert self._batch is not None
        return self._batch.output[[row.number for row in self._rows]]

    @cached_property
    def _base(self) -> Tensor | None:
        """The baselines by layer, (n_layers, prompts, n_neurons); None where all are zero."""
        if all(baseline is None for baseline in self.baselines):
            return None
        zero = torch.zeros(self.model.n_layers, self.model.n_neurons)
        return torch.stack([zero if b is None else b.to(zero) for b in self.baselines], 1).to(self.model.device)

    @staticmethod
    def _scaled_at(rows: Sequence[_Row]) -> tuple[list[int], list[int]]:
        """Places where neurons are scaled: which of `rows` each is in, and its column."""
        places = [(at, column) for at, row in enumerate(rows) for column in row.scaled]
        return [at for at, _ in places], [column for _, column in places]

    def _all(self, order: Sequence[int], n: int, work: Callable[[list[tuple[int, int]]], np.ndarray]) -> np.ndarray:
        """Probabilities (prompts, n) from what `work` gives for pairs of a set, in `order`, and a row; those of other
        sets are as they are."""
        result = np.repeat(self.probability[:, None], n, 1)
        result[:, list(order)] = 1
        pairs = [(i, row) for i in order for row in range(len(self._rows))]
        chunks = (pairs[start : start + SWEEP_ROWS] for start in range(0, len(pairs), SWEEP_ROWS))
        for chosen, values in halving(self.model, chunks, work, "sets of neurons"):
            prompts = [self._rows[row].prompt for _, row in chosen]
            np.multiply.at(result, (prompts, [i for i, _ in chosen]), values)
        return result

    @torch.no_grad()
    def _swept(
        self, rows: Sequence[_Row], entries: Sequence[int], patch: Callable[[int, Tensor], Tensor]
    ) -> np.ndarray:
        """What is read of rows that are altered from their entries on, (rows,)."""
        assert self._batch is not None
        of = torch.tensor([row.number for row in rows], device=self.model.device)
        return self._read(sweep(self._batch, counts(entries, self.model.n_layers), patch, of=of), rows)

    @torch.no_grad()
    def _read(self, hidden: Tensor, rows: Sequence[_Row]) -> np.ndarray:
        """The product of the probabilities of all tokens that are read of each row, (rows,).

        `hidden`: what the last block gave, (rows, suffix, d_model).
        """
        reads = [(at, column, token) for at, row in enumerate(rows) for column, token in row.reads]
        at, columns, tokens = (list(values) for values in zip(*reads, strict=True))
        objectives = [[Objective("probability", token) for token in tokens]]
        values = read_states(self.model, hidden[at, columns][:, None], objectives).value
        result = np.ones(len(rows))
        np.multiply.at(result, at, values.double().cpu().numpy())
        return result

    def _of_prompts(self, of_rows: np.ndarray) -> np.ndarray:
        """The product over the rows of each prompt."""
        result = np.ones(len(self))
        np.multiply.at(result, [row.prompt for row in self._rows], of_rows)
        return result
