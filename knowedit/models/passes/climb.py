"""Prompts that climb through blocks which are changed one after another.

A change of a block alters nothing below it. So what comes into the lowest block that is still to be changed is kept,
and each change runs the blocks from there on only. Prompts of one length make a batch, up to their lookup positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ...hooks import Enough, Register, ending_early, hooked, on_call, on_input, on_output, on_pass
from ...prompts import Prompt
from ..adapter import Model
from .batches import batches
from .replay import call_block

BATCH_ROWS = 64

Change = Callable[[Tensor, Tensor], Tensor]
"""(a down-projection's input, its output) → the output in its place."""


@dataclass
class _Batch:
    """Prompts of one length.

    - `numbers`: which they are; `at`: their lookup positions among all their tokens.
    - `calls`: by layer, what a block was called with beside the hidden states.
    - `hidden`: what comes into the lowest block that is still to be changed, (prompts, length, d_model).
    """

    numbers: list[int]
    at: Tensor
    calls: dict[int, tuple[tuple, dict]] = field(default_factory=dict)
    hidden: Tensor | None = None

    def note(self, layer: int, args: tuple, kwargs: dict) -> None:
        """Keep the call of block `layer`, and the hidden states of the first one."""
        if self.hidden is None:
            self.hidden = args[0] if args else kwargs["hidden_states"]
        self.calls[layer] = ((None, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": None})


class Climb:
    """Prompts on their way up through blocks whose down-projections are changed one after another, from `first` to
    `last`: no block below a change is run again.

    `states`: (prompts, d_model) above block `last` at the lookup positions, of the model as it is; all that is given
    is float64 on the CPU.
    """

    @torch.no_grad()
    def __init__(self, model: Model, prompts: Sequence[Prompt], first: int, last: int):
        self.model, self.first, self.last = model, first, last
        self.states = torch.zeros(len(prompts), model.d_model, dtype=torch.float64)
        self._batches: list[_Batch] = []
        keep = _keep if model.offloaded else _keep_and_end
        lookups = [prompt.position("lookup") for prompt in prompts]
        ids = [prompt.ids[: None if model.masked else at + 1] for prompt, at in zip(prompts, lookups, strict=True)]
        for numbers in batches([len(row) for row in ids], rows=BATCH_ROWS, equal=True):
            tokens = torch.tensor([ids[i] for i in numbers], device=model.device)
            at = torch.arange(len(numbers)) * tokens.shape[1] + torch.tensor([lookups[i] for i in numbers])
            batch = _Batch(numbers, at)
            hooks = [on_call(model.blocks[layer], partial(batch.note, layer)) for layer in range(first, last + 1)]
            hooks += [on_output(model.blocks[last], partial(keep, self.states, numbers, at))]
            more = {} if model.masked else {"use_cache": False}
            with ending_early(), hooked(*hooks):
                model.run(tokens, attention_mask=torch.ones_like(tokens), **more)
            self._batches.append(batch)

    def shifted(self, deltas: Tensor) -> Tensor:
        """What `states` are with `deltas` (prompts, d_model) added at the lookup positions to what the down-projection
        of `first` gives; before any change."""
        down = self.model.down(self.first)

        def hooks(batch: _Batch) -> list[Register]:
            return [on_output(down, partial(_shifted, batch.at, deltas[batch.numbers]))]

        return self._run(self.first, hooks)

    def changed(self, layer: int, change: Change, above: int) -> tuple[Tensor, Tensor]:
        """Change the down-projection of `layer`, which is above all that are changed already; the keys of `above`
        (prompts, d_ff) and the states above `last` then."""
        keys = torch.zeros(len(self.states), self.model.n_neurons, dtype=torch.float64)
        down, changing = self.model.down(above), on_pass(self.model.down(layer), change)

        def hooks(batch: _Batch) -> list[Register]:
            return [changing, on_input(down, partial(_keep, keys, batch.numbers, batch.at))]

        return keys, self._run(layer, hooks, above)

    @torch.no_grad()
    def _run(self, start: int, hooks: Callable[[_Batch], list[Register]], above: int | None = None) -> Tensor:
        """The states above `last` with the blocks from `start` on run under hooks; what comes into `above` is kept."""
        states = torch.zeros_like(self.states)
        for batch in self._batches:
            hidden = batch.hidden
            assert hidden is not None
            with hooked(*hooks(batch)):
                for layer in range(start, self.last + 1):
                    if layer == above:
                        batch.hidden = hidden
                    hidden = call_block(self.model, layer, hidden, *batch.calls[layer])
            _keep(states, batch.numbers, batch.at, hidden)
        return states


def _keep(store: Tensor, rows: list[int], at: Tensor, x: Tensor) -> None:
    flat = x.reshape(-1, x.shape[-1])
    store[rows] = flat[at.to(x.device)].double().cpu()


def _keep_and_end(store: Tensor, rows: list[int], at: Tensor, x: Tensor) -> None:
    _keep(store, rows, at, x)
    raise Enough


def _shifted(at: Tensor, deltas: Tensor, output: Tensor) -> Tensor:
    flat = output.reshape(-1, output.shape[-1])
    return flat.index_add(0, at.to(output.device), deltas.to(output)).reshape(output.shape)
