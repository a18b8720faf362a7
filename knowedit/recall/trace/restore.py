"""What a corrupted prompt says when a token's states are clean again, exactly, in one growing sweep for each token.

Restoring a state of token `t` after layer `l` alters nothing below `l + 1` and, in a decoder, nothing before `t`. So
the rows of a token are its suffix alone, they start from the corrupted run, and join the sweep at layer `l + 1`:

    layer   0   1   2   3         state at t after layer 0:    joins at 1
                ├───┬───┬───      state at t after layer 1:    joins at 2
                    ├───┬───      …
                        ├───

A window restores what MLP or attention puts out at `t` in layers `first … end − 1`. Its rows, too, differ from the
corrupted run only at `t` until layer `first + 1`, where they join with what block `first` gives for that one token.
Windows with one beginning (those cut off at the bottom) are one row until the first of them ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from ...hooks import hooked
from ...models.passes.batches import fitting_logits, fitting_tokens, halving
from ...models.passes.objective import Objective, read_rows
from .corruption import Corruption, set_output

SWEEP_TOKENS = 512  # enough for full speed, few enough for the processor's cache
READ_ROWS = 512  # read at once


@dataclass(frozen=True, order=True)
class Window:
    """Layers `first` to `end` − 1. Of a state, `first` is the layer after which it is restored, and `end` the next."""

    first: int
    end: int


@dataclass
class Restoring:
    """One corrupted prompt, whose F is read at tokens `reads`, a `Objective` each (several multiply, or add up)."""

    corruption: Corruption
    reads: Sequence[int]
    objectives: Sequence[Objective]

    @property
    def model(self):
        return self.corruption.model

    @cached_property
    def clean(self) -> Tensor:
        """F of the clean prompt, (1,)."""
        return self._read(self.corruption.clean.states[-1][:, list(self.reads)])

    @cached_property
    def corrupted(self) -> Tensor:
        """F of the corrupted prompt, (draws,)."""
        return self._read(self.corruption.corrupted.states[-1][:, list(self.reads)])

    @torch.no_grad()
    def token(self, token: int, kinds: Iterable[tuple[str, str | None, Sequence[Window]]]) -> list[Tensor]:
        """F with `token` restored, for each kind the windows in their order, (windows, draws).

        A kind is `("state", severed, windows)`, where the sublayer `severed` (or None) keeps its corrupted outputs at
        the token, or `("mlp", None, windows)` or `("attention", None, windows)`.
        """
        work = _Token(self, token)
        return [work.restored(kind, severed, windows) for kind, severed, windows in kinds]

    def _read(self, hidden: Tensor) -> Tensor:
        """F of rows of states (rows, reads, d_model)."""
        places = range(len(self.reads))
        with torch.no_grad():
            rows = hidden.split(fitting_logits(self.model, READ_ROWS))
            parts = [read_rows(self.model, part, places, self.objectives).value for part in rows]
        return torch.cat(parts)


class _Token:
    """The rows of one token."""

    def __init__(self, restoring: Restoring, token: int):
        self.restoring = restoring
        self.corruption = restoring.corruption
        self.model = restoring.model
        self.token = token
        self.recording = self.corruption.recording(token)
        self.at = token - self.recording.start  # its place in the suffix
        self.reads = [read - self.recording.start for read in restoring.reads]

    @property
    def draws(self) -> int:
        return self.corruption.draws

    @cached_property
    def alone(self):
        """Runs the token's own column again: what stands behind it has no part in that, but in a masked model."""
        return self.recording if self.model.masked else self.corruption.recording(self.token, self.token + 1)

    def restored(self, kind: str, severed: str | None, windows: Sequence[Window]) -> Tensor:
        ordered = sorted(set(windows))
        work = partial(self._sweep, kind, severed)
        hidden = [result for _, result in halving(self.model, self._parts(ordered), work, "restored states")]
        values = self.restoring._read(torch.cat(hidden)).reshape(len(ordered), self.draws)
        return values[[ordered.index(window) for window in windows]]

    def _parts(self, windows: list[Window]) -> Iterator[list[Window]]:
        """Windows with one beginning stay together."""
        most = max(1, fitting_tokens(self.model, SWEEP_TOKENS) // (self.draws * self.recording.length))
        part: list[Window] = []
        for window in windows:
            if len(part) >= most and window.first != part[-1].first:
                yield part
                part = []
            part.append(window)
        yield part

    def _sweep(self, kind: str, severed: str | None, windows: list[Window]) -> Tensor:
        """The last block's output at the reads for all windows in their order, (windows × draws, reads, d_model)."""
        draws, n_layers = self.draws, self.model.n_layers
        groups: list[list[Window]] = []  # of `draws` rows each: the windows that are the same until now
        hidden = None
        for layer in range(windows[0].first + 1, n_layers + 1):
            joining = [window for window in windows if window.first + 1 == layer]
            if joining:
                new = self._joining(kind, layer)
                hidden = new if hidden is None else torch.cat([hidden, new])
                groups.append(joining)
            for i, group in enumerate(list(groups)):
                if len(group) > 1 and group[0].end <= layer:  # it goes on unrestored
                    hidden = torch.cat([hidden, hidden[i * draws : (i + 1) * draws]])
                    groups.append([group.pop(0)])
            if layer < n_layers:
                with hooked(*self._hooks(kind, severed, layer, groups)):
                    hidden = self.recording.block(layer, hidden)
        order = sorted(range(len(groups)), key=lambda i: groups[i][0])
        return hidden.reshape(len(groups), draws, *hidden.shape[1:])[order][:, :, self.reads].flatten(0, 1)

    def _joining(self, kind: str, layer: int) -> Tensor:
        """What block `layer` receives of rows that were restored in the layer below for the first time."""
        recording, clean = self.recording, self.corruption.clean
        hidden = self.corruption.corrupted.states[layer][:, recording.start : recording.start + recording.length]
        hidden = hidden.clone()
        hidden[:, self.at] = clean.states[layer][0, self.token] if kind == "state" else self._first(kind, layer - 1)
        return hidden

    def _first(self, kind: str, layer: int) -> Tensor:
        """The corrupted token after block `layer`, with that block's sublayer restored, (draws, d_model)."""
        alone = self.alone
        at = self.token - alone.start
        hidden = self.corruption.corrupted.states[layer][:, alone.start : alone.start + alone.length]
        clean = self.corruption.clean.outputs[kind][layer][0, self.token]
        with hooked(set_output(self.model, kind, layer, alone.length, at, slice(None), clean)):
            return alone.block(layer, hidden)[:, at]

    def _hooks(self, kind: str, severed: str | None, layer: int, groups: list[list[Window]]) -> list:
        length = self.recording.length
        if severed is not None:
            values = self.corruption.corrupted.outputs[severed][layer][:, self.token].repeat(len(groups), 1)
            return [set_output(self.model, severed, layer, length, self.at, slice(None), values)]
        rows = [
            i * self.draws + draw
            for i, group in enumerate(groups)
            if group[0].end > layer
            for draw in range(self.draws)
        ]
        if not rows:
            return []
        clean = self.corruption.clean.outputs[kind][layer][0, self.token]
        return [set_output(self.model, kind, layer, length, self.at, rows, clean)]
