"""What an answer becomes when neurons are scaled: many sets of neurons in one sweep.

`ScaledAnswers` is one prompt with its target, run once. `scaled` then gives the target's probability with each of
many sets of neurons multiplied by a factor at the read position, at the subject's last token, or both, one row a set:
proofs, labels and ablation are made of it. At the read position it equals running the model inside `knowedit.scale`,
for a small part of the cost. `kept` is the reverse: all neurons but those of a set are taken away.

Neurons are taken away to a *baseline*, zero unless another is given. A factor f then stands for b + f · (a − b).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...prompts import Query
from ..adapter import Model
from .batches import halving
from .objective import Objective, at_least_float, read_rows
from .replay import Recording, recordings
from .sweep import counts, sweep

SWEEP_ROWS = 512  # without gradients: large enough for full speed, small enough for any memory

Neurons = Sequence[tuple[int, int]]


class ScaledAnswers:
    """One prompt and target of one model, ready to be run again with neurons scaled.

    A target of several tokens counts as a whole: neurons are scaled at every read position and the conditional
    probabilities multiplied. `baseline`: (n_layers, n_neurons), what factor 0 stands for; None is zero. `position`:
    where neurons are scaled, `"read"`, `"lookup"` (the subject's last token) or `"both"`.
    """

    def __init__(self, model: Model, query: Query, baseline: Tensor | None = None, position: str = "read"):
        self.model = model
        self.query = query
        self.baseline = baseline
        self.position = position
        self._parts = [_Part(*part, baseline) for part in recordings(model, query, position)]

    @cached_property
    def probability(self) -> float:
        """The target's probability, nothing scaled."""
        return float(np.prod([part.read(part.recording.output)[0].item() for part in self._parts]))

    @cached_property
    def _first_logits(self) -> Tensor:
        """Of all first tokens, (vocabulary,)."""
        part = self._parts[0]
        with torch.no_grad():
            return self.model.logits(self.model.normed(part.recording.output[:, part.reads[0]]))[0]

    @property
    def top(self) -> int:
        """The most probable first token."""
        return self._first_logits.argmax().item()

    @property
    def rank(self) -> int:
        """The rank of the target's first token, 1 for the model's first choice."""
        return 1 + (self._first_logits > self._first_logits[self.query.target_ids[0]]).sum().item()

    @property
    def known(self) -> bool:
        """Whether the target's first token is the model's first choice."""
        return self.top == self.query.target_ids[0]

    @cached_property
    def activations(self) -> Tensor:
        """(n_layers, n_neurons): the neurons where they are scaled, averaged over positions."""
        parts = [torch.stack([at_least_float(n[p.scaled_at]).cpu() for n in p.recording.neurons]) for p in self._parts]
        return torch.cat(parts, dim=1).mean(1)

    def scaled(self, sets: Sequence[Neurons], factor: float | Sequence[Sequence[float]]) -> np.ndarray:
        """The target's probability with each set of neurons multiplied by `factor`, (sets,).

        Instead of one factor each set may have one for each of its neurons.
        """
        order = sorted(range(len(sets)), key=lambda i: _entry(sets[i], self.model.n_layers))
        result = np.full(len(sets), self.probability)
        order = [i for i in order if len(sets[i])]

        def work(chosen: list[int]) -> np.ndarray:
            rows = [sets[i] for i in chosen]
            factors = [[factor] * len(sets[i]) if isinstance(factor, int | float) else factor[i] for i in chosen]
            return np.prod([part.scaled(rows, factors) for part in self._parts], axis=0)

        for chosen, values in halving(self.model, _split(order), work, "sets of neurons"):
            result[chosen] = values
        return result

    def suppressed_and_amplified(self, sets: Sequence[Neurons]) -> tuple[np.ndarray, np.ndarray]:
        """The target's probability with each set of neurons at the baseline, and doubled, (sets,) each: `scaled` by 0
        and by 2 in one sweep."""
        factors = [[factor] * len(neurons) for factor in (0.0, 2.0) for neurons in sets]
        suppressed, amplified = self.scaled([*sets, *sets], factors).reshape(2, -1)
        return suppressed, amplified

    def kept(self, masks: Tensor, layers: Sequence[int]) -> np.ndarray:
        """The target's probability with the neurons of `layers` at the baseline but those of a mask, (masks,).

        `masks`: (masks, layers, n_neurons), true for the neurons that are kept as they come.
        """

        def work(rows: list[int]) -> np.ndarray:
            return np.prod([part.kept(masks[rows], layers) for part in self._parts], axis=0)

        parts = halving(self.model, _split(list(range(len(masks)))), work, "sets of neurons")
        return np.concatenate([values for _, values in parts])


class _Part:
    """One recording with the places where it is read, and where neurons are scaled."""

    def __init__(
        self, recording: Recording, reads: list[int], targets: list[int], scaled_at: list[int], baseline: Tensor | None
    ):
        self.recording = recording
        self.reads = reads
        self.scaled_at = scaled_at
        self.baseline = baseline
        self.objectives = [Objective("probability", target) for target in targets]

    @torch.no_grad()
    def read(self, hidden: Tensor) -> Tensor:
        return read_rows(self.recording.model, hidden, self.reads, self.objectives).value

    @torch.no_grad()
    def scaled(self, sets: Sequence[Neurons], factors: Sequence[Sequence[float]]) -> np.ndarray:
        model = self.recording.model
        joining = counts([_entry(neurons, model.n_layers) for neurons in sets], model.n_layers)
        by_layer: dict[int, list[tuple[int, int, float]]] = {}  # layer → (row, index, factor)
        for row, (neurons, of_row) in enumerate(zip(sets, factors, strict=True)):
            for (layer, index), factor in zip(neurons, of_row, strict=True):
                by_layer.setdefault(layer, []).append((row, index, factor))

        def patch(layer: int, neurons: Tensor) -> Tensor:
            if layer not in by_layer:
                return neurons
            rows, indices, by = (torch.tensor(v, device=neurons.device) for v in zip(*by_layer[layer], strict=True))
            neurons = neurons.clone()
            base = 0 if self.baseline is None else self.baseline[layer].to(neurons)[indices]
            for position in self.scaled_at:
                neurons[rows, position, indices] = base + by.to(neurons) * (neurons[rows, position, indices] - base)
            return neurons

        return self.read(sweep(self.recording, joining, patch)).double().cpu().numpy()

    @torch.no_grad()
    def kept(self, masks: Tensor, layers: Sequence[int]) -> np.ndarray:
        place = {layer: i for i, layer in enumerate(layers)}

        def patch(layer: int, neurons: Tensor) -> Tensor:
            if layer not in place:
                return neurons
            base = torch.zeros(()) if self.baseline is None else self.baseline[layer]
            keep = masks[:, place[layer], None].to(neurons.device)  # (masks, 1, n_neurons)
            altered = torch.where(keep, neurons[:, self.scaled_at], base.to(neurons))
            return neurons.index_copy(1, torch.tensor(self.scaled_at, device=neurons.device), altered)

        joining = counts([min(layers)] * len(masks), self.recording.model.n_layers)
        return self.read(sweep(self.recording, joining, patch)).double().cpu().numpy()


def _split(rows: list[int]) -> list[list[int]]:
    return [rows[start : start + SWEEP_ROWS] for start in range(0, len(rows), SWEEP_ROWS)]


def _entry(neurons: Neurons, n_layers: int) -> int:
    return min((layer for layer, _ in neurons), default=n_layers - 1)
